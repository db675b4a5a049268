"""Statistics and previews of a run's rows and their tokens. Does not import torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from arkor.backend.data.datasets import Rows
from arkor.backend.data.faults import DataError
from arkor.backend.training.tokenization import IGNORE_INDEX, EncodedDataset
from arkor.protocol.checks import Duplicates, Lengths, PreviewRow
from arkor.protocol.codec import to_wire

#: Limits of the report: rows shown, tokens of a row shown, pairs of duplicates listed.
PREVIEW_ROWS, PREVIEW_TOKENS, MAX_DUPLICATE_EXAMPLES = 3, 512, 20

#: The maximum number of bins.
HISTOGRAM_BINS = 8


def data_problems(error: DataError) -> dict[str, Any]:
    """Return the errors in the data as fields of `Check`."""
    problems = error.faults or (str(error),)
    return {"problems": problems, "problemCount": max(error.count, len(problems))}


def row_counts(rows: Rows) -> dict[str, Any]:
    """Return format, counts and duplicates as fields of `Check`."""
    held_out = {"evalRows": len(rows.eval)} if rows.eval else {}
    counts = {"format": rows.format, "trainRows": len(rows.train), **held_out, "notes": rows.notes}
    return {**counts, "duplicates": to_wire(find_duplicates(rows))}


def find_duplicates(rows: Rows) -> Duplicates:
    """Find rows that occur twice, within the training rows or in both splits; rows count from 1."""
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
    """Return statistics of the lengths of a split, in tokens."""
    ordered = sorted(examples.lengths)
    longest = ordered[-1]
    return Lengths(
        rows=len(ordered),
        shortest=ordered[0],
        median=_quantile(ordered, 0.5),
        p95=_quantile(ordered, 0.95),
        longest=longest,
        longest_row=examples.row_numbers[examples.lengths.index(longest)],
        mean=round(sum(ordered) / len(ordered), 1),
        max_length=max_length,
        cut=examples.cut,
        left_out=examples.left_out,
        counted=examples.labelled_tokens,
        lost=examples.lost_tokens,
        bins=_histogram(ordered),
    )


def _quantile(ordered: Sequence[int], share: float) -> int:
    """Return the smallest length that at least `share` of the rows do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _histogram(ordered: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return (largest length, number of rows) of each bin."""
    shortest, longest = ordered[0], ordered[-1]
    width = max(1, math.ceil((longest - shortest + 1) / HISTOGRAM_BINS))
    counts = [0] * math.ceil((longest - shortest + 1) / width)
    for length in ordered:
        counts[(length - shortest) // width] += 1
    return tuple((min(longest, shortest + width * number - 1), count) for number, count in enumerate(counts, 1))


def preview_rows(examples: EncodedDataset, tokenizer: Any) -> tuple[PreviewRow, ...]:
    rows = []
    columns = zip(examples.kept_numbers(), examples.input_ids, examples.labels, strict=True)
    for number, ids, labels in itertools.islice(columns, PREVIEW_ROWS):
        visible = [int(token) for token in ids[:PREVIEW_TOKENS]]
        counted = [position > 0 and label != IGNORE_INDEX for position, label in enumerate(labels[:PREVIEW_TOKENS])]
        rows.append(PreviewRow(number, _token_texts(visible, tokenizer), counted, len(ids) - len(visible)))
    return tuple(rows)


def _token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text of each token; a character of several tokens belongs to the last."""
    texts: list[str] = []
    decoded = ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        complete = text.startswith(decoded) and (count == len(ids) or not text.endswith("�"))
        texts.append(text[len(decoded) :] if complete else "")
        decoded = text if complete else decoded
    return texts
