"""Real models that are tiny: the architecture, tokenizer and chat template of the real thing with random weights.

A folder of one is what `from_pretrained` takes, and training one takes milliseconds a step. All tokens are bytes, so an
untrained model writes text full of broken characters.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: A template that refuses tools and a chat that the assistant begins.
STRICT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{% if loop.first and message['role'] == 'assistant' %}{{ raise_exception('the user begins') }}{% endif %}"
    "<{{ message['role'] }}>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

#: Standard deviation of the weights: ten times the usual, so that an adapter has something to work with.
SPREAD = 0.2

_LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_LONG = {**_LAYERS, "max_position_embeddings": 256}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

#: Grouped attention, gated units, sliding windows, tied or untied heads, transposed layers, no attention at all.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**_LONG, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "mistral": {**_LONG, "num_key_value_heads": 2, "sliding_window": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **_NO_DROPOUT},
    "gpt_neox": _LONG,
    "gemma2": {**_LONG, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 256},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "intermediate_size": 64},
}


def bare_tokenizer(vocabulary: list[str], **special: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 - collecting tests loads no torch
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - as above

    bare = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bare, **special)


def alphabet() -> list[str]:
    from tokenizers import pre_tokenizers  # noqa: PLC0415 - as above

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def tiny_tokenizer(chat_template: str | None = CHATML) -> Any:
    """A tokenizer of four special tokens and 256 bytes."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    names = {"bos_token": special[0], "eos_token": special[2], "pad_token": special[3]}
    tokenizer = bare_tokenizer([*special, *alphabet()], **names)
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:2]})
    tokenizer.chat_template = chat_template
    return tokenizer


def byte_tokenizer() -> Any:
    """A tokenizer of 256 bytes and `</s>`, token 256, with the strict template."""
    tokenizer = bare_tokenizer(alphabet(), eos_token="</s>", pad_token="</s>")
    tokenizer.chat_template = STRICT_TEMPLATE
    return tokenizer


def make_tiny_model(folder: Path, architecture: str = "llama", chat_template: str | None = CHATML) -> Path:
    """Save a model of `architecture` into `folder`, the same weights each time, and return the folder."""
    import torch  # noqa: PLC0415 - as above
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415 - as above

    tokenizer = tiny_tokenizer(chat_template)
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 3}
    shape = {"vocab_size": len(tokenizer), "initializer_range": SPREAD, **ARCHITECTURES[architecture]}
    config = AutoConfig.for_model(architecture, **shape, **ends)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_base(folder: Path, *, seed: int = 0, context: int = 512, config: Any = None) -> str:
    """Save an untrained model with the byte tokenizer; Llama's architecture unless a `config` is given."""
    import torch  # noqa: PLC0415 - as above
    from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: PLC0415 - as above

    torch.manual_seed(seed)
    special = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 256}
    shape = {**_LAYERS, "vocab_size": 257, "max_position_embeddings": context, "num_key_value_heads": 2}
    config = config or LlamaConfig(**shape, initializer_range=0.5, **special)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight[256] *= 0.1  # or the likeliest answer might be empty
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def make_adapter(folder: Path, base: str, *, seed: int = 1, scale: float = 1.0) -> str:
    """Save an adapter of all linear layers with random weights; `scale` NaN makes a diverged one."""
    import torch  # noqa: PLC0415 - as above
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - as above
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - as above

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    with warnings.catch_warnings():  # PEFT 0.21 reads `is_gradient_checkpointing`, which transformers deprecates
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_" in name:
                weights.mul_(scale)
    model.save_pretrained(folder)
    return str(folder)
