"""Metrics files, CSV or JSON Lines: one row per log; a run that restarts replaces its rows."""

from __future__ import annotations

import csv
import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from arkor.errors import ArkorError
from arkor.files import atomic_writer
from arkor.protocol.events import METRIC_FIELDS
from arkor.protocol.jobs import TrainingJob

COLUMNS = ("job_id", "step", *METRIC_FIELDS)


class MetricsFile(ABC):
    """A file that rows are appended to. Raises OSError, and `ArkorError` for a foreign file."""

    #: The first line of the file.
    header = b""

    def __init__(self, path: Path) -> None:
        self._path = path.expanduser().absolute()
        self._file: IO[bytes] | None = None
        self._job_id = ""

    def open(self, job: TrainingJob, restart: bool) -> None:
        self._job_id = job.id
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            mode = self._path.stat().st_mode & 0o777
            with self._path.open("rb") as old, atomic_writer(self._path, mode=mode, fsync=False) as new:
                new.writelines(self._kept_lines(old, job.id if restart else None))
        self._file = self._path.open("ab", buffering=0)
        if self._file.tell() == 0:
            self._file.write(self.header)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._file is not None:
            self._file.write(self._row(step, numbers))

    def close(self, status: str | None) -> None:  # noqa: ARG002 - a file has no field for it
        if self._file is not None:
            self._file.close()
            self._file = None

    def _kept_lines(self, old: IO[bytes], excluded_job: str | None) -> Iterator[bytes]:
        """Yield the complete lines of the file, without the rows of `excluded_job`."""
        for number, line in enumerate(old):
            if not line.endswith(b"\n"):
                expected = self.header or self._row(0, {}).partition(b":")[0]
                if number == 0 and not (line.startswith(expected) or expected.startswith(line)):
                    raise self._foreign_file_error()
                return
            if self._job_of_row(number, line) != excluded_job or excluded_job is None:
                yield line

    def _foreign_file_error(self) -> ArkorError:
        return ArkorError(f"{self._path} is not a metrics file", remedy="use another path")

    @abstractmethod
    def _row(self, step: int, numbers: Mapping[str, float]) -> bytes:
        """Return one row, including the end of the line."""

    @abstractmethod
    def _job_of_row(self, number: int, line: bytes) -> str | None:
        """Return the job id of a row, None for the header; raise `ArkorError` for another line."""


class CsvMetrics(MetricsFile):
    """One column per metric, empty where a log lacks it; NaN and infinity as `nan` and `inf`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.header = _csv_line(COLUMNS)

    def _row(self, step: int, numbers: Mapping[str, float]) -> bytes:
        return _csv_line([self._job_id, step, *(numbers.get(name, "") for name in METRIC_FIELDS)])

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
    """One object per line; a non-finite metric is null, and its value is in `nonFinite`."""

    def _row(self, step: int, numbers: Mapping[str, float]) -> bytes:
        non_finite = {name: str(number) for name, number in numbers.items() if not math.isfinite(number)}
        row = {"job_id": self._job_id, "step": step, **numbers, **dict.fromkeys(non_finite)}
        return (json.dumps({**row, "nonFinite": non_finite} if non_finite else row) + "\n").encode()

    def _job_of_row(self, number: int, line: bytes) -> str | None:  # noqa: ARG002 - no header
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise self._foreign_file_error() from None
        if not isinstance(row, dict) or not isinstance(row.get("job_id"), str):
            raise self._foreign_file_error()
        return str(row["job_id"])


def _csv_line(cells: object) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)  # type: ignore[arg-type]
    return line.getvalue().encode()
