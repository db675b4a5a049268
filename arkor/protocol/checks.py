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
    """A row as the model will see it: its tokens as text, which of them count for the loss, how many are not shown."""

    row: int
    tokens: tuple[str, ...] = field(converter=texts)
    counted: tuple[bool, ...] = field(converter=_flags)
    more: int = 0
    extra: Mapping[str, Any] = field(factory=dict)

    def parts(self) -> list[tuple[str, bool]]:
        """The text, in stretches that count (True) and that do not."""
        parts: list[tuple[str, bool]] = []
        for token, counts in zip(self.tokens, self.counted, strict=False):
            if parts and parts[-1][1] == counts:
                parts[-1] = (parts[-1][0] + token, counts)
            else:
                parts.append((token, counts))
        return parts


@frozen
class Lengths:
    """How long the rows are, in tokens, before anything is cut.

    `bins` are pairs: a length, and how many rows have no more than that, and more than the pair before. `cut` rows are
    longer than `max_length`, `left_out` have nothing to learn within it; of the `counted` tokens, those that count for
    the loss, `lost` are cut off.
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
    """Rows that are the same, character by character.

    `within` rows of the training data repeat an earlier one, `between` of the evaluation rows are in the training data
    too. The examples are pairs of row numbers, the repetition first.
    """

    within: int = 0
    between: int = 0
    within_examples: tuple[tuple[int, int], ...] = field(default=(), converter=_pairs)
    between_examples: tuple[tuple[int, int], ...] = field(default=(), converter=_pairs)
    extra: Mapping[str, Any] = field(factory=dict)
