"""Tokenize rows, and label the tokens that count for the loss.

`chat_layout.py` decides which characters of a chat are learnt. The text is tokenized in segments,
so that a token is learnt as a whole or not at all, and a prompt has the tokens that it has at
inference. Special tokens in other messages are escaped (`compute/special_tokens.py`); the
assistant's own turns may contain special tokens. Rows that are tokens already have no layout.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from attrs import define, field, frozen

from arkor.backend.compute.chat_template import ChatTemplate
from arkor.backend.data.faults import DataError, Faults
from arkor.backend.data.packed_rows import PackedRows
from arkor.backend.training.chat_layout import LabelledChat, LabelledText, LayoutError, lay_out
from arkor.backend.training.legacy_tokenization import encode_legacy
from arkor.formatting import one_line
from arkor.protocol.row_formats import Row

#: The label of tokens that do not count for the loss.
IGNORE_INDEX = -100

#: The number of rows that are tokenized at once.
CHUNK_ROWS = 256

#: Which rows a run has, and their tokens and labels; a run keeps the version with which it began.
#: The legacy version has other tokens and labels; up to `HOLD_OUT_VERSION`, a run without a split
#: for evaluation always holds training rows out.
VERSION, HOLD_OUT_VERSION, LEGACY_VERSION = 3, 2, 1


@frozen
class Example:
    """The tokens and labels of a text."""

    input_ids: list[int]
    labels: list[int]


@define
class EncodedDataset:
    """Tokenized texts as columns: `input_ids` and `labels` are lists of int32 arrays, (tokens,).

    A row has several texts if its chat template rewrites earlier turns; `row_numbers` has the row
    of each text, from 1. `cut` texts were cut at `max_length` and `left_out` texts have no label
    before it; `unlabelled` of these have none after it either. `escaped` rows spell a special token
    in a message. `lengths` has the tokens of every text before the cut. Of `labelled_tokens`,
    `lost_tokens` are after the cut. `turns` of the assistant are learnt, `context_turns` are not
    (weight 0). `unwritten` counts the rows of which the chat template does not write a part;
    `labelled` rows were tokens with labels already; `skipped` are notes about bad rows of all
    splits.
    """

    input_ids: list[Any] = field(factory=list)
    labels: list[Any] = field(factory=list)
    row_numbers: array[int] = field(factory=lambda: array("Q"))
    _kept: array[int] = field(factory=lambda: array("Q"))
    rows: int = 0
    rewritten: int = 0
    cut: int = 0
    left_out: int = 0
    unlabelled: int = 0
    escaped: int = 0
    lengths: array[int] = field(factory=lambda: array("I"))
    labelled_tokens: int = 0
    lost_tokens: int = 0
    turns: int = 0
    context_turns: int = 0
    labelled: int = 0
    answers_only: bool = False
    version: int = VERSION
    skipped: tuple[str, ...] = ()
    unwritten: Counter[str] = field(factory=Counter)

    def __len__(self) -> int:
        return len(self.input_ids)

    def add(self, example: Example, number: int, max_length: int) -> None:
        """Add a text of the row of that number, cut at `max_length`."""
        import numpy  # noqa: PLC0415 - imported with torch

        labels = example.labels[:max_length]
        self.cut += len(example.input_ids) > max_length
        self.lengths.append(len(example.input_ids))
        self.row_numbers.append(number)
        counted = sum(label != IGNORE_INDEX for label in example.labels[1:])  # nothing predicts the first
        lost = sum(label != IGNORE_INDEX for label in example.labels[max_length:])
        self.labelled_tokens += counted
        self.lost_tokens += lost
        if counted == lost:
            self.left_out += 1
            self.unlabelled += not counted
            return
        self._kept.append(number)
        self.input_ids.append(numpy.array(example.input_ids[:max_length], dtype=numpy.int32))
        self.labels.append(numpy.array(labels, dtype=numpy.int32))

    def kept_numbers(self) -> Sequence[int]:
        """Return the row of each text that is not left out."""
        return self._kept

    def notes(self, split: str, max_length: int) -> Iterator[str]:
        """Yield notes for the owner of the run about the rows of that split."""
        total, unit = len(self) + self.left_out, "texts" if self.rewritten else "rows"
        yield from self.layout_notes(split)
        if self.cut:
            yield f"{self.cut} of {total} {split} {unit} are longer than {max_length} tokens (max_length) and are cut"
        if self.unlabelled:
            yield f"{self.unlabelled} of {total} {split} {unit} are left out: none of their tokens is learnt"
        if late := self.left_out - self.unlabelled:
            yield f"{late} of {total} {split} {unit} are left out: their answers start after max_length"

    def layout_notes(self, split: str) -> Iterator[str]:
        """Yield the notes that do not concern the length of the rows."""
        for part, count in self.unwritten.items():
            yield f"{count} of {self.rows} {split} rows: the chat template of the model does not write {part}"
        if self.rewritten:
            yield (
                f"{self.rewritten} of {self.rows} {split} rows are trained on as several texts, one for each answer, "
                f"because the chat template rewrites earlier turns; {len(self) + self.left_out} texts in all"
            )
        if self.escaped:
            yield f"{self.escaped} of {self.rows} {split} rows spell a special token in a message; it is read as text"
        yield from self.skipped

    def learns(self) -> str:
        """Return a sentence that says what of the rows is learnt."""
        rows, context = _count(self.rows, "row"), _count(self.context_turns, "answer") + " with the weight 0"
        if self.labelled:
            return f"Learnt: every token of {rows}, except those with the label {IGNORE_INDEX}."
        if not self.answers_only or not self.turns:
            return f"Learnt: every token of {rows}{f', except {context}' if self.context_turns else ''}."
        others = f"other messages; {context}" if self.context_turns else "other messages"
        return f"Learnt: {_count(self.turns, 'answer')} in {rows}, with what ends them. Not learnt: {others}."


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def encode(
    rows: Sequence[Row],
    tokenizer: Any,
    *,
    answers_only: bool,
    max_length: int,
    date: datetime | None = None,
    faults: Faults | None = None,
    version: int = VERSION,
) -> EncodedDataset:
    """Tokenize rows and cut them at `max_length`. Raise `DataError`.

    `date` is written by chat templates that write today's date. Rows that cannot be laid out are
    added to `faults`; without it, they raise.
    """
    encoder = _Encoder(
        ChatTemplate(tokenizer, date), answers_only, version, Faults("The data") if faults is None else faults
    )
    encoded = EncodedDataset(answers_only=answers_only, version=version)
    for start in range(0, len(rows), CHUNK_ROWS):
        for example, number in encoder.chunk(rows, start, encoded):
            encoded.add(example, number, max_length)
    if faults is None and encoder.faults.count:
        raise encoder.faults.error()
    if not len(encoded) and not encoder.faults.count:
        raise _nothing_learnt(encoded, max_length)
    return encoded


def _nothing_learnt(encoded: EncodedDataset, max_length: int) -> DataError:
    if encoded.unlabelled == encoded.left_out:
        return DataError(
            f"Nothing can be learnt from the rows: no token after the first has a label other than {IGNORE_INDEX}. "
            "Label the tokens of the answers with their ids."
            if encoded.labelled
            else "Nothing can be learnt from the rows: each has a single token."
        )
    return DataError(f"No row has a labelled token among its first {max_length} tokens; increase max_length.")


@frozen
class _Encoder:
    template: ChatTemplate
    answers_only: bool
    version: int
    faults: Faults

    def chunk(self, rows: Sequence[Row], start: int, encoded: EncodedDataset) -> Iterator[tuple[Example, int]]:
        """Yield the texts of a chunk with the numbers of their rows; tokenize them in one call."""
        indices = range(start, min(start + CHUNK_ROWS, len(rows)))
        escaper = self.template.escaper
        if "input_ids" in rows[start]:
            yield from self._pretokenized(rows, indices, encoded)
            return
        if self.version == LEGACY_VERSION:
            legacy = encode_legacy([rows[index] for index in indices], self.template, self.answers_only, start)
            yield from ((Example(*columns), number) for number, columns in enumerate(legacy, start + 1))
            encoded.rows += len(indices)
            return
        found = [(index, self._lay_out(rows, index)) for index in indices]
        segments = [text.segments for _, chat in found if chat for text in chat.texts]
        tokens = iter(escaper.segment_tokens([[text for text, _ in parts] for parts in segments]))
        for index, chat in found:
            if chat is None:
                continue
            encoded.rows += 1
            encoded.turns += sum(text.turns for text in chat.texts)
            encoded.context_turns += chat.context
            encoded.rewritten += len(chat.texts) > 1
            encoded.unwritten.update(chat.lost)
            encoded.escaped += any(escaper.contains(text) for text, _ in chat.texts[-1].segments)
            yield from ((_label(text, next(tokens)), index + 1) for text in chat.texts)

    def _lay_out(self, rows: Sequence[Row], index: int) -> LabelledChat | None:
        """Return the texts of a row, or add it to the faults."""
        row = rows[index]
        try:
            if "text" in row:
                return LabelledChat([LabelledText(((plain_text(row["text"], self.template), True),), 0)])
            return lay_out(row, self.template, answers_only=self.answers_only)
        except LayoutError as error:
            fault = f"{error}"
        except Exception as error:  # noqa: BLE001 - a template may raise anything
            reason = one_line(str(error), 200) or type(error).__name__
            fault = f"the chat template of the model rejects it ({reason})"
        self._add_fault(rows, index, fault)
        return None

    def _pretokenized(
        self, rows: Sequence[Row], indices: Iterable[int], encoded: EncodedDataset
    ) -> Iterator[tuple[Example, int]]:
        """Yield rows that are tokens already; without `labels` every token is learnt."""
        vocabulary = len(self.template.tokenizer)
        for index in indices:
            row = rows[index]
            ids: list[int] = row["input_ids"]
            labels: list[int] = row.get("labels") or ids
            if (largest := max(*ids, *labels)) >= vocabulary:
                problem = f"the token {largest} is not one of the {vocabulary} tokens of the model"
                self._add_fault(rows, index, f"{problem}; tokenize the row with the tokenizer of this model")
                continue
            encoded.rows += 1
            encoded.labelled += "labels" in row
            yield Example(ids, labels), index + 1

    def _add_fault(self, rows: Sequence[Row], index: int, fault: str) -> None:
        self.faults.add(rows.place(index) if isinstance(rows, PackedRows) else f"row {index + 1}", fault)


def _label(text: LabelledText, tokens: list[list[int]]) -> Example:
    ids: list[int] = []
    labels: list[int] = []
    for (_, learnt), found in zip(text.segments, tokens, strict=True):
        ids += found
        labels += found if learnt else [IGNORE_INDEX] * len(found)
    return Example(ids, labels)


def plain_text(text: str, template: ChatTemplate) -> str:
    """Return a text with one beginning and one end marker, where the model has them."""
    tokenizer = template.tokenizer
    adds_bos = tokenizer.bos_token is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    bos, eos = str(tokenizer.bos_token) if adds_bos else "", tokenizer.eos_token or ""
    text = bos + text.removeprefix(bos)
    ends = (eos, *tokenizer.convert_ids_to_tokens(template.end_token_ids))
    has_end = any(end and text.rstrip().endswith(end) for end in ends)
    return text if has_end else text + eos
