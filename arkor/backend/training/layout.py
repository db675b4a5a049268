"""Choose how the rows of a batch are laid out, so that no row has an effect on another one.

A flat batch concatenates its rows; only attention with a mask keeps them apart. A recurrent state,
a convolution, or a model that ignores the mask carries one row into the next. So the model itself
is tested with a few short rows: the gradient of one row's losses with respect to every other row's
embeddings has to be exactly zero, which no leak can pass in any number format, and each row's
losses have to be those of the row alone and independent of the tokens of the others. Padded batches
have to pass the same test; a model that passes neither is trained row by row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from arkor.backend.engine.interface import RunError
from arkor.backend.training.collation import (
    MAX_FLAT_TOKENS,
    Layout,
    LayoutChoice,
    Pair,
    build_micro_batch,
    common_prefix_length,
)
from arkor.backend.training.forward_pass import ForwardPass
from arkor.formatting import one_line

#: Tokens of the rows of the test: a common prefix, and the rest of each row.
PREFIX_TOKENS, REST_TOKENS = 6, (40, 24, 15)

#: The largest difference of a token's loss that rounding in fp32 explains, relative to the losses.
FP32_TOLERANCE = 1e-3

#: The same in 16 bits for the mean difference, relative to the losses' standard deviation. It only
#: has to detect wrong positions; leaks are detected exactly.
BF16_TOLERANCE = 0.1

#: Models of at most this number of weights are tested in fp32, whatever their format is.
FP32_TEST_WEIGHTS = 50_000_000

#: Settings of a configuration by which a model counts tokens by their index in the sequence.
_INDEX_SETTING = re.compile(
    r"(^|_)(window(_size|_len)?|chunk_size|block_size|topk(_blocks)?|budget|local_attention|floor(_scale)?)$"
)

#: Of these, the ones that only shape the attention mask, which a flat batch replaces.
_MASK_SETTINGS = ("sliding_window", "attention_chunk_size")

#: Settings with such a name that do not count tokens.
_EXPERT_SETTINGS = ("moe_topk",)


def choose_layout(model: Any, rows: Sequence[Sequence[int]], dtype: torch.dtype, pad: int) -> LayoutChoice:
    """Return the fastest layout that keeps the rows of a batch apart; `rows` are some of the run.

    Raise `RunError` for a model that cannot be trained at all.
    """
    config = model.config.get_text_config()
    was_training = model.training
    model.eval()
    try:
        with _in_fp32_if_small(model, dtype) as test_dtype:
            probe = _Probe(model, _test_rows(rows), test_dtype, pad)
            probe.require_single()
            problem = probe.flat_problem() or _index_problem(config)
            shared = _longest_shared_row(config)
            if problem is None:
                reason = "the test found no effect of one row on another"
                return LayoutChoice(Layout.FLAT, reason, _shortest_window(config), shared)
            padded_problem = probe.problem(Layout.PADDED)
            if padded_problem is None:
                return LayoutChoice(Layout.PADDED, f"in one sequence, {problem}", max_shared_row=shared)
            return LayoutChoice(Layout.SINGLE, f"in one sequence, {problem}; padded, {padded_problem}")
    finally:
        model.train(was_training)


class _Probe:
    """Computes a few short rows in each layout, and compares their losses."""

    def __init__(self, model: Any, rows: list[list[int]], dtype: torch.dtype, pad: int) -> None:
        self._model = model
        self._forward = ForwardPass(model)
        self._rows = rows
        self._dtype = dtype
        self._pad = pad
        self._alone: list[Tensor] | None = None

    def flat_problem(self) -> str | None:
        """Return what is wrong with a flat batch, or None."""
        if not {"position_ids", "attention_mask"} <= set(self._forward.inputs):
            return "the model takes no positions"
        if (problem := self.problem(Layout.FLAT)) is not None:
            return problem
        with torch.no_grad():
            right = self._losses(self._rows, Layout.FLAT)
            doubled = self._losses(self._rows, Layout.FLAT, position_factor=2)
        ignores = any(torch.equal(a, b) for a, b in zip(right, doubled, strict=True))
        return "the model ignores the positions" if ignores else None

    def problem(self, layout: Layout) -> str | None:
        """Return what is wrong with a layout, or None."""
        try:
            return self._leak(layout) or self._difference(layout)
        except Exception as error:  # noqa: BLE001 - a model may fail in any way with a mask that it does not expect
            return f"the model fails ({type(error).__name__})"

    def require_single(self) -> None:
        """Raise `RunError` if the model cannot compute a row, forward and backward."""
        try:
            with torch.enable_grad():
                torch.autograd.backward(self._losses(self._rows[:1], Layout.SINGLE)[0].sum())
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            name, reason = type(self._model.get_base_model()).__name__, one_line(str(error), 200)
            raise RunError(
                f"A {name} cannot be trained with the installed version of transformers: {reason}",
                remedy="Use another model.",
            ) from error
        finally:
            self._model.zero_grad()

    def _leak(self, layout: Layout) -> str | None:
        """Differentiate the losses of each row by the embeddings of the others."""
        embedded: list[Tensor] = []

        def detach(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
            embedded.append(output.detach().requires_grad_())
            return embedded[-1]

        hook = self._model.get_input_embeddings().register_forward_hook(detach)
        try:
            with torch.enable_grad():
                losses = self._losses(self._rows, layout)
                for row, own in enumerate(losses):
                    gradients = torch.autograd.grad(own.sum(), embedded, retain_graph=True, allow_unused=True)
                    if not self._is_own(gradients, row, layout):
                        return "a row has an effect on another one"
        finally:
            hook.remove()
        return None

    def _is_own(self, gradients: Sequence[Tensor | None], row: int, layout: Layout) -> bool:
        """Whether a row's losses depend on its tokens, and on no others."""
        depends = False
        for gradient in gradients:
            if gradient is None:
                continue
            own = self._own_positions(row, layout).to(gradient.device)
            if gradient.shape[:2] != own.shape:
                return False
            used = (gradient != 0).any(dim=-1)  # NaN counts as used
            if bool((used & ~own).any()):
                return False
            depends |= bool(used.any())
        return depends

    def _own_positions(self, row: int, layout: Layout) -> Tensor:
        """Return where the tokens of a row are: bool, shaped like the batch's `input_ids`."""
        lengths = [len(ids) for ids in self._rows]
        if layout is Layout.PADDED:
            own = torch.zeros(len(lengths), max(lengths), dtype=torch.bool)
            own[row, : lengths[row]] = True
            return own
        prefix = common_prefix_length(self._rows)
        ends = list(accumulate((length - prefix for length in lengths), initial=prefix))
        own = torch.zeros(1, ends[-1], dtype=torch.bool)
        own[0, :prefix] = True
        own[0, ends[row] : ends[row + 1]] = True
        return own

    def _difference(self, layout: Layout) -> str | None:
        """Compare the losses with those of each row alone, and with those next to other rows."""
        with torch.no_grad():
            together = self._losses(self._rows, layout)
            if self._alone is None:
                self._alone = [self._losses([ids], Layout.SINGLE)[0] for ids in self._rows]
            if not all(self._is_close(a, b) for a, b in zip(together, self._alone, strict=True)):
                return "the losses of a row differ from those of the row alone"
            for row, own in enumerate(together):
                rows = [ids if number == row else _other_tokens(ids) for number, ids in enumerate(self._rows)]
                if not self._is_close(own, self._losses(rows, layout)[row]):
                    return "the losses of a row depend on the rows next to it"
        return None

    def _is_close(self, losses: Tensor, expected: Tensor) -> bool:
        difference = (losses - expected).abs()
        if self._dtype == torch.float32:
            return bool(difference.max() <= FP32_TOLERANCE * (1 + expected.abs().max()))
        return bool(difference.square().mean().sqrt() <= BF16_TOLERANCE * expected.std().clamp(min=1e-3))

    def _losses(self, rows: Sequence[list[int]], layout: Layout, *, position_factor: int = 1) -> list[Tensor]:
        """Return the losses of each row."""
        pairs: list[Pair] = [(ids, ids) for ids in rows]
        micro_batch = build_micro_batch(pairs, layout, self._dtype, self._pad).to(self._model.device)
        if position_factor != 1:
            micro_batch.model_inputs["position_ids"] = micro_batch.model_inputs["position_ids"] * position_factor
        return list(torch.split(self._forward.token_losses(micro_batch), [len(ids) - 1 for ids in rows]))


def _test_rows(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Cut the tokens of a run's rows into short rows with a common prefix."""
    tokens = [int(token) for ids in rows for token in ids]
    needed = PREFIX_TOKENS + sum(REST_TOKENS)
    tokens = (tokens * (needed // len(tokens) + 1))[-needed:]  # the ends of rows differ more than the beginnings
    ends = list(accumulate(REST_TOKENS, initial=PREFIX_TOKENS))
    return [tokens[:PREFIX_TOKENS] + tokens[begin:end] for begin, end in pairwise(ends)]


def _other_tokens(ids: list[int]) -> list[int]:
    """Return a row of the same length with other tokens after the prefix."""
    rest = ids[PREFIX_TOKENS:]
    return ids[:PREFIX_TOKENS] + rest[::-1]


@contextmanager
def _in_fp32_if_small(model: Any, dtype: torch.dtype) -> Iterator[torch.dtype]:
    """Convert the weights of a small model to fp32 for the test; yield the number format."""
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    is_dense = len(weights) == sum(1 for _ in model.parameters())
    if dtype == torch.float32 or not is_dense or sum(weight.numel() for weight in weights) > FP32_TEST_WEIGHTS:
        yield dtype
        return
    originals = [weight.data for weight in weights]
    for weight in weights:
        weight.data = weight.data.float()
    try:
        yield torch.float32
    finally:
        for weight, original in zip(weights, originals, strict=True):
            weight.data = original


def _index_problem(config: Any) -> str | None:
    """Return why flat batches cannot be trusted beyond the short rows of the test."""
    for name, value in vars(config).items():
        counts = _INDEX_SETTING.search(name) and name not in (*_MASK_SETTINGS, *_EXPERT_SETTINGS)
        if counts and type(value) is int and 0 < value < MAX_FLAT_TOKENS:
            return f"the model counts tokens by their index ({name} is {value})"
    return None


def _shortest_window(config: Any) -> int | None:
    """Return the shortest window or chunk of the attention: longer rows have a mask of their own."""
    found = [getattr(config, name, None) for name in _MASK_SETTINGS]
    return min((window for window in found if window), default=None)


def _longest_shared_row(config: Any) -> int | None:
    """Return up to which length positions do not depend on the longest row of the batch."""
    settings = getattr(config, "rope_parameters", None) or {}
    for rope in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        if rope.get("rope_type") in ("longrope", "dynamic"):
            limit = rope.get("original_max_position_embeddings")
            limit = limit or getattr(config, "original_max_position_embeddings", None)
            return int(limit or config.max_position_embeddings)
    return None
