"""The numbers of runs as a file: CSV, or JSON lines. A file holds any number of runs, a row per log.

A run that is told from its start again takes the place of its rows; one that goes on is written behind them.
"""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from arkor.errors import ArkorError
from arkor.protocol.events import METRIC_FIELDS
from arkor.protocol.jobs import TrainingJob

COLUMNS = ("job_id", "step", *METRIC_FIELDS)


class MetricsFile(ABC):
    """A file to which rows are added. Raises OSError, and `ArkorError` for a file that holds something else."""

    def __init__(self, path: Path) -> None:
        self._path = path.expanduser().absolute()
        self._file: IO[bytes] | None = None
        self._job_id = ""

    def open(self, job: TrainingJob, restart: bool) -> None:
        self._job_id = job.id
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._rewrite_without(excluded_job=job.id if restart else None)
        self._file = self._path.open("ab", buffering=0)
        if self._file.tell() == 0:
            self._file.write(self._header())

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._file is not None:
            self._file.write(self._row(step, numbers))

    def close(self, status: str | None) -> None:  # noqa: ARG002 - a file does not say how a run ended
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rewrite_without(self, excluded_job: str | None) -> None:
        """Write the file again, without the rows of a run and without a last line that was cut off."""
        partial = self._path.with_name(f".{self._path.name}.partial")
        try:
            with self._path.open("rb") as old, partial.open("wb") as new:
                new.writelines(self._kept_lines(old, excluded_job))
            partial.replace(self._path)
        finally:
            partial.unlink(missing_ok=True)

    def _kept_lines(self, old: IO[bytes], excluded_job: str | None) -> Iterator[bytes]:
        for number, line in enumerate(old):
            if not line.endswith(b"\n"):
                if number == 0 and not self._may_be_our_header(line):
                    raise self._foreign_file_error()
                return
            if self._job_of_row(number, line) != excluded_job or excluded_job is None:
                yield line

    def _foreign_file_error(self) -> ArkorError:
        return ArkorError(f"{self._path} holds something else than the numbers of runs; name another file")

    def _may_be_our_header(self, torn: bytes) -> bool:
        """Whether this piece of a first line may be the beginning of ours."""
        beginning = self._header() or self._row(0, {}).partition(b":")[0]
        return torn.startswith(beginning) or beginning.startswith(torn)

    @abstractmethod
    def _header(self) -> bytes:
        """What stands before the first row."""

    @abstractmethod
    def _row(self, step: int, numbers: Mapping[str, float]) -> bytes:
        """One row, with the end of its line."""

    @abstractmethod
    def _job_of_row(self, number: int, line: bytes) -> str | None:
        """Whose row it is; None for the head. Raises `ArkorError` for what is none of ours."""


class CsvMetrics(MetricsFile):
    """A column for each number, empty where a log lacks it; `nan` and `inf` as Python writes them."""

    def _header(self) -> bytes:
        return _csv(COLUMNS)

    def _row(self, step: int, numbers: Mapping[str, float]) -> bytes:
        return _csv([self._job_id, step, *(numbers.get(name, "") for name in METRIC_FIELDS)])

    def _job_of_row(self, number: int, line: bytes) -> str | None:
        try:
            cells = next(csv.reader([line.decode()]), [])
        except (UnicodeDecodeError, csv.Error):
            raise self._foreign_file_error() from None
        if number == 0 and tuple(cells) == COLUMNS:
            return None
        if number == 0 or len(cells) != len(COLUMNS):
            raise self._foreign_file_error()
        return cells[0]


class JsonLinesMetrics(MetricsFile):
    """An object a line, with those numbers that its log has; `nonFinite` says what null stands for."""

    def _header(self) -> bytes:
        return b""

    def _row(self, step: int, numbers: Mapping[str, float]) -> bytes:
        odd = {name: str(number) for name, number in numbers.items() if number - number != 0}
        row = {"job_id": self._job_id, "step": step, **numbers, **dict.fromkeys(odd)}
        return (json.dumps({**row, "nonFinite": odd} if odd else row) + "\n").encode()

    def _job_of_row(self, number: int, line: bytes) -> str | None:  # noqa: ARG002 - there is no head
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise self._foreign_file_error() from None
        if not isinstance(row, dict) or not isinstance(row.get("job_id"), str):
            raise self._foreign_file_error()
        return str(row["job_id"])


def _csv(cells: object) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)  # type: ignore[arg-type]
    return text.getvalue().encode()
