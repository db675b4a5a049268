"""Tokenize rows as the first version did, for runs that resume from a checkpoint of it.

The labels of a row must not change during a run. New runs use `tokenization.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from arkor.backend.compute.chat_template import ChatTemplate
from arkor.backend.data.faults import DataError
from arkor.formatting import one_line
from arkor.protocol.row_formats import Row

IGNORE_INDEX = -100


def encode_legacy(
    rows: list[Row], template: ChatTemplate, answers_only: bool, start: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the tokens and labels of each row; `start` rows come before them."""
    rendered = [_render(row, template, answers_only, number) for number, row in enumerate(rows, start + 1)]
    tokens = iter(template.escaper.tokens([text for texts in rendered for text in texts]))
    for texts in rendered:
        full, *rest = [next(tokens) for _ in texts]
        yield full, _labels(full, rest) if rest else list(full)


def _render(row: Row, template: ChatTemplate, answers_only: bool, number: int) -> list[str]:
    """Return the whole text, and the texts before and through each turn of the assistant."""
    tokenizer, escaper = template.tokenizer, template.escaper
    if "text" in row:
        end = tokenizer.eos_token or ""
        opens = tokenizer.bos_token is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
        return [(str(tokenizer.bos_token) if opens else "") + row["text"].removesuffix(end) + end]
    messages, tools = escaper.escape(row["messages"], trusted=("assistant",)), escaper.escape_in(row.get("tools"))
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"] if answers_only else []
    try:
        texts = [_apply_template(template, messages, tools)]
        for index in turns:
            before = _apply_template(template, messages[:index], tools, True) if index else ""
            through = (
                texts[0] if index == len(messages) - 1 else _apply_template(template, messages[: index + 1], tools)
            )
            texts += [before, through]
    except Exception as error:  # a template may raise anything
        reason = one_line(str(error), 200) or type(error).__name__
        raise DataError(f"Row {number}: the chat template of the model rejects it ({reason}).") from error
    return texts


def _apply_template(template: ChatTemplate, messages: list[dict[str, Any]], tools: Any, prompt: bool = False) -> str:
    return template.render_plain(messages, tools, prompt)


def _labels(whole: list[int], turns: list[list[int]]) -> list[int]:
    """Label what is common with the tokens through a turn and not with those before it."""
    labels = [IGNORE_INDEX] * len(whole)
    for before, through in zip(turns[::2], turns[1::2], strict=True):
        begin, end = _common_prefix_length(before, whole), _common_prefix_length(through, whole)
        labels[begin:end] = whole[begin:end]
    return labels


def _common_prefix_length(part: list[int], whole: list[int]) -> int:
    pairs = enumerate(zip(part, whole, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(part), len(whole)))
