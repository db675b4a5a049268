"""Real models that are tiny: architecture, tokenizer and chat template of the real thing, weights made up on the spot.

A folder of them is what `from_pretrained` takes, and training one takes milliseconds a step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

#: Of the made-up weights; ten times the usual, so that there is something in them for an adapter to work with.
SPREAD = 0.2

#: Shaped like the real ones of that name: grouped attention, gated units, tied or untied heads, transposed layers.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    },
    "mistral": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "sliding_window": 16,
    },
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "gpt_neox": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "gemma2": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "sliding_window": 256,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "intermediate_size": 64},
}


def tiny_tokenizer(chat_template: str | None = CHATML) -> Any:
    """A byte-level tokenizer: 256 bytes and four special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 - collecting tests loads no torch
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - as above

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE({letter: index for index, letter in enumerate([*special, *letters])}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token=special[0], eos_token=special[2], pad_token=special[3]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:2]})
    tokenizer.chat_template = chat_template
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
