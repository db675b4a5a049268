"""What `check()` returns: the report of a pre-flight check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from attrs import field, frozen

from arkor.errors import InvalidConfig
from arkor.protocol.checks import Duplicates, Lengths, PreviewRow, texts
from arkor.protocol.codec import from_wire
from arkor.protocol.estimates import Estimate, parse_estimate
from arkor.results import check_report

T = TypeVar("T")


def _each(cls: type[T], value: Any) -> tuple[T, ...]:
    return tuple(from_wire(cls, item) if isinstance(item, Mapping) else item for item in value or ())


def _one(cls: type[T], value: Any) -> T | None:
    return from_wire(cls, value) if isinstance(value, Mapping) else value


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

    problems: tuple[str, ...] = field(default=(), converter=texts)
    problem_count: int = 0
    notes: tuple[str, ...] = field(default=(), converter=texts)
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
