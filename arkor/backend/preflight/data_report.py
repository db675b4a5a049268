"""Rows and their tokens → what a person should know of them before they are trained on. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from arkor.backend.data.datasets import Rows
from arkor.backend.data.file_readers import DataError
from arkor.backend.training.tokenization import IGNORE_INDEX, EncodedDataset
from arkor.protocol.checks import Duplicates, Lengths, PreviewRow
from arkor.protocol.codec import to_wire

#: Takes in what was found, as one line of JSON.
Emit = Callable[[dict[str, Any]], None]

#: So many rows are shown, of each so many tokens at most; so many pairs of the same rows are named.
PREVIEW_ROWS, PREVIEW_TOKENS, MAX_DUPLICATE_EXAMPLES = 3, 512, 20

#: How many groups the lengths are sorted into.
HISTOGRAM_BINS = 8


def data_problems(error: DataError) -> dict[str, Any]:
    """What is wrong with the data, in the fields of `checks.Check`."""
    problems = error.faults or (str(error),)
    return {"problems": problems, "problemCount": max(error.count, len(problems))}


def row_counts(rows: Rows) -> dict[str, Any]:
    """What the rows themselves show, in the fields of `checks.Check`."""
    held_out = {"evalRows": len(rows.eval)} if rows.eval else {}
    counts = {"format": rows.format, "trainRows": len(rows.train), **held_out, "notes": rows.notes}
    return {**counts, "duplicates": to_wire(find_duplicates(rows))}


def find_duplicates(rows: Rows) -> Duplicates:
    """Which rows are there twice, within the training data and across both parts. Rows are counted from 1."""
    first: dict[bytes, int] = {}
    within, between = [], []
    for number, digest in enumerate(rows.train.digests(), 1):
        if (before := first.setdefault(digest, number)) != number:
            within.append((number, before))
    for number, digest in enumerate(rows.eval.digests() if rows.eval else (), 1):
        if digest in first:
            between.append((number, first[digest]))
    return Duplicates(
        len(within), len(between), tuple(within[:MAX_DUPLICATE_EXAMPLES]), tuple(between[:MAX_DUPLICATE_EXAMPLES])
    )


def length_stats(examples: EncodedDataset, max_length: int) -> Lengths:
    """How long the rows of a part are, and what is cut off."""
    ordered = sorted(examples.lengths)
    longest = ordered[-1]
    return Lengths(
        rows=len(ordered),
        shortest=ordered[0],
        median=_quantile(ordered, 0.5),
        p95=_quantile(ordered, 0.95),
        longest=longest,
        longest_row=examples.lengths.index(longest) + 1,
        mean=round(sum(ordered) / len(ordered), 1),
        max_length=max_length,
        cut=examples.cut,
        left_out=examples.left_out,
        counted=examples.labelled_tokens,
        lost=examples.lost_tokens,
        bins=_histogram(ordered),
    )


def _quantile(ordered: Sequence[int], share: float) -> int:
    """The smallest length that at least this share of the rows does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _histogram(ordered: Sequence[int]) -> tuple[tuple[int, int], ...]:
    shortest, longest = ordered[0], ordered[-1]
    width = max(1, math.ceil((longest - shortest + 1) / HISTOGRAM_BINS))
    counts = [0] * math.ceil((longest - shortest + 1) / width)
    for length in ordered:
        counts[(length - shortest) // width] += 1
    return tuple(
        (min(longest, shortest + width * (bin_index + 1) - 1), count) for bin_index, count in enumerate(counts)
    )


def preview_rows(examples: EncodedDataset, tokenizer: Any) -> tuple[PreviewRow, ...]:
    """The first rows that are trained on, token by token."""
    return tuple(_preview(examples, row_index, tokenizer) for row_index in range(min(PREVIEW_ROWS, len(examples))))


def _preview(examples: EncodedDataset, row_index: int, tokenizer: Any) -> PreviewRow:
    ids = [int(token) for token in examples.input_ids[row_index][:PREVIEW_TOKENS]]
    labels = examples.labels[row_index][:PREVIEW_TOKENS]
    counted = [position > 0 and label != IGNORE_INDEX for position, label in enumerate(labels)]
    more = len(examples.input_ids[row_index]) - len(ids)
    return PreviewRow(row_index + 1, _token_texts(ids, tokenizer), counted, more)


def _token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text of each token; that of a character which several of them make up stands at the last one."""
    texts: list[str] = []
    decoded = ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = text.startswith(decoded) and (count == len(ids) or not text.endswith("�"))
        texts.append(text[len(decoded) :] if whole else "")
        decoded = text if whole else decoded
    return texts
