"""Write a LoRA adapter of PEFT as a GGUF file, for a base model in the same format."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open

from arkor.backend.compute.gguf.architectures import Architecture, NotConvertible, architecture_of

_PREFIX = "base_model.model."

#: Settings of adapters that the format cannot represent; each must be absent, empty or False.
_UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "velora_config",
    "monteclora_config",
    "kasa_config",
    "alora_invocation_tokens",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "megatron_config",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
)


def write_adapter(folder: Path, file: Path, config: Any) -> None:
    """Write the adapter in a folder to `file`. Raise `NotConvertible`, or OSError.

    `config` is the configuration of its base model.
    """
    settings = json.loads((folder / "adapter_config.json").read_bytes())
    check_settings(settings)
    architecture = architecture_of(config)
    with safe_open(folder / "adapter_model.safetensors", "pt") as source:
        weights = {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 - not a mapping
    pairs = _pairs(weights)
    scales = {module: _scale(settings, module, pair[0].shape[0]) for module, pair in pairs.items()}
    alpha = _alpha(pairs, scales)
    with closing(gguf.GGUFWriter(file, architecture.name)) as writer:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for module, (down, up) in pairs.items():
            name = _tensor(architecture, module, config)
            strength = scales[module] * down.shape[0] / alpha  # relative to llama.cpp's alpha / rank
            scaled_up = architecture.layout(module, up.float(), config) * strength
            writer.add_tensor(f"{name}.lora_a", down.float().contiguous().numpy())
            writer.add_tensor(f"{name}.lora_b", scaled_up.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise `NotConvertible` if a GGUF file cannot represent an adapter with these settings."""
    reasons = [name for name in _UNSUPPORTED if settings.get(name)]
    if settings.get("peft_type") != "LORA":
        reasons.insert(0, f"peft_type {settings.get('peft_type')}")
    if settings.get("bias", "none") != "none":
        reasons.insert(0, "bias")
    if reasons:
        problem = f"GGUF cannot represent this adapter's setting {reasons[0]}."
        raise NotConvertible(problem, remedy="Merge the adapter into its base model instead.")


def _pairs(weights: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return A (rank, in) and B (out, rank) by module."""
    pairs = {}
    for name, down in weights.items():
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            pairs[stem.removeprefix(_PREFIX)] = (down, weights[f"{stem}.lora_B.weight"])
    known = {f"{_PREFIX}{module}.lora_{side}.weight" for module in pairs for side in "AB"}
    if extra := sorted(set(weights) - known):
        problem = f"GGUF cannot represent the adapter's tensor {extra[0]}."
        raise NotConvertible(problem, remedy="Merge the adapter into its base model instead.")
    if not pairs:
        raise NotConvertible("The adapter has no LoRA weights.")
    return pairs


def _tensor(architecture: Architecture, module: str, config: Any) -> str:
    name = architecture.tensor(module)
    if name is None or module not in architecture.modules(config.num_hidden_layers):
        raise NotConvertible(f"The adapter changes {module}, which its base model does not have.")
    if module in architecture.model:  # an embedding, or a head that may share its weights
        problem = f"GGUF cannot represent an adapter of {module}."
        raise NotConvertible(problem, remedy="Merge the adapter into its base model instead.")
    return name


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """Return by what PEFT multiplies B A for that module.

    `rank` is the rank of the weights, which `rank_pattern` may set.
    """
    patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
    alpha = next(
        (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)),
        settings["lora_alpha"],
    )
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _alpha(pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]], scales: Mapping[str, float]) -> float:
    """Return the adapter's alpha, which llama.cpp divides by each module's rank.

    It is the one with which the most modules need no change of their weights; 0 would be ignored.
    """
    alphas = [scales[module] * down.shape[0] for module, (down, _) in pairs.items()]
    return max(set(alphas), key=alphas.count) or 1.0
