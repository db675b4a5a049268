"""The architectures that can be converted: the names and the layout of their tensors in llama.cpp.

A further architecture is a further entry of `ARCHITECTURES`. Its tests compare log-probabilities:
greedy answers often stay the same when a tensor is laid out wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import field, frozen

from arkor.errors import StructuredError


class NotConvertible(StructuredError):
    """A model or an adapter that a GGUF file cannot represent, or that arkor cannot convert."""


@frozen
class Architecture:
    """How llama.cpp names and lays out the tensors of a kind of model.

    `model` and `layer` map modules outside and inside of layer N (`model.layers.N.`) to names of
    tensors, without `.weight`; in a layer they get the prefix `blk.N.`. `heads` maps the modules
    whose rows are permuted to the setting with their number of heads.
    """

    name: str
    model: Mapping[str, str]
    layer: Mapping[str, str]
    heads: Mapping[str, str] = field(factory=dict)
    check: Callable[[Any], str | None] = lambda _config: None

    def tensor(self, module: str) -> str | None:
        """Return the name of a module's weight, None for an unknown module."""
        if module in self.model:
            return f"{self.model[module]}.weight"
        layer, _, inner = module.removeprefix("model.layers.").partition(".")
        if not (module.startswith("model.layers.") and layer.isdecimal() and inner in self.layer):
            return None
        return f"blk.{layer}.{self.layer[inner]}.weight"

    def modules(self, layers: int) -> list[str]:
        """Return the modules that a complete model has."""
        inner = [f"model.layers.{layer}.{module}" for layer in range(layers) for module in self.layer]
        return [*self.model, *inner]

    def layout(self, module: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
        """Return a weight with its rows, which are the module's outputs, in llama.cpp's order."""
        setting = next((name for inner, name in self.heads.items() if module.endswith(f".{inner}")), None)
        return weight if setting is None else _pair_neighbours(weight, getattr(config, setting))


def _pair_neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head for rotary embeddings that rotate rows 2i and 2i + 1 together.

    transformers rotates rows i and i + n/2 of the n rows of a head.
    """
    rows, *rest = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2).reshape(rows, *rest)


def _check_llama(config: Any) -> str | None:
    """Return which setting of a Llama model has no counterpart."""
    for setting in ("attention_bias", "mlp_bias"):
        if getattr(config, setting, False):
            return f"its setting {setting} is not supported"
    if config.hidden_act != "silu":
        return f"its activation {config.hidden_act} is not supported"
    rope = config.rope_parameters
    if rope.get("rope_type", "default") not in ROPE_TYPES:
        return f"its rotary embedding of the type {rope['rope_type']} is not supported"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "its rotary embedding of a part of each head is not supported"
    return None


#: Types of rotary embeddings that differ from the default by constant factors of the frequencies.
ROPE_TYPES = ("default", "linear", "llama3")

LLAMA = Architecture(
    "llama",
    model={"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"},
    layer={
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
    heads={"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"},
    check=_check_llama,
)

#: By transformers' `model_type`.
ARCHITECTURES = {"llama": LLAMA}


def architecture_of(config: Any) -> Architecture:
    """Return the architecture of a model with that configuration. Raise `NotConvertible`."""
    kind = config.model_type
    architecture = ARCHITECTURES.get(kind)
    if architecture is None:
        problem = f"Models of the type {kind} cannot be converted to GGUF."
        raise NotConvertible(problem, remedy=f"Supported types: {', '.join(ARCHITECTURES)}.")
    if reason := architecture.check(config):
        raise NotConvertible(f"This model cannot be converted to GGUF: {reason}.")
    return architecture
