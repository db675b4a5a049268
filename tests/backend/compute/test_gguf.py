"""Converted files are loaded by llama.cpp, and compared with transformers by their log-probabilities.

Greedy answers would not do: with the rows of q and k in the wrong order they are often the same.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp")
import torch
from gguf import GGUFReader
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from arkor.backend.compute.gguf import architectures, cache
from arkor.backend.compute.gguf.adapter import check_settings, write_adapter
from arkor.backend.compute.gguf.architectures import NotConvertible
from arkor.backend.compute.gguf.base_model import write_base
from arkor.backend.compute.gguf.cache import converted_base
from arkor.backend.compute.models import load_configs, load_tokenizer
from arkor.backend.inference.llama_cpp.context import Context, NativeModel
from arkor.backend.runs.paths import models_folder
from tests.fakes.tiny_model import make_adapter, make_base

pytestmark = pytest.mark.slow  # imports torch

#: Tokens of a prompt for a model of 257 tokens.
PROMPT = [ord(letter) for letter in "The quick brown fox, 12 lazy dogs."]

LAYERS: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 257}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
SPECIAL: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256, "initializer_range": 0.3}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CONFIGS = {
    "grouped attention": LlamaConfig(**LAYERS, **HEADS, **SPECIAL),
    "one key for each query": LlamaConfig(**LAYERS, **SPECIAL, num_attention_heads=4),
    "tied head": LlamaConfig(**LAYERS, **HEADS, **SPECIAL, tie_word_embeddings=True),
    "wide heads": LlamaConfig(**LAYERS, **HEADS, **SPECIAL, head_dim=16),
    "another base": LlamaConfig(
        **LAYERS, **HEADS, **SPECIAL, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    ),
    "linear frequencies": LlamaConfig(
        **LAYERS, **HEADS, **SPECIAL, rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
    ),
    "frequencies of Llama 3": LlamaConfig(**LAYERS, **HEADS, **SPECIAL, rope_parameters=LLAMA3),
}


def convert(folder: str, file: Path, number_format: str = "f32") -> NativeModel:
    config, _ = load_configs(folder)
    write_base(Path(folder), file, config, load_tokenizer(folder), number_format)
    return NativeModel(file)


def native(model: NativeModel, tokens: list[int], adapter: Path | None = None) -> torch.Tensor:
    """Return the log-probabilities after each token, (tokens, vocabulary)."""
    context = Context(model, None if adapter is None else model.load_adapter(adapter), fp32=True)
    logits = context.decode([(context.open()[0], tokens)], keep_all=True)
    return torch.log_softmax(logits, dim=-1)


def expected(folder: str, tokens: list[int], adapter: str | None = None) -> torch.Tensor:
    """Return the same of transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        return torch.log_softmax(model.eval()(input_ids=torch.tensor([tokens])).logits[0], dim=-1)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference among the ten likeliest tokens at each position."""
    likely = theirs.topk(10).indices
    return float((ours.gather(-1, likely) - theirs.gather(-1, likely)).abs().max())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_base(tmp_path_factory.mktemp("gguf") / "base", config=CONFIGS["grouped attention"])


# Base models


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_has_the_same_log_probabilities(tmp_path: Path, name: str) -> None:
    folder = make_base(tmp_path / "base", config=CONFIGS[name])
    theirs = expected(folder, PROMPT)
    assert difference(native(convert(folder, tmp_path / "f32.gguf"), PROMPT), theirs) < 1e-3
    assert difference(native(convert(folder, tmp_path / "f16.gguf", "f16"), PROMPT), theirs) < 0.05


def test_rows_that_are_not_permuted_are_detected(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "_pair_neighbours", lambda weight, _heads: weight)
    assert difference(native(convert(base, tmp_path / "wrong.gguf"), PROMPT), expected(base, PROMPT)) > 0.1


def test_a_tied_head_is_not_written_twice(tmp_path: Path) -> None:
    tied = make_base(tmp_path / "tied", config=CONFIGS["tied head"])
    convert(tied, tmp_path / "tied.gguf")
    names = [tensor.name for tensor in GGUFReader(tmp_path / "tied.gguf").tensors]
    assert "output.weight" not in names
    assert len(names) == 2 + 2 * 9


def test_a_model_in_several_files_is_converted(tmp_path: Path, base: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "parts")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    converted = convert(str(tmp_path / "parts"), tmp_path / "f32.gguf")
    assert difference(native(converted, PROMPT), expected(base, PROMPT)) < 1e-3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "yarn"),
    ],
)
def test_what_has_no_counterpart_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotConvertible, match=reason):
        architectures.architecture_of(LlamaConfig(**LAYERS, **HEADS, **change))


def test_another_architecture_is_refused_with_the_supported_ones() -> None:
    from transformers import GPT2Config  # noqa: PLC0415 - for this test only

    with pytest.raises(NotConvertible, match=r"type gpt2 cannot be converted to GGUF\. Supported types: llama"):
        architectures.architecture_of(GPT2Config())


def test_weights_that_exceed_16_bits_are_refused(tmp_path: Path, base: str) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "large"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 70_000
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotConvertible, match=r"model\.layers\.1\.mlp\.up_proj exceed"):
        convert(str(folder), tmp_path / "f16.gguf", "f16")


# Adapters

ADAPTERS = {
    "plain": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    "some layers": LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "k_proj"]),
    "rank-stabilised": LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear"),
    "alphas": LoraConfig(
        r=4, lora_alpha=8, alpha_pattern={"k_proj": 32, "layers.1.mlp.up_proj": 2}, target_modules="all-linear"
    ),
    "ranks": LoraConfig(r=4, lora_alpha=8, rank_pattern={"q_proj": 2, "down_proj": 8}, target_modules="all-linear"),
    "ranks, rank-stabilised": LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, rank_pattern={"q_proj": 16}, target_modules="all-linear"
    ),
}


def adapt(folder: Path, base: str, settings: LoraConfig) -> str:
    """Save an adapter with random weights."""
    torch.manual_seed(3)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_" in name:
                weights.normal_(std=0.2)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_has_its_full_strength(tmp_path: Path, base: str, name: str) -> None:
    """Other tools ignore rank-stabilised scales and the patterns of alphas and ranks."""
    folder = adapt(tmp_path / "adapter", base, ADAPTERS[name])
    config, _ = load_configs(base)
    write_adapter(Path(folder), tmp_path / "adapter.gguf", config)
    ours = native(convert(base, tmp_path / "base.gguf"), PROMPT, tmp_path / "adapter.gguf")
    theirs = expected(base, PROMPT, folder)
    assert difference(ours, theirs) < 1e-3
    assert difference(theirs, expected(base, PROMPT)) > 0.1


def test_rows_of_an_adapter_that_are_not_permuted_are_detected(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tmp_path / "adapter", base)
    model = convert(base, tmp_path / "base.gguf")
    monkeypatch.setattr(architectures, "_pair_neighbours", lambda weight, _heads: weight)
    write_adapter(Path(adapter), tmp_path / "wrong.gguf", load_configs(base)[0])
    assert difference(native(model, PROMPT, tmp_path / "wrong.gguf"), expected(base, PROMPT, adapter)) > 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1]},
        {"target_parameters": ["mlp.experts"]},
        {"peft_type": "IA3"},
    ],
)
def test_an_adapter_that_the_format_cannot_represent_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(NotConvertible, match=str(next(iter(settings)))):
        check_settings({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **settings})


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:.*save_embedding_layers")
def test_an_adapter_of_the_head_is_refused(tmp_path: Path, base: str) -> None:
    folder = adapt(tmp_path / "adapter", base, LoraConfig(r=4, target_modules=["lm_head"]))
    with pytest.raises(NotConvertible, match="lm_head"):
        write_adapter(Path(folder), tmp_path / "adapter.gguf", load_configs(base)[0])


# Tokenizers

TEXTS = [
    "Hello world",
    "  two spaces",
    "\n\n1. first\n  22. second",
    "a  3 ²  \t7",
    "It's 2026, isn't it?",
    "naïve café 你好 😀 שלום",
    "def f(x):\n    return x1[0]\n",
    "<|im_start|>user\nhi<|im_end|>",
    "",
]


def bpe(pre: Any) -> Any:
    """A byte-level tokenizer with a few merges, and a token before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("1", "2"), ("2", "2"), ("Ġ", "Ġ"), ("h", "e"), ("he", "l")]
    texts = ["<s>", "</s>", *alphabet, *("".join(pair) for pair in merges)]
    bare = Tokenizer(models.BPE({text: number for number, text in enumerate(texts)}, merges))
    bare.pre_tokenizer, bare.decoder = pre, decoders.ByteLevel()
    bare.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")


def digits() -> Any:
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return pre_tokenizers.Sequence(steps)


@pytest.mark.parametrize("digits_apart", [True, False])
def test_llama_cpp_sees_the_same_tokens(tmp_path: Path, digits_apart: bool) -> None:
    tokenizer = bpe(digits() if digits_apart else pre_tokenizers.ByteLevel(add_prefix_space=False))
    size = len(tokenizer) + 3  # the embedding has more rows than there are tokens
    config = LlamaConfig(**{**LAYERS, "vocab_size": size}, **HEADS)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = convert(str(tmp_path / "base"), tmp_path / "base.gguf")
    assert model.vocabulary == size
    texts = [text for text in TEXTS if "im_start" not in text]
    assert [model.tokenize(text) for text in texts] == [tokenizer(text).input_ids for text in texts]
    assert all(tokens[0] == 0 for tokens in map(model.tokenize, texts))


def test_the_two_splits_differ() -> None:
    apart, together = bpe(digits()), bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert apart("12 1\n\n1").input_ids != together("12 1\n\n1").input_ids


def test_an_unknown_tokenizer_is_left_out(tmp_path: Path, base: str) -> None:
    """The byte tokenizer has no merges; llama.cpp still computes with tokens."""
    model = convert(base, tmp_path / "base.gguf")
    fields = GGUFReader(tmp_path / "base.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "no_vocab"
    assert model.vocabulary == 257


def test_the_starter_model_in_llama_cpp(tmp_path: Path, starter: Path) -> None:
    """Tokens, special tokens and log-probabilities with weights of 16 bits."""
    model = convert(str(starter), tmp_path / "starter.gguf", "f16")
    tokenizer = load_tokenizer(str(starter))
    assert [model.tokenize(text) for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    fields = GGUFReader(tmp_path / "starter.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert difference(native(model, tokens), expected(str(starter), tokens)) < 0.05


# The cache


def test_a_file_is_converted_once_and_again_after_a_change(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    config, tokenizer = load_configs(str(folder))[0], load_tokenizer(str(folder))

    def converted() -> Path:
        return converted_base(folder, tmp_path, config, tokenizer)

    first = converted()
    stamp = first.stat().st_mtime_ns
    assert converted() == first
    assert first.stat().st_mtime_ns == stamp
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    second = converted()
    monkeypatch.setattr(cache, "VERSION", 2)
    third = converted()
    assert len({first, second, third}) == 3
    files = [file for file in (models_folder(tmp_path) / "gguf").iterdir() if file.suffix == ".gguf"]
    assert files == [third]
    assert difference(native(NativeModel(third), PROMPT), expected(str(folder), PROMPT)) < 0.1


def test_a_failed_conversion_leaves_no_file(tmp_path: Path, base: str) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config, tokenizer = load_configs(str(folder))[0], load_tokenizer(str(folder))
    with pytest.raises(NotConvertible, match=r"no tensor model\.norm\.weight"):
        converted_base(folder, tmp_path, config, tokenizer)
    assert not list((models_folder(tmp_path) / "gguf").glob("*.gguf*"))


def test_a_full_disk_is_an_error_before_anything_is_written(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    config, tokenizer = load_configs(base)[0], load_tokenizer(base)
    with pytest.raises(OSError, match="not enough free space"):
        converted_base(Path(base), tmp_path, config, tokenizer)


def test_settings_of_the_file(tmp_path: Path, base: str) -> None:
    convert(base, tmp_path / "base.gguf")
    fields = GGUFReader(tmp_path / "base.gguf").fields
    config = json.loads((Path(base) / "config.json").read_bytes())
    found = {name: fields[f"llama.{name}"].contents() for name in ("block_count", "context_length", "vocab_size")}
    assert found == {"block_count": 2, "context_length": config["max_position_embeddings"], "vocab_size": 257}
