"""Make tiny models with random weights of every family that transformers has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.fakes.tiny_model import CHATML, SPREAD, tiny_tokenizer

#: Field of a configuration → its value in a tiny model. Each family takes the fields that it has.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "attention_hidden_size", "dim", "hidden_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "dim_ff", "n_inner", "dff", "ffn_hidden_size"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "dense_intermediate_size", "intermediate_size_mlp"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "shared_experts_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "kv_n_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "index_head_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "moe_top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "index_n_heads", "linear_num_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "mamba_d_head"), 8),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("vocab_size_per_layer_input",), 260),
    **dict.fromkeys(("num_mtp_layers", "num_nextn_predict_layers"), 0),
    "initializer_range": SPREAD,
    "mamba_head_dim": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "chunk_size": 16,
    "hidden_size_per_layer_input": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 256,
    "rotary_dim": 8,
    "index_topk": 4096,
}

#: The same for the parts that read images and audio.
SMALL_TOWER: dict[str, Any] = {
    **SMALL,
    "image_size": 16,
    "patch_size": 4,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "depth": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}

#: The largest number of weights of a tiny model.
MAX_WEIGHTS = 12_000_000

#: No dropout: losses are compared.
NO_DROPOUT = dict.fromkeys(
    "resid_pdrop embd_pdrop attn_pdrop dropout attention_dropout hidden_dropout activation_dropout layerdrop "
    "hidden_dropout_prob attention_probs_dropout_prob residual_dropout embedding_dropout resid_dropout emb_dropout "
    "router_jitter_noise input_jitter_noise ffn_dropout dropout_p mlp_dropout classifier_dropout embed_dropout".split(),
    0.0,
)

#: Encoders, sequence-to-sequence models and speech decoders, which no chat can be trained with.
NO_CHAT_MODELS = frozenset(
    "bart bert bert-generation big_bird bigbird_pegasus blenderbot blenderbot-small camembert data2vec-text electra "
    "ernie git gemma4_assistant gemma4_unified_assistant marian mbart megatron-bert moshi musicgen musicgen_melody mvp "
    "pegasus plbart prophetnet reformer rembert roberta roberta-prelayernorm roc_bert roformer trocr whisper xlm "
    "xlm-roberta xlm-roberta-xl xlnet xmod blt cpmant moss_transcribe_diarize gpt-sw3".split()
)

#: Image-text models without a class for causal language modelling.
IMAGE_TEXT_MODELS = (
    "qwen3_vl qwen3_vl_moe qwen2_vl qwen2_5_vl mistral3 llava internvl smolvlm aya_vision cohere2_vision glm4v glm46v "
    "idefics3 kimi_k25 lfm2_vl llava_next llava_onevision mistral4 paligemma"
).split()

#: Positions of images in three dimensions, for a head of 8 numbers.
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}

#: Family → settings that its shape needs, by dotted path.
SHAPES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "gemma4": {  # like E4B: some layers share the keys of others, and each has embeddings of its own
        "text_config.num_hidden_layers": 6,
        "text_config.num_kv_shared_layers": 2,
        "text_config.layer_types": ["sliding_attention", "full_attention"] * 3,
    },
    "gemma3n_text": {"num_hidden_layers": 5, "num_kv_shared_layers": 0},
    "glm4v": {"text_config.rope_parameters": MROPE},
    "glm46v": {"text_config.rope_parameters": MROPE},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "inkling2_loop_text": {"unpadded_vocab_size": 260},
    "inkling2_text": {"unpadded_vocab_size": 260},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "qwen2_vl": {"vision_config.embed_dim": 32, "vision_config.hidden_size": 32},
    "zamba": {
        "attention_hidden_size": 64,
        "num_hidden_layers": 8,
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


def families() -> list[str]:
    """Return the families that can be trained on chats, by `model_type`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # noqa: PLC0415 - collecting tests loads no torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: PLC0415 - as above

    found = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING_NAMES]
    return [name for name in (*found, *IMAGE_TEXT_MODELS) if name not in NO_CHAT_MODELS]


def _parts(config_class: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return the class of each part of a composite configuration, and what selects it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: PLC0415 - as above

    parts: dict[str, tuple[Any, dict[str, Any]]] = {}
    for name, spec in getattr(config_class, "sub_configs_defaults", config_class.sub_configs).items():
        part, model_type = getattr(spec, "config_class", spec), getattr(spec, "model_type", None)
        chosen = CONFIG_MAPPING[model_type] if model_type else part
        if dataclasses.is_dataclass(chosen):
            parts[name] = (chosen, {"model_type": model_type} if model_type else {})
    return parts


def _settings(config_class: Any, small: Mapping[str, Any]) -> dict[str, Any]:
    names = {spec.name for spec in dataclasses.fields(config_class)}
    settings = {name: value for name, value in {**small, **NO_DROPOUT}.items() if name in names}
    if "kv_lora_rank" in names:  # the size of a head is derived from its parts, and each head has keys of its own
        settings.pop("head_dim", None)
        settings.update({"num_key_value_heads": 4} if "num_key_value_heads" in names else {})
    for name, (part, selection) in _parts(config_class).items():
        is_text = "text" in name or "decoder" in name
        settings[name] = {**_settings(part, SMALL if is_text else SMALL_TOWER), **selection}
        if is_text:
            settings[name]["vocab_size"] = len(tiny_tokenizer())
    return settings


def tiny_config(family: str) -> Any:
    """Return the configuration of a tiny model."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: PLC0415 - as above

    config_class = CONFIG_MAPPING[family]
    settings = _settings(config_class, SMALL)
    if "vocab_size" in {spec.name for spec in dataclasses.fields(config_class)}:
        settings["vocab_size"] = len(tiny_tokenizer())
    for path, value in SHAPES.get(family, {}).items():
        *parts, name = path.split(".")
        target = settings
        for part in parts:
            target = target[part]
        target[name] = value
    return config_class(**settings, bos_token_id=0, eos_token_id=2, pad_token_id=3)


def make_tiny(folder: Path, family: str) -> Path:
    """Save a tiny model of that family, the same weights each time, and return the folder."""
    import torch  # noqa: PLC0415 - as above
    import transformers  # noqa: PLC0415 - as above

    config = tiny_config(family)
    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    auto = transformers.AutoModelForCausalLM if family in causal else transformers.AutoModelForImageTextToText
    with torch.device("meta"):
        size = sum(weight.numel() for weight in auto.from_config(config).parameters())
    assert size <= MAX_WEIGHTS, f"{family} has {size:,} weights; add settings to SHAPES"
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(folder)
    tiny_tokenizer(CHATML).save_pretrained(folder)
    return folder
