"""What a look at a run before it finds: problems, rows as the model will see them, lengths, duplicates, an estimate.

The classes are plain data, as a backend tells them; how they look to a person is in `results/check_report.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from attrs import field, frozen

from arkor.errors import InvalidConfig
from arkor.protocol.codec import from_wire
from arkor.protocol.estimates import Estimate, parse_estimate
from arkor.results import check_report

T = TypeVar("T")


def _each(cls: type[T], value: Any) -> tuple[T, ...]:
    return tuple(from_wire(cls, item) if isinstance(item, Mapping) else item for item in value or ())


def _one(cls: type[T], value: Any) -> T | None:
    return from_wire(cls, value) if isinstance(value, Mapping) else value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value or ()))


def _flags(value: Any) -> tuple[bool, ...]:
    return tuple(map(bool, value or ()))


def _pairs(value: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(left), int(right)) for left, right in value or ())


@frozen
class PreviewRow:
    """A row as the model will see it: its tokens as text, which of them count for the loss, how many are not shown."""

    row: int
    tokens: tuple[str, ...] = field(converter=_texts)
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


def _previews(value: Any) -> tuple[PreviewRow, ...]:
    return _each(PreviewRow, value)


def _lengths(value: Any) -> Lengths | None:
    return _one(Lengths, value)


def _duplicates(value: Any) -> Duplicates | None:
    return _one(Duplicates, value)


def _estimate(value: Any) -> Estimate | None:
    return value if isinstance(value, Estimate) else parse_estimate(value)


@frozen(repr=False)
class Check:
    """What was found of a run before it was started; what could not be found out is None or empty.

    `problems` keep the run from being trained, one sentence each, of `problem_count` that there are; `notes` do not.
    `str()` is the whole report.
    """

    problems: tuple[str, ...] = field(default=(), converter=_texts)
    problem_count: int = 0
    notes: tuple[str, ...] = field(default=(), converter=_texts)
    format: str | None = None
    train_rows: int | None = None
    eval_rows: int | None = None
    preview: tuple[PreviewRow, ...] = field(default=(), converter=_previews)
    lengths: Lengths | None = field(default=None, converter=_lengths)
    eval_lengths: Lengths | None = field(default=None, converter=_lengths)
    duplicates: Duplicates | None = field(default=None, converter=_duplicates)
    estimate: Estimate | None = field(default=None, converter=_estimate)
    extra: Mapping[str, Any] = field(factory=dict)

    def __repr__(self) -> str:
        return check_report.repr_line(self)

    def __str__(self) -> str:
        return check_report.render_text(self)

    def _repr_html_(self) -> str:
        return check_report.render_html(self)

    @property
    def ok(self) -> bool:
        """Whether nothing was found that keeps the run from being trained."""
        return not self.problems

    def raise_for_problems(self) -> Check:
        """Itself when it is ok; raises `InvalidConfig` with all the problems."""
        if self.problems:
            raise InvalidConfig("dataset", "\n".join(self.problems))
        return self


def merge_reports(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was found bit by bit, as one: lists of sentences grow, anything else is replaced."""
    whole: dict[str, Any] = {}
    for part in found:
        for name, value in part.items():
            whole[name] = [*whole.get(name, ()), *value] if name in ("problems", "notes") else value
    return whole
