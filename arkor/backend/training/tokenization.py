"""Tokenize rows, and label the tokens that count for the loss.

The assistant's turns are located by comparing tokens: the chat rendered up to a turn and through
it, with the whole chat. This works with every chat template that renders turns in order. Special
tokens in other messages are escaped (`compute/special_tokens.py`); the assistant's own turns may
contain special tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from attrs import define, evolve, field, frozen

from arkor.backend.compute.special_tokens import SpecialTokenEscaper
from arkor.backend.data.file_readers import DataError
from arkor.formatting import one_line
from arkor.protocol.row_formats import Row

#: The label of tokens that do not count for the loss.
IGNORE_INDEX = -100

#: The number of rows that are tokenized at once.
CHUNK_ROWS = 256


@frozen
class Example:
    """The tokens and labels of a row; `escaped`: a message spells a special token."""

    input_ids: list[int]
    labels: list[int]
    escaped: bool = False


@define
class EncodedDataset:
    """Tokenized rows as columns: `input_ids` and `labels` are lists of int32 arrays, (tokens,).

    `cut` rows were cut at `max_length` and `left_out` rows have no label before it; `escaped` rows
    spell a special token in a message. `lengths` has the tokens of every row before the cut. Of
    `labelled_tokens`, `lost_tokens` are after the cut.
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

    def notes(self, split: str, max_length: int) -> Iterator[str]:
        """Yield notes for the owner of the run about the rows of that split."""
        total = len(self) + self.left_out
        if self.escaped:
            yield f"{self.escaped} of {total} {split} rows spell a special token in a message; it is read as text"
        if self.cut:
            yield f"{self.cut} of {total} {split} rows are longer than {max_length} tokens (max_length) and are cut"
        if self.left_out:
            yield f"{self.left_out} of {total} {split} rows are left out: their answers start after max_length"


def encode(rows: Sequence[Row], tokenizer: Any, *, answers_only: bool, max_length: int) -> EncodedDataset:
    """Tokenize rows and cut them at `max_length`. Raise `DataError`."""
    import numpy  # noqa: PLC0415 - imported with torch

    encoded, escaper = EncodedDataset(), SpecialTokenEscaper(tokenizer)
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = [rows[index] for index in range(start, min(start + CHUNK_ROWS, len(rows)))]
        examples = (
            _pretokenized(chunk, len(tokenizer), start)
            if "input_ids" in chunk[0]
            else _encode_chunk(chunk, tokenizer, escaper, answers_only, start)
        )
        for example in examples:
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
        raise DataError(f"No row has a labelled token among its first {max_length} tokens; increase max_length.")
    return encoded


def _pretokenized(chunk: list[Row], vocabulary: int, start: int) -> Iterator[Example]:
    """Return the tokens of rows that have them already; without `labels` every token is learnt."""
    for number, row in enumerate(chunk, start + 1):
        ids: list[int] = row["input_ids"]
        labels: list[int] = row.get("labels") or ids
        if (largest := max([*ids, *labels])) >= vocabulary:
            raise DataError(
                f"Row {number}: the token {largest} is not one of the {vocabulary} tokens of the model; "
                "tokenize the rows with the tokenizer of this model."
            )
        yield Example(ids, labels)


def _encode_chunk(
    chunk: list[Row], tokenizer: Any, escaper: SpecialTokenEscaper, answers_only: bool, start: int
) -> Iterator[Example]:
    """Render the rows and tokenize all texts in one call. Templates add the special tokens."""
    rendered = [_render(row, tokenizer, escaper, answers_only, number) for number, row in enumerate(chunk, start + 1)]
    tokens = iter(escaper.tokens([text for texts in rendered for text in texts]))
    for number, texts in enumerate(rendered, start + 1):
        full, *rest = [next(tokens) for _ in texts]
        example = _label_answers(full, rest, number) if rest else Example(full, list(full))
        yield evolve(example, escaped=escaper.contains(texts[0]))


def _render(row: Row, tokenizer: Any, escaper: SpecialTokenEscaper, answers_only: bool, number: int) -> list[str]:
    """Return the whole text, and the texts before and through each turn of the assistant."""
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
    except Exception as error:  # a template may raise anything
        reason = one_line(str(error), 200) or type(error).__name__
        raise DataError(f"Row {number}: the chat template of the model rejects it ({reason}).") from error
    return texts


def _apply_template(tokenizer: Any, messages: list[dict[str, Any]], tools: Any, **options: Any) -> str:
    text: str = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
    return text


def _bos_prefix(tokenizer: Any) -> str:
    """Return the text that the tokenizer puts before a plain text."""
    opens = tokenizer.bos_token is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return str(tokenizer.bos_token) if opens else ""


def _label_answers(whole: list[int], turns: list[list[int]], number: int) -> Example:
    """Label the assistant's turns, including the token that ends each turn.

    `turns` alternates between the tokens before a turn and the tokens through it.
    """
    labels = [IGNORE_INDEX] * len(whole)
    for before, through in zip(turns[::2], turns[1::2], strict=True):
        begin, end = _common_prefix_length(before, whole), _common_prefix_length(through, whole)
        labels[begin:end] = whole[begin:end]
    if all(label == IGNORE_INDEX for label in labels):
        raise DataError(
            f"Row {number}: the assistant's turns cannot be located in the text that the chat template renders. "
            "Set train_on_responses_only to False to train on every token."
        )
    return Example(whole, labels)


def _common_prefix_length(part: list[int], whole: list[int]) -> int:
    pairs = enumerate(zip(part, whole, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(part), len(whole)))
