"""Decode one answer exactly as `generate` of transformers does, with the model's own kind of cache.

Recurrent states, compressed or indexed keys and the like cannot be cut and merged, so answers of
such models are decoded alone. Each forward pass has the inputs that the model prepares for
`generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class OwnCacheDecoder:
    """Decodes one answer of a model; the first tokens are its whole prompt."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._inputs: dict[str, Any] = {}
        self._tokens = torch.empty((1, 0), dtype=torch.long, device=model.device)

    def forward(self, tokens: Sequence[int], *, keep_all: bool = False) -> torch.Tensor:
        """Compute tokens; return at least the last logits, (1, new, vocabulary)."""
        is_prompt = not self._inputs
        self._tokens = torch.cat([self._tokens, torch.tensor([tokens], device=self._model.device)], dim=1)
        with torch.inference_mode():
            if is_prompt:
                self._inputs = _first_inputs(self._model, self._tokens)
                if keep_all:
                    self._inputs.pop("logits_to_keep", None)
            new = None if is_prompt or not self._inputs["use_cache"] else 1
            inputs = self._model.prepare_inputs_for_generation(
                self._tokens, next_sequence_length=new, is_first_iteration=is_prompt, **self._inputs
            )
            out = self._model(**inputs, return_dict=True)
            self._inputs = self._model._update_model_kwargs_for_generation(out, self._inputs)
        logits: torch.Tensor = out.logits
        return logits


def _first_inputs(model: Any, tokens: torch.Tensor) -> dict[str, Any]:
    """Return the inputs that `generate` begins with, an empty cache among them."""
    found: dict[str, Any] = {}

    def capture(_model: Any, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        found.update(inputs)
        return input_ids

    model.generate(
        tokens, attention_mask=torch.ones_like(tokens), custom_generate=capture, max_new_tokens=1, do_sample=False
    )
    for name in ("logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer"):
        found.pop(name, None)
    return found
