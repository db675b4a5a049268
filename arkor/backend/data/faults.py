"""Errors in the data of a run: collected by place, reported together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import define, field

from arkor.backend.engine.interface import RunError

#: How many errors are listed; the rest is only counted.
MAX_FAULTS_REPORTED = 20

#: How many skipped rows a note lists.
MAX_SKIPPED_REPORTED = 3


class DataError(RunError):
    """The data is invalid. `faults` lists the first invalid rows, `count` is their number."""

    def __init__(self, problem: str, faults: Sequence[str] = (), count: int = 0) -> None:
        super().__init__(problem)
        self.faults = tuple(faults)
        self.count = count


@define
class Faults:
    """The bad rows of the data set called `name`: the first `limit` of them, and their number."""

    name: str
    limit: int = MAX_FAULTS_REPORTED
    listed: list[str] = field(factory=list)
    count: int = 0

    def add(self, place: str, fault: str) -> None:
        """Add the row at `place`, such as "line 3"."""
        self.count += 1
        if len(self.listed) < self.limit:
            self.listed.append(f"{place}: {fault}")

    def error(self) -> DataError:
        """Return the error that refuses the data."""
        heading = f"{self.name} has {self.count} bad {_rows(self.count)}; nothing was trained:"
        omitted = self.count - len(self.listed)
        rest = [f"  … and {omitted} more"] if omitted else []
        return DataError("\n".join([heading, *(f"  {fault}" for fault in self.listed), *rest]), self.listed, self.count)

    def notes(self) -> Iterator[str]:
        """Yield a note about the rows that are skipped."""
        if self.count:
            shown = self.listed[:MAX_SKIPPED_REPORTED]
            rest = f"; and {self.count - len(shown)} more" if self.count > len(shown) else ""
            yield f"{self.count} bad {_rows(self.count)} of {self.name} skipped: {'; '.join(shown)}{rest}"


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"
