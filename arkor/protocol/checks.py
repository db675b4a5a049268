"""What a pre-flight check of a run reports about its data: rows, lengths and duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen


def texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value or ()))


def _flags(value: Any) -> tuple[bool, ...]:
    return tuple(map(bool, value or ()))


def _pairs(value: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(left), int(right)) for left, right in value or ())


@frozen
class PreviewRow:
    """A row as the model receives it: its tokens as text, and whether the loss counts each of them.

    `more` tokens follow that are not shown.
    """

    row: int
    tokens: tuple[str, ...] = field(converter=texts)
    counted: tuple[bool, ...] = field(converter=_flags)
    more: int = 0
    extra: Mapping[str, Any] = field(factory=dict)

    def parts(self) -> list[tuple[str, bool]]:
        """Join neighbouring tokens that count (True) or do not count for the loss."""
        parts: list[tuple[str, bool]] = []
        for token, counts in zip(self.tokens, self.counted, strict=False):
            if parts and parts[-1][1] == counts:
                parts[-1] = (parts[-1][0] + token, counts)
            else:
                parts.append((token, counts))
        return parts


@frozen
class Lengths:
    """The lengths of the rows in tokens, before any row is cut.

    `bins` are pairs (upper bound, number of rows up to it and above the bound before). `cut` rows
    are longer than `max_length`; `left_out` rows have no token for the loss within it; `lost` of
    the `counted` tokens are cut off.
    """

    rows: int
    shortest: int
    median: int
    p95: int
    longest: int
    longest_row: int
    mean: float
    max_length: int
    cut: int = 0
    left_out: int = 0
    counted: int = 0
    lost: int = 0
    bins: tuple[tuple[int, int], ...] = field(default=(), converter=_pairs)
    extra: Mapping[str, Any] = field(factory=dict)


@frozen
class Duplicates:
    """Rows that are equal, character by character.

    `within` training rows repeat an earlier one; `between` evaluation rows are among the training
    rows, too. The examples are pairs of row numbers, the repetition first.
    """

    within: int = 0
    between: int = 0
    within_examples: tuple[tuple[int, int], ...] = field(default=(), converter=_pairs)
    between_examples: tuple[tuple[int, int], ...] = field(default=(), converter=_pairs)
    extra: Mapping[str, Any] = field(factory=dict)
