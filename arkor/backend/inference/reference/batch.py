"""Decode several answers with transformers and a shared key-value cache."""

from __future__ import annotations

import inspect
from collections.abc import Container, Sequence
from typing import Any, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from arkor.backend.inference.batch import Batch
from arkor.backend.inference.messages import GenerationError
from arkor.backend.inference.reference.model import TorchModel
from arkor.backend.inference.reference.own_cache import OwnCacheDecoder
from arkor.backend.inference.sequence import SequenceState


class TorchBatch(Batch):
    """Answers of a torch model.

    Keys and values of the cache are (answers, heads, tokens, head size), padded on the left, so
    that the last column has the newest token of every answer.
    """

    weights: TorchModel

    def __init__(self, weights: TorchModel, adapter: str | None, sequence: SequenceState) -> None:
        super().__init__(weights, adapter, sequence)
        self._lengths = [0]  # tokens in the cache, by answer
        self._accepted_inputs = inspect.signature(weights.model.forward).parameters
        self._mergeable = is_mergeable(weights.model)
        self._own = None if self._mergeable else OwnCacheDecoder(weights.model)
        self.last_logits = torch.empty(0)
        self._cache = DynamicCache()  # also keeps tokens outside of a sliding window, which the mask hides

    @property
    def can_cut_prompts(self) -> bool:
        return self._mergeable

    def can_merge(self, other: Batch) -> bool:
        return self._mergeable and super().can_merge(other)  # the other has the same weights

    def _merge_cache(self, other: Batch) -> None:
        other = cast("TorchBatch", other)
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
        self._lengths += other._lengths

    def _keep_rows(self, rows: Sequence[int]) -> None:
        self._lengths = [self._lengths[row] for row in rows]
        if rows and self._mergeable:  # an empty batch is dropped with its cache
            width = max(self._lengths)
            pairs = [(layer.keys, layer.values) for layer in self._cache.layers]
            self._cache = DynamicCache(
                [(_select_rows(keys, rows, width), _select_rows(values, rows, width)) for keys, values in pairs]
            )

    def _forward(self, columns: list[list[int]], *, keep_all: bool) -> torch.Tensor:
        self.weights.activate(self.adapter, may_merge=not self.must_run_alone)
        if self._own is not None:
            return self._own.forward(columns[0], keep_all=keep_all)
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
        logits: torch.Tensor = out.logits
        self.last_logits = logits[0, -1]
        return logits

    def states(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the keys and values of the first answer, by layer: (heads, tokens, head size)."""
        return [(layer.keys[0], layer.values[0]) for layer in self._cache.layers]

    def _mask(self, new: int) -> torch.Tensor | None:
        """Return the mask, int64 (answers, tokens), or None without padding (faster)."""
        width = max(self._lengths) + new
        if width == min(self._lengths) + new:
            return None
        rows = [[0] * (width - length - new) + [1] * (length + new) for length in self._lengths]
        return torch.tensor(rows, device=self.weights.model.device)


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
