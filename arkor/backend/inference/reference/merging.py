"""Merge an adapter into the base model while it answers, and restore the base exactly.

An adapter that is not merged makes a token take up to a third longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from arkor.backend.compute.gguf.adapter import check_settings
from arkor.backend.compute.gguf.architectures import NotConvertible


class MergedAdapter:
    """An adapter whose update is part of the base model's weights until `restore()`.

    The original weights are kept, so the model takes more memory meanwhile.
    """

    def __init__(self, model: Any, name: str) -> None:
        self._originals: list[tuple[Any, torch.Tensor]] = []
        self.name = name
        with torch.inference_mode(mode=False), torch.no_grad():
            for layer in _layers(model, name):
                base = layer.get_base_layer()
                self._originals.append((base.weight, base.weight.data))
                base.weight.data = base.weight.data + layer.get_delta_weight(name)

    @property
    def bytes(self) -> int:
        """The size of the original weights."""
        return sum(data.nbytes for _, data in self._originals)

    def restore(self) -> None:
        """Put the original weights back."""
        for parameter, data in self._originals:
            parameter.data = data


def needed_bytes(model: Any, settings: Mapping[str, Any], name: str) -> int | None:
    """Return the memory that merging takes; None if the adapter cannot be merged exactly.

    `settings` are the adapter's. In formats of 16 bits, small updates would be rounded away.
    """
    try:
        check_settings(settings)
    except NotConvertible:
        return None
    layers = _layers(model, name)
    bases = [layer.get_base_layer() for layer in layers]
    weights = {id(base.weight): base.weight.nbytes for base in bases}
    plain = all(type(base) is torch.nn.Linear and base.weight.dtype == torch.float32 for base in bases)
    shared = len(weights) != len(layers) or id(model.get_input_embeddings().weight) in weights
    return sum(weights.values()) if plain and not shared and layers else None


def _layers(model: Any, name: str) -> list[Any]:
    """Return the layers of PEFT with that adapter."""
    return [module for module in model.modules() if name in getattr(module, "lora_A", {})]
