"""Write a base model as a GGUF file with weights of 16 or 32 bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors import safe_open
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from arkor.backend.compute.gguf.architectures import Architecture, NotConvertible, architecture_of
from arkor.backend.compute.gguf.vocabulary import add_vocabulary

#: The number formats: torch's type, and `general.file_type`.
FORMATS = {"f16": (torch.float16, 1), "f32": (torch.float32, 0)}

_WEIGHT = ".weight"

#: Buffers of old checkpoints, which are computed from the configuration.
_COMPUTED = "rotary_emb.inv_freq"


def write_base(folder: Path, file: Path, config: Any, tokenizer: Any, number_format: str = "f16") -> None:
    """Write the safetensors of a folder to `file`. Raise `NotConvertible`, or OSError.

    transformers loads `config` and `tokenizer` from the folder.
    """
    architecture = architecture_of(config)
    dtype, file_type = FORMATS[number_format]
    sources = _sources(folder)
    modules = _modules(architecture, config, sources)
    with closing(gguf.GGUFWriter(file, architecture.name)) as writer:
        writer.add_type("model")
        writer.add_file_type(file_type)
        _add_settings(writer, config)
        add_vocabulary(writer, tokenizer, config.vocab_size)
        factors = rope_factors(config)
        if factors is not None:
            _declare(writer, "rope_freqs.weight", factors)
        for module in modules:
            _declare(writer, _name(architecture, module), _weight_like(sources[module + _WEIGHT], module, dtype))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors.numpy())
        for module in modules:
            with safe_open(sources[module + _WEIGHT], "pt") as source:
                weight = architecture.layout(module, source.get_tensor(module + _WEIGHT), config)
            writer.write_tensor_data(_converted(module, weight, _dtype(weight.ndim, dtype)).numpy())


def _sources(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        parts: Mapping[str, str] = json.loads(index.read_bytes())["weight_map"]
        return {name: folder / part for name, part in parts.items()}
    with safe_open(folder / "model.safetensors", "pt") as file:
        return dict.fromkeys(file.keys(), folder / "model.safetensors")


def _modules(architecture: Architecture, config: Any, sources: Mapping[str, Path]) -> list[str]:
    """Return the modules to write. Raise `NotConvertible` if the folder has others, or lacks one."""
    wanted = [
        module
        for module in architecture.modules(config.num_hidden_layers)
        if not (module == "lm_head" and config.tie_word_embeddings)  # llama.cpp uses the embedding then
    ]
    names = {module + _WEIGHT for module in wanted}
    ignored = {"lm_head.weight"} if config.tie_word_embeddings else set()
    extra = [name for name in sources if name not in names | ignored and not name.endswith(_COMPUTED)]
    missing = sorted(names - set(sources))
    for kind, tensors in (("an unknown tensor", extra), ("no tensor", missing)):
        if tensors:
            raise NotConvertible(f"This model cannot be converted to GGUF: it has {kind} {tensors[0]}.")
    return wanted


def _name(architecture: Architecture, module: str) -> str:
    name = architecture.tensor(module)
    assert name is not None  # noqa: S101 - the module is one of the architecture's
    return name


def _dtype(dimensions: int, dtype: torch.dtype) -> torch.dtype:
    """Return the type of a tensor: llama.cpp requires vectors, such as norms, in 32 bits."""
    return torch.float32 if dimensions == 1 else dtype


def _weight_like(file: Path, module: str, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor without data, of the shape and the type of a weight that will be written."""
    with safe_open(file, "pt") as source:
        shape = source.get_slice(module + _WEIGHT).get_shape()
    return torch.empty(shape, dtype=_dtype(len(shape), dtype), device="meta")


def _declare(writer: Any, name: str, tensor: torch.Tensor) -> None:
    kinds = {torch.float16: gguf.GGMLQuantizationType.F16, torch.float32: gguf.GGMLQuantizationType.F32}
    writer.add_tensor_info(name, list(tensor.shape), None, tensor.nbytes, raw_dtype=kinds[tensor.dtype])


def _converted(module: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    converted = weight.to(dtype).contiguous()
    if bool((torch.isinf(converted) & torch.isfinite(weight)).any()):
        raise NotConvertible(f"The weights of {module} exceed the range of 16-bit floating-point numbers.")
    return converted


def _add_settings(writer: Any, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head = _head_size(config)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def rope_factors(config: Any) -> torch.Tensor | None:
    """Return by how much each frequency of the rotary embedding is divided; None for the default."""
    kind = config.rope_parameters.get("rope_type", "default")
    if kind == "default":
        return None
    scaled: torch.Tensor
    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    head = _head_size(config)
    plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, head, 2).float() / head)
    factors: torch.Tensor = plain / scaled
    return factors.contiguous()
