"""What `check()` returns: the report of a pre-flight check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from arkor.errors import InvalidConfig
from arkor.formatting import format_repr
from arkor.protocol.checks import Duplicates, Lengths, PreviewRow, texts
from arkor.protocol.codec import nested, nested_list
from arkor.protocol.estimates import Estimate, parse_estimate
from arkor.results import check_report


@frozen(repr=False)
class Check:
    """The findings about a run before its start; unknown parts are None or empty.

    `problems` prevent the run, one sentence each, the first of `problem_count`; `notes` do not.
    `learns` says which messages are learnt. `str()` is the whole report.
    """

    problems: tuple[str, ...] = field(default=(), converter=texts)
    problem_count: int = 0
    notes: tuple[str, ...] = field(default=(), converter=texts)
    format: str | None = None
    train_rows: int | None = None
    eval_rows: int | None = None
    learns: str | None = None
    preview: tuple[PreviewRow, ...] = nested_list(PreviewRow)
    lengths: Lengths | None = nested(Lengths, default=None)
    eval_lengths: Lengths | None = nested(Lengths, default=None)
    duplicates: Duplicates | None = nested(Duplicates, default=None)
    estimate: Estimate | None = field(default=None, converter=parse_estimate)
    extra: Mapping[str, Any] = field(factory=dict)

    def __repr__(self) -> str:
        rows = {"train_rows": self.train_rows, "eval_rows": self.eval_rows}
        estimate = None if self.estimate is None else str(self.estimate)
        return format_repr("Check", ok=self.ok, problems=self.problem_count or None, **rows, estimate=estimate)

    def __str__(self) -> str:
        return check_report.render_text(self)

    def _repr_html_(self) -> str:
        return check_report.render_html(self)

    @property
    def ok(self) -> bool:
        """Whether the run can be trained."""
        return not self.problems

    def raise_for_problems(self) -> Check:
        """Return itself if it is ok; raise `InvalidConfig` with all problems if not."""
        if self.problems:
            raise InvalidConfig("dataset", "\n".join(self.problems))
        return self


def merge_reports(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge partial reports: problems and notes accumulate, any other field is replaced."""
    merged: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            merged[name] = [*merged.get(name, ()), *value] if name in ("problems", "notes") else value
    return merged
