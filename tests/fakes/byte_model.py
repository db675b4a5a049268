"""Tiny untrained models whose tokens are bytes, so that what they say is full of broken characters."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{% if loop.first and message['role'] == 'assistant' %}{{ raise_exception('the user begins') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes, and `</s>` as token 256."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")
    fast.chat_template = TEMPLATE
    return fast


def make_base(folder: Path, *, seed: int = 0, context: int = 512, config: Any = None) -> str:
    """A model in `folder` with random weights; Llama's architecture unless a `config` says otherwise."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256}
    config = config or LlamaConfig(
        vocab_size=257,
        max_position_embeddings=context,
        num_key_value_heads=2,
        initializer_range=0.5,
        **sizes,
        **special,
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight[256] *= 0.1  # or the likeliest answer might be none
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def make_adapter(folder: Path, base: str, *, seed: int = 1, scale: float = 1.0) -> str:
    """An adapter of all linear layers with random weights; `scale` NaN makes a diverged one."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    with warnings.catch_warnings():  # PEFT asks transformers by a name that this one is about to give up
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_" in name:
                weights.mul_(scale)
    model.save_pretrained(folder)
    return str(folder)
