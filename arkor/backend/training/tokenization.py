"""Rows → tokens, and which of them count for the loss.

What an assistant says is found by comparing tokens: those of the chat up to its turn, and through it, with those of
the whole. That needs nothing of the chat template but that it renders turns in order. What others say to the assistant
is text, whatever it spells (`backend/compute/special_tokens.py`); what the assistant is to learn to say may hold tokens
of the model's own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import define, evolve, field, frozen

from arkor.backend.compute.special_tokens import SpecialTokenEscaper
from arkor.backend.data.file_readers import DataError
from arkor.protocol.row_formats import Row

#: The label of a token that does not count.
IGNORE_INDEX = -100

#: Rows that are tokenized at a time.
CHUNK_ROWS = 256


@frozen
class Example:
    """The tokens of one row, and the labels: the same, or `IGNORE_INDEX` where nothing is to be learnt."""

    input_ids: list[int]
    labels: list[int]
    escaped: bool = False


@define
class EncodedDataset:
    """The examples of a data set as columns, and how many rows were cut at `max_length` or left out for it.

    `escaped` rows spell a token of the chat template in what is said to the assistant. `lengths` are those of all rows
    before the cut, in tokens; of all tokens that count, `lost_tokens` are behind it.
    """

    input_ids: list[Any] = field(factory=list)
    labels: list[Any] = field(factory=list)
    cut: int = 0
    left_out: int = 0
    escaped: int = 0
    lengths: array[int] = field(factory=lambda: array("I"))
    labelled_tokens: int = 0
    lost_tokens: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)

    def notes(self, what: str, max_length: int) -> Iterator[str]:
        """What a person should know of the `what` rows."""
        total = len(self) + self.left_out
        if self.escaped:
            yield f"{self.escaped} of {total} {what} rows spell a special token of the model in a message; that is text"
        if self.cut:
            yield f"{self.cut} of {total} {what} rows are longer than {max_length} tokens (max_length) and are cut"
        if self.left_out:
            yield f"{self.left_out} of {total} {what} rows are left out: their answers begin behind max_length"


def encode(rows: Sequence[Row], tokenizer: Any, *, answers_only: bool, max_length: int) -> EncodedDataset:
    """Every row as tokens, cut at `max_length`. Raises `DataError` when a template refuses a row, or none is left."""
    import numpy  # noqa: PLC0415 - it comes with torch

    encoded, escaper = EncodedDataset(), SpecialTokenEscaper(tokenizer)
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = [rows[index] for index in range(start, min(start + CHUNK_ROWS, len(rows)))]
        for example in _encode_chunk(chunk, tokenizer, escaper, answers_only, start):
            encoded.escaped += example.escaped
            encoded.cut += len(example.input_ids) > max_length
            encoded.lengths.append(len(example.input_ids))
            labels = example.labels[:max_length]
            encoded.labelled_tokens += sum(label != IGNORE_INDEX for label in example.labels[1:])
            encoded.lost_tokens += sum(label != IGNORE_INDEX for label in example.labels[max_length:])
            if all(label == IGNORE_INDEX for label in labels[1:]):
                encoded.left_out += 1
                continue
            encoded.input_ids.append(numpy.array(example.input_ids[:max_length], dtype=numpy.int32))
            encoded.labels.append(numpy.array(labels, dtype=numpy.int32))
    if not len(encoded):
        raise DataError(f"No row has anything to learn within its first {max_length} tokens; raise max_length.")
    return encoded


def _encode_chunk(
    chunk: list[Row], tokenizer: Any, escaper: SpecialTokenEscaper, answers_only: bool, start: int
) -> Iterator[Example]:
    """The texts of all rows go through the tokenizer in one call; special tokens are in them already."""
    rendered = [_render(row, tokenizer, escaper, answers_only, number) for number, row in enumerate(chunk, start + 1)]
    tokens = iter(escaper.tokens([text for texts in rendered for text in texts]))
    for number, texts in enumerate(rendered, start + 1):
        full, *rest = [next(tokens) for _ in texts]
        example = _label_answers(full, rest, number) if rest else Example(full, list(full))
        yield evolve(example, escaped=escaper.contains(texts[0]))


def _render(row: Row, tokenizer: Any, escaper: SpecialTokenEscaper, answers_only: bool, number: int) -> list[str]:
    """The whole text; then, for each turn of the assistant, the text up to it and the text through it."""
    if "text" in row:
        end = tokenizer.eos_token or ""
        return [_bos_prefix(tokenizer) + row["text"].removesuffix(end) + end]
    messages, tools = escaper.escape(row["messages"], trusted=("assistant",)), escaper.escape_in(row.get("tools"))
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"] if answers_only else []
    try:
        texts = [_apply_template(tokenizer, messages, tools)]
        for index in turns:
            before = _apply_template(tokenizer, messages[:index], tools, add_generation_prompt=True) if index else ""
            through = (
                texts[0] if index == len(messages) - 1 else _apply_template(tokenizer, messages[: index + 1], tools)
            )
            texts += [before, through]
    except Exception as error:  # a template is a program of the model's makers: it may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"Row {number}: the chat template of the model refuses it ({reason}).") from error
    return texts


def _apply_template(tokenizer: Any, messages: list[dict[str, Any]], tools: Any, **options: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
    return text


def _bos_prefix(tokenizer: Any) -> str:
    """What the tokenizer puts before a plain text."""
    opens = tokenizer.bos_token is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if opens else ""


def _label_answers(whole: list[int], turns: list[list[int]], number: int) -> Example:
    """Labels where an assistant speaks, the token that ends its turn included.

    `turns` are, turn by turn, the tokens before it and the tokens through it.
    """
    labels = [IGNORE_INDEX] * len(whole)
    for before, through in zip(turns[::2], turns[1::2], strict=True):
        begin, end = _common_prefix_length(before, whole), _common_prefix_length(through, whole)
        labels[begin:end] = whole[begin:end]
    if all(label == IGNORE_INDEX for label in labels):
        raise DataError(
            f"Row {number}: the assistant's words cannot be found in what the model's chat template makes of the row. "
            "Set train_on_responses_only to False to learn every token."
        )
    return Example(whole, labels)


def _common_prefix_length(part: list[int], whole: list[int]) -> int:
    """How many tokens both begin with."""
    for index, (left, right) in enumerate(zip(part, whole, strict=False)):
        if left != right:
            return index
    return min(len(part), len(whole))
