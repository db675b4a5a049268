"""The tokenizer of a model as metadata of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gguf

#: The pre-tokenizers that llama.cpp implements like `tokenizers`: the name, and the steps that
#: split a text, as `_split_steps` returns them.
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}],
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    ],
}


def add_vocabulary(writer: Any, tokenizer: Any, size: int) -> bool:
    """Add the tokenizer; return whether llama.cpp implements it.

    Any other one is left out. llama.cpp computes with such a model, but only from tokens.
    """
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = pre_tokenizer(data)
    if pre is None:
        writer.add_tokenizer_model("no_vocab")
        return False
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    texts, kinds = _tokens(data, size)
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    merges = data["model"]["merges"]  # lists of two texts, or texts with a space
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    _add_special_tokens(writer, tokenizer)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
    return True


def pre_tokenizer(data: Mapping[str, Any]) -> str | None:
    """Return llama.cpp's name for the way in which a tokenizer splits texts, None for others.

    `data` is the content of `tokenizer.json`.
    """
    model = data["model"]
    merges_all = model.get("ignore_merges", False) or model.get("byte_fallback", False)
    if model.get("type") != "BPE" or merges_all or data.get("normalizer") is not None:
        return None
    if (data.get("decoder") or {}).get("type") != "ByteLevel" or not model["merges"]:
        return None
    steps = _split_steps(data.get("pre_tokenizer") or {})
    return next((name for name, known in PRE_TOKENIZERS.items() if known == steps), None)


def _split_steps(step: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of a pre-tokenizer without settings that do not affect the tokens."""
    if step.get("type") == "Sequence":
        return [inner for part in step["pretokenizers"] for inner in _split_steps(part)]
    return [{name: value for name, value in step.items() if name != "trim_offsets"}]


def _tokens(data: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return the text and the kind of each token; rows of the embedding without one are unused."""
    texts = [f"[PAD{number}]" for number in range(size)]
    kinds: list[int] = [gguf.TokenType.UNUSED] * size
    for text, number in data["model"]["vocab"].items():
        texts[number], kinds[number] = text, gguf.TokenType.NORMAL
    for token in data["added_tokens"]:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        texts[token["id"]], kinds[token["id"]] = token["content"], kind
    return texts, [int(kind) for kind in kinds]


def _add_special_tokens(writer: Any, tokenizer: Any) -> None:
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if token is not None:
            add(token)
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokens = tokenizer("a").input_ids
    writer.add_add_bos_token(first is not None and tokens[0] == first)
    writer.add_add_eos_token(last is not None and tokens[-1] == last)
