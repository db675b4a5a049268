"""A data source → the rows to train on and to evaluate on, or every fault at once, by file, line and field.

How a file is read is in `file_readers.py`, what a row must look like in `protocol/row_formats.py`, how bytes come over
the network in `download.py`. Tokens, lengths and templates are no business of this room.
"""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import evolve, field, frozen

from arkor.backend.data.download import download
from arkor.backend.data.file_readers import DataError, Record, read_records
from arkor.backend.data.packed_rows import PackedRows
from arkor.backend.runs.paths import datasets_folder
from arkor.protocol.datasets import BlobDataset, HuggingFaceDataset
from arkor.protocol.row_formats import InvalidRow, Row, detect_format, ignored_fields, read_row

#: So many faults are told one by one; the rest is counted.
MAX_FAULTS_REPORTED = 20

#: Held-out rows are drawn by this seed, so that the same data is split the same way each time.
SPLIT_SEED = 0


@frozen
class Rows:
    """What a run learns from (`train`), is measured on (`eval`, or None), and what a person should know (`notes`)."""

    train: PackedRows
    eval: PackedRows | None = None
    format: str = "chatml"
    notes: tuple[str, ...] = field(default=())

    @property
    def chat(self) -> bool:
        return self.format != "text"

    def hold_out(self, share: float, max_rows: int | None = None) -> Rows:
        """A copy whose `eval` is a random `share` of `train`, at least one row and `max_rows` at most."""
        count = max(1, round(len(self.train) * share))
        count = min(count, max_rows or count)
        if count >= len(self.train):
            raise DataError("The data set has one row; to hold out a part for evaluation it needs at least two.")
        order = list(range(len(self.train)))
        random.Random(SPLIT_SEED).shuffle(order)  # noqa: S311 - a reproducible choice, not a secret
        return evolve(self, train=self.train.take(sorted(order[count:])), eval=self.train.take(sorted(order[:count])))

    def head(self, train: int, evaluation: int) -> Rows:
        """A copy with the first rows alone."""
        return evolve(self, train=self.train[:train], eval=self.eval[:evaluation] if self.eval else None)


def load_rows(
    source: Any,
    *,
    format: str | None = None,  # noqa: A002 - the word of the contract
    split: Any = None,
    home: Path,
    token: str | None = None,
    allow_private: bool = False,
    max_faults: int = MAX_FAULTS_REPORTED,
) -> Rows:
    """The rows of `source`, checked to the last; `split` as `jobs.JobConfig.dataset_split` describes it.

    Raises `DataError` with up to `max_faults` faults and the count of the rest.
    """
    plan = _SplitPlan.of(split)
    if isinstance(source, HuggingFaceDataset):
        rows = _from_hub(source, plan, format, max_faults)
    elif isinstance(source, BlobDataset):
        with _blob_file(source, home, token, allow_private) as (path, name):
            rows = _apply_slices(_validate(read_records(path, name), name, format, max_faults), plan, name)
    else:
        raise DataError('The data source must be {"type": "huggingface", …} or {"type": "blob", …}.')
    return rows.hold_out(plan.share) if plan.share else rows


# Which rows


@frozen
class _SplitPlan:
    """`dataset_split`, taken apart: what to train on, what to evaluate on, or the share to hold out instead."""

    train: str | None = None
    eval: str | None = None
    share: float | None = None

    @classmethod
    def of(cls, split: Any) -> _SplitPlan:
        if isinstance(split, Mapping):
            held = split.get("eval")
            named = held if isinstance(held, str) else None
            return cls(split.get("train"), named, None if held is None or named else float(held))
        if isinstance(split, str):
            return cls(train=split)
        return cls(share=float(split)) if split else cls()


_SLICE = re.compile(r"(?P<split>[\w.-]+)?(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def _apply_slices(rows: Rows, plan: _SplitPlan, name: str) -> Rows:
    """The slices of a file that has one split, "train"."""
    evaluation = _slice(rows.train, plan.eval, name) if plan.eval else None
    train = _slice(rows.train, plan.train, name) if plan.train else rows.train
    return evolve(rows, train=train, eval=evaluation)


def _slice(rows: PackedRows, spec: str, name: str) -> PackedRows:
    found = _SLICE.fullmatch(spec.strip())
    if found is None:
        raise DataError(f'dataset_split {spec!r} cannot be read; write it like "train[:200]" or "train[10%:]".')
    if found["split"] not in (None, "train"):
        raise DataError(
            f'dataset_split {spec!r}: a file has the one split "train"; take a part of it, like "train[90%:]".'
        )
    start, stop = (_position(found[end], len(rows)) for end in ("start", "stop"))
    part = rows[slice(start, stop)]
    if not part:
        raise DataError(f"dataset_split {spec!r} leaves none of the {len(rows)} rows of {name}.")
    return part


def _position(text: str | None, length: int) -> int | None:
    if text is None:
        return None
    return round(length * int(text[:-1]) / 100) if text.endswith("%") else int(text)


# Whether they are good


def _validate(records: Iterable[Record], name: str, format_name: str | None, max_faults: int) -> Rows:
    """Every record as a row; raises `DataError` when one is bad, after a look at all of them."""
    rows = PackedRows()
    notes: tuple[str, ...] = ()
    faults: list[str] = []
    count = 0
    for record in records:
        format_name, row, fault = _parse_record(record, format_name)
        if row is not None and not rows:
            notes = _notes(record.value, format_name or "")
        if row is not None:
            rows.append(row)
            continue
        count += 1
        if len(faults) < max_faults:
            faults.append(f"{record.place}: {fault}")
    if faults:
        raise DataError(_fault_report(name, faults, count), faults, count)
    if not rows:
        raise DataError(f"{name} is empty. A data set needs at least one row.")
    return Rows(rows, format=format_name or "", notes=notes)


def _parse_record(record: Record, format_name: str | None) -> tuple[str | None, Row | None, str | None]:
    """The format from here on, and either the row or its fault."""
    if record.fault is not None:
        return format_name, None, record.fault
    try:
        known_format = format_name or detect_format(record.value)
        return known_format, read_row(record.value, known_format), None
    except InvalidRow as fault:
        return format_name, None, str(fault)
    except RecursionError:
        return format_name, None, "is nested too deeply"


def _fault_report(name: str, faults: list[str], count: int) -> str:
    omitted = count - len(faults)
    heading = f"{name} has {count} bad {'row' if count == 1 else 'rows'}; nothing was trained:"
    return "\n".join([heading, *(f"  {fault}" for fault in faults), *([f"  … and {omitted} more"] if omitted else [])])


def _notes(record: Any, format_name: str) -> tuple[str, ...]:
    ignored = ignored_fields(record, format_name) if isinstance(record, Mapping) else []
    if not ignored:
        return ()
    listed = ", ".join(ignored[:8])
    return (f"Rows are read as {format_name}; these fields play no part: {listed}",)


# Where they come from


@contextmanager
def _blob_file(source: BlobDataset, home: Path, token: str | None, allow_private: bool) -> Iterator[tuple[Path, str]]:
    """A path at which the file lies for the moment, and what a person calls it."""
    name = unquote(urlsplit(source.url).path).rstrip("/").rpartition("/")[2] or "the data set"
    if source.url.startswith("/v1/datasets/"):
        yield _uploaded_file(source.url, home, name), name
        return
    folder = datasets_folder(home)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".download-") as file:
        try:
            download(source.url, file, name=name, token=token or source.token, allow_private=allow_private)
        except OSError as error:
            raise DataError(f"{name} could not be kept in {folder}: {error.strerror}. Make room there.") from None
        yield Path(file.name), name


def _uploaded_file(url: str, home: Path, name: str) -> Path:
    found = re.match(r"/v1/datasets/([0-9a-f]{64})(/|$)", url)
    path = datasets_folder(home) / found[1] if found else None
    if path is None or not path.is_file():
        raise DataError(f"{name} is not on this backend any more: upload it again, by starting the run anew.")
    return path


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def _from_hub(source: HuggingFaceDataset, plan: _SplitPlan, format_name: str | None, max_faults: int) -> Rows:
    if not _HUB_NAME.fullmatch(source.name):
        raise DataError(f"{source.name!r} is no name of a Hugging Face data set; it looks like owner/name.")
    train = _validate(_hub_records(source, plan.train or source.split), source.name, format_name, max_faults)
    if plan.eval is None:
        return train
    held_out = _validate(_hub_records(source, plan.eval), source.name, train.format, max_faults)
    return evolve(train, eval=held_out.train)


def _hub_records(source: HuggingFaceDataset, split: str | None) -> Iterator[Record]:
    table = _hub_table(source, split)
    if isinstance(table, Mapping):
        names = list(table)
        table = table["train" if "train" in table or len(names) > 1 else names[0]]
    for number, value in enumerate(table, 1):
        yield Record(f"row {number}", value)


def _hub_table(source: HuggingFaceDataset, split: str | None) -> Any:
    """What `datasets` loads: one table, or a mapping of all splits when none is named."""
    import datasets  # noqa: PLC0415 - a second that other sources need not wait for

    datasets.disable_progress_bars()
    load: Callable[..., Any] = datasets.load_dataset
    try:
        table = load(source.name, source.subset, split=split)
    except Exception as error:  # any of a dozen libraries; the sentence names the type
        raise DataError(_hub_problem(source, split, error)) from error
    if isinstance(table, Mapping) and len(table) > 1 and "train" not in table:
        raise DataError(f'{source.name} has the splits {", ".join(table)}; name one with split="{next(iter(table))}".')
    return table


def _hub_problem(source: HuggingFaceDataset, split: str | None, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    requested = " ".join(filter(None, [source.name, source.subset and f"({source.subset})", split and f"[{split}]"]))
    exception_name = type(error).__name__
    if exception_name in ("DatasetNotFoundError", "FileNotFoundError"):
        return f"The data set {requested} is not on the Hugging Face hub, or is private (then set HF_TOKEN): {reason}"
    if exception_name in (
        "ConnectionError",
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
        "ReadTimeout",
        "ConnectError",
    ):
        return f"The Hugging Face hub cannot be reached for {requested}; use a file instead, or try again: {reason}"
    return f"The data set {requested} cannot be loaded ({exception_name}): {reason}"
