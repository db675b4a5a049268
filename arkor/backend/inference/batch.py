"""Decode several answers with the same weights together, with a shared key-value cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from arkor.backend.inference.grammar import allowed_tokens
from arkor.backend.inference.messages import GenerationError, Reply, TokenLogprob
from arkor.backend.inference.model_cache import ServedModel
from arkor.backend.inference.own_cache import OwnCacheDecoder
from arkor.backend.inference.sampling import apply_penalties, apply_repetition_penalty, log_probabilities, sample
from arkor.backend.inference.sequence import SequenceState

#: Tokens of a prompt that are computed at once, between two steps of the other answers.
PREFILL_TOKENS = 512

#: The same if the logits of each token are needed, which take vocabulary × 4 bytes a token.
SCORED_PREFILL_TOKENS = 64


class Batch:
    """Answers with the same weights, decoded together; a new batch has one, without its prompt.

    Keys and values of the cache are (answers, heads, tokens, head size), padded on the left, so
    that the last column has the newest token of every answer.
    """

    def __init__(self, weights: ServedModel, adapter: str | None, sequence: SequenceState) -> None:
        self.weights = weights
        self.adapter = adapter
        self.sequences = [sequence]
        self._pending_prompt = sequence.prompt
        self._lengths = [0]  # tokens in the cache, by answer
        self._next: list[int] = []
        self._accepted_inputs = inspect.signature(weights.model.forward).parameters
        self._mergeable = is_mergeable(weights.model)
        self._own = None if self._mergeable else OwnCacheDecoder(weights.model)
        self._cache = DynamicCache()  # also keeps tokens outside of a sliding window, which the mask hides

    @property
    def is_prefilling(self) -> bool:
        """Whether a part of the prompt is not computed yet."""
        return bool(self._pending_prompt)

    @property
    def must_run_alone(self) -> bool:
        """Whether an answer has a seed: batching changes the rounding, and with it the answer."""
        return any(sequence.completion.seed is not None for sequence in self.sequences)

    def step(self) -> list[Reply]:
        """Compute a part of the prompt, or one token per answer. Raise `GenerationError`."""
        if self._pending_prompt:
            return self._prefill(self.sequences[0])
        return self._push(self._forward([[token] for token in self._next])[:, -1])

    def _prefill(self, sequence: SequenceState) -> list[Reply]:
        """Compute a part of the prompt; with its end, the first token of the answer."""
        size = PREFILL_TOKENS if sequence.prompt_logprobs is None else SCORED_PREFILL_TOKENS
        size = size if self._mergeable else len(self._pending_prompt)
        chunk, self._pending_prompt = self._pending_prompt[:size], self._pending_prompt[size:]
        logits = self._forward([chunk], keep_all=sequence.prompt_logprobs is not None)
        if sequence.prompt_logprobs is not None:
            scored = sequence.prompt[len(sequence.prompt_logprobs) :][: len(chunk)]
            sequence.prompt_logprobs += self._logprobs(logits[0, : len(scored)], scored, sequence)
        if self._pending_prompt:
            return []
        replies = sequence.start()
        if not sequence.finished:
            return [*replies, *self._push(logits[:, -1])]
        self.sequences.clear()
        return replies

    def can_merge(self, other: Batch) -> bool:
        """Whether the two batches can be decoded as one."""
        return (
            self.weights is other.weights
            and self.adapter == other.adapter
            and self._mergeable  # the same for the other, which has the same weights
            and not (self.must_run_alone or other.must_run_alone)
            and not (self.is_prefilling or other.is_prefilling)
        )

    def merge(self, other: Batch) -> None:
        """Move the answers of another batch into this one."""
        width = max(*self._lengths, *other._lengths)
        pairs = zip(self._cache.layers, other._cache.layers, strict=True)
        self._cache = DynamicCache(
            [
                (
                    torch.cat([_pad_left(mine.keys, width), _pad_left(theirs.keys, width)]),
                    torch.cat([_pad_left(mine.values, width), _pad_left(theirs.values, width)]),
                )
                for mine, theirs in pairs
            ]
        )
        self.sequences += other.sequences
        self._lengths += other._lengths
        self._next += other._next

    def remove(self, is_dropped: Callable[[SequenceState], bool]) -> None:
        """Remove answers and their part of the cache."""
        keep = [row for row, sequence in enumerate(self.sequences) if not is_dropped(sequence)]
        if len(keep) == len(self.sequences):
            return
        self.sequences = [self.sequences[row] for row in keep]
        self._next = [self._next[row] for row in keep] if self._next else []
        self._lengths = [self._lengths[row] for row in keep]
        if keep and self._mergeable:  # an empty batch is dropped with its cache
            width = max(self._lengths)
            pairs = [(layer.keys, layer.values) for layer in self._cache.layers]
            self._cache = DynamicCache(
                [(_select_rows(keys, keep, width), _select_rows(values, keep, width)) for keys, values in pairs]
            )

    def _forward(self, columns: list[list[int]], *, keep_all: bool = False) -> torch.Tensor:
        """Compute tokens, (answers, new); return at least the last logits, (answers, new,
        vocabulary).
        """
        self.weights.activate(self.adapter)
        if self._own is not None:
            return _require_finite(self._own.forward(columns[0], keep_all=keep_all))
        model, new = self.weights.model, len(columns[0])
        positions = [list(range(length, length + new)) for length in self._lengths]
        inputs: dict[str, Any] = {
            "position_ids": torch.tensor(positions, device=model.device),
            "attention_mask": self._mask(new),
            "logits_to_keep": 0 if keep_all else 1,  # 0 keeps all
        }
        accepted = {
            name: value for name, value in inputs.items() if name in self._accepted_inputs and value is not None
        }
        tokens = torch.tensor(columns, device=model.device)
        with torch.inference_mode():
            cache = {_cache_argument(self._accepted_inputs): self._cache}
            out = model(input_ids=tokens, use_cache=True, **cache, **accepted)
        self._lengths = [length + new for length in self._lengths]
        return _require_finite(out.logits)

    def _mask(self, new: int) -> torch.Tensor | None:
        """Return the mask, int64 (answers, tokens), or None without padding (faster)."""
        width = max(self._lengths) + new
        if width == min(self._lengths) + new:
            return None
        rows = [[0] * (width - length - new) + [1] * (length + new) for length in self._lengths]
        return torch.tensor(rows, device=self.weights.model.device)

    def _push(self, logits: torch.Tensor) -> list[Reply]:
        self._next = sample(self._constrained(logits), [sequence.sampling for sequence in self.sequences])
        stop_tokens = self.weights.stop_tokens
        replies: list[Reply] = []
        for row, (sequence, token) in enumerate(zip(self.sequences, self._next, strict=True)):
            logprob = None
            if sequence.completion.logprobs is not None:
                [logprob] = self._logprobs(logits[row][None], [token], sequence)
            replies += sequence.push(token, stop_tokens, logprob)
        self.remove(lambda sequence: sequence.finished)
        return replies

    def _logprobs(self, logits: torch.Tensor, tokens: Sequence[int], sequence: SequenceState) -> Iterator[TokenLogprob]:
        """Yield the log-probabilities of tokens; logits are (tokens, vocabulary)."""
        data = self.weights.token_bytes
        for token, (logprob, top) in zip(
            tokens, log_probabilities(logits, tokens, sequence.completion.logprobs or 0), strict=True
        ):
            yield TokenLogprob(data(token), logprob, tuple((data(other), value) for other, value in top))

    def _constrained(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply penalties, biases and constraints (-inf) to logits, (answers, vocabulary)."""
        penalty = self.weights.repetition_penalty
        if penalty != 1:
            logits = apply_repetition_penalty(
                logits, penalty, [sequence.prompt + sequence.tokens for sequence in self.sequences]
            )
        logits = apply_penalties(
            logits,
            [sequence.sampling for sequence in self.sequences],
            [sequence.tokens for sequence in self.sequences],
        )
        matchers = [sequence.matcher for sequence in self.sequences]
        if not any(matchers):
            return logits
        return logits.masked_fill(~allowed_tokens(matchers, logits.shape[-1]).to(logits.device), -torch.inf)


def _require_finite(logits: torch.Tensor) -> torch.Tensor:
    """Return the logits; raise `GenerationError` if a position has none to choose from."""
    if not bool(torch.isfinite(logits.max(dim=-1).values).all()):
        problem = "The model's output is not a number: its training diverged. Use an earlier checkpoint."
        raise GenerationError(409, "model_diverged", problem)
    return logits


def _cache_argument(accepted: Container[str]) -> str:
    """Return the name of the cache in a model's `forward`: "past_key_values" before transformers
    5.24.

    Raise `GenerationError` for a model with neither: its `**kwargs` would accept the cache and
    ignore it, as Mamba's do in transformers 5.0, so that each token would be computed without the
    ones before it.
    """
    for name in ("cache", "past_key_values"):
        if name in accepted:
            return name
    problem = "The installed version of transformers cannot generate with this model's architecture."
    raise GenerationError(400, "unsupported_model", problem, remedy="Run: pip install 'transformers>=5.24'")


def is_mergeable(model: Any) -> bool:
    """Whether caches of the model can be cut and merged: they keep the keys and values of all
    tokens, and nothing else.
    """
    if not any(name in inspect.signature(model.forward).parameters for name in ("cache", "past_key_values")):
        return False
    if not model._supports_default_dynamic_cache():
        return False
    layers = DynamicCache(config=model.config.get_text_config()).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _pad_left(states: torch.Tensor, width: int) -> torch.Tensor:
    """Pad keys or values on the left to `width` tokens."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))


def _select_rows(states: torch.Tensor, rows: Sequence[int], width: int) -> torch.Tensor:
    """Return the last `width` tokens of some answers."""
    return states[list(rows), :, states.shape[-2] - width :].contiguous()
