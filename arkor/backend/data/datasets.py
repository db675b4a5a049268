"""Load a data source: rows to train and evaluate on, or all errors by file, line and field.

`file_readers.py` reads the file formats, `protocol/row_formats.py` checks the rows, `download.py`
fetches URLs. Rows are not tokenized here.
"""

from __future__ import annotations

import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import evolve, field, frozen

from arkor.backend.data.download import download
from arkor.backend.data.faults import MAX_FAULTS_REPORTED, DataError, Faults
from arkor.backend.data.file_readers import Record, read_records, without_nulls
from arkor.backend.data.hub_files import HubFiles
from arkor.backend.data.packed_rows import PackedRows
from arkor.backend.engine.hyperparameters import EVAL_ROWS, EVAL_SHARE
from arkor.backend.runs.paths import datasets_folder
from arkor.formatting import one_line
from arkor.protocol.datasets import BlobDataset, HuggingFaceDataset
from arkor.protocol.row_formats import InvalidRow, Row, detect_format, ignored_fields, map_columns, read_row

#: The most ignored fields that a note lists.
MAX_FIELDS_REPORTED = 8

#: The seed of the evaluation split, so that the same data is always split in the same way.
SPLIT_SEED = 0


@frozen
class Rows:
    """The rows of a run: `train`, `eval` (or None), `notes` for its owner, and the `name` of the source."""

    train: PackedRows
    eval: PackedRows | None = None
    format: str = "chatml"
    notes: tuple[str, ...] = field(default=())
    name: str = "The data"

    @property
    def chat(self) -> bool:
        return self.format not in ("text", "pretokenized")

    def hold_out(self, size: float, max_rows: int | None = None, seed: int = SPLIT_SEED) -> Rows:
        """Move random rows of `train` to `eval`: at least one, at most `max_rows`.

        `size` is a number of rows, or a share below 1.
        """
        count = size if isinstance(size, int) else max(1, round(len(self.train) * size))
        count = min(count, max_rows or count)
        if count >= len(self.train):
            if len(self.train) > 1:
                raise DataError(f"dataset_split holds out {count} rows, and the data set has {len(self.train)}.")
            raise DataError("The data set has one row; an evaluation split needs at least two.")
        order = list(range(len(self.train)))
        random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible choice, not a secret
        return evolve(self, train=self.train.take(sorted(order[count:])), eval=self.train.take(sorted(order[:count])))

    def head(self, train: int, evaluation: int) -> Rows:
        return evolve(self, train=self.train[:train], eval=self.eval[:evaluation] if self.eval else None)


def load_rows(
    source: Any,
    *,
    format: str | None = None,  # noqa: A002 - the name in the API
    split: Any = None,
    home: Path,
    token: str | None = None,
    allow_private: bool = False,
    max_faults: int = MAX_FAULTS_REPORTED,
    skip_bad: bool = False,
    evaluates: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Rows:
    """Load and check all rows of `source`; `split` is a `JobConfig.dataset_split`.

    `columns` is the column mapping of `format`. `evaluates`: without a split for evaluation, use the
    validation split of a hub data set. Raise `DataError` with up to `max_faults` errors and their
    total number, or, with `skip_bad`, leave the bad rows out.
    """
    plan, options = _SplitPlan.of(split), _Options(format, max_faults, skip_bad, columns or {})
    if isinstance(source, HuggingFaceDataset):
        rows = _from_hub(source, plan, options, evaluates=evaluates)
    elif isinstance(source, BlobDataset):
        with _blob_file(source, home, token, allow_private) as (path, name):
            rows = _apply_slices(_validate(read_records(path, name), name, options), plan, name)
    else:
        raise DataError('The data source must be {"type": "huggingface", …} or {"type": "blob", …}.')
    return rows.hold_out(plan.size, seed=plan.seed) if plan.size else rows


# Splits


@frozen
class _SplitPlan:
    """A parsed `dataset_split`: the splits to train and evaluate on, or the rows to hold out."""

    train: str | None = None
    eval: str | None = None
    size: float | None = None
    seed: int = SPLIT_SEED

    @classmethod
    def of(cls, split: Any) -> _SplitPlan:
        if isinstance(split, Mapping) and "enabled" in split:
            seed = split.get("seed")
            size = split.get("testSize") or EVAL_SHARE
            return cls(size=size, seed=SPLIT_SEED if seed is None else seed) if split["enabled"] else cls()
        if isinstance(split, Mapping):
            held = split.get("eval")
            named = held if isinstance(held, str) else None
            return cls(split.get("train"), named, None if held is None or named else float(held))
        if isinstance(split, str):
            return cls(train=split)
        return cls(size=float(split)) if split else cls()


_SLICE = re.compile(r"(?P<split>[\w.-]+)?(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


def _apply_slices(rows: Rows, plan: _SplitPlan, name: str) -> Rows:
    """Apply the slices to a file, whose only split is "train"."""
    evaluation = _slice(rows.train, plan.eval, name) if plan.eval else None
    train = _slice(rows.train, plan.train, name) if plan.train else rows.train
    return evolve(rows, train=train, eval=evaluation)


def _slice(rows: PackedRows, spec: str, name: str) -> PackedRows:
    found = _SLICE.fullmatch(spec.strip())
    if found is None:
        raise DataError(f'dataset_split {spec!r} is not valid; write it like "train[:200]" or "train[10%:]".')
    if found["split"] not in (None, "train"):
        raise DataError(
            f'dataset_split {spec!r}: the only split of a file is "train"; use a slice of it, like "train[90%:]".'
        )
    start, stop = (_position(found[end], len(rows)) for end in ("start", "stop"))
    part = rows[slice(start, stop)]
    if not part:
        raise DataError(f"dataset_split {spec!r} selects none of the {len(rows)} rows of {name}.")
    return part


def _position(text: str | None, length: int) -> int | None:
    if text is None:
        return None
    return round(length * int(text[:-1]) / 100) if text.endswith("%") else int(text)


# Validation


@frozen
class _Options:
    """How records are read.

    `skip_bad`: leave bad rows out instead of refusing all. `columns`: the column mapping of
    `format`, empty without one.
    """

    format: str | None
    max_faults: int
    skip_bad: bool
    columns: Mapping[str, str]


def _mapped(records: Iterable[Record], options: _Options) -> Iterable[Record]:
    """Return the records under the names of the format."""
    columns, format_name = options.columns, options.format
    if not columns or format_name is None:
        return records
    return (
        record if record.fault else evolve(record, value=map_columns(record.value, columns, format_name))
        for record in records
    )


def _validate(records: Iterable[Record], name: str, options: _Options) -> Rows:
    """Convert every record to a row; raise `DataError` with the errors of all of them."""
    rows, faults, ignored = PackedRows(), Faults(name, options.max_faults), Counter[str]()
    format_name = options.format
    for record in _mapped(records, options):
        format_name, row, fault = _parse_record(record, format_name)
        if row is None:
            faults.add(record.place, fault or "")
            continue
        rows.append(row, record.place)
        ignored.update(ignored_fields(record.value, format_name or ""))
    if faults.count and not (options.skip_bad and rows):
        raise faults.error()
    if not rows:
        raise DataError(f"{name} is empty. A data set needs at least one row.")
    return Rows(
        rows, format=format_name or "", notes=(*faults.notes(), *_notes(ignored, len(rows), format_name)), name=name
    )


def _parse_record(record: Record, format_name: str | None) -> tuple[str | None, Row | None, str | None]:
    """Return the format, detected from the first record, and the row or its fault."""
    if record.fault is not None:
        return format_name, None, record.fault
    try:
        known_format = format_name or detect_format(record.value)
        return known_format, read_row(record.value, known_format), None
    except InvalidRow as fault:
        return format_name, None, str(fault)
    except RecursionError:
        return format_name, None, "is nested too deeply"


def _notes(ignored: Counter[str], total: int, format_name: str | None) -> tuple[str, ...]:
    """Return a note about the fields that are ignored, with the number of rows unless all have them."""
    if not ignored:
        return ()
    counted = [field if count == total else f"{field} (in {count} of {total} rows)" for field, count in ignored.items()]
    omitted = len(counted) - MAX_FIELDS_REPORTED
    listed = ", ".join(counted[:MAX_FIELDS_REPORTED]) + (f" and {omitted} more" if omitted > 0 else "")
    return (f"Rows are read as {format_name}; these fields are ignored: {listed}",)


# Sources


@contextmanager
def _blob_file(source: BlobDataset, home: Path, token: str | None, allow_private: bool) -> Iterator[tuple[Path, str]]:
    """Yield the path of the file during the block, and its name for messages."""
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
            raise DataError(
                f"{name} could not be saved in {folder}: {error.strerror}. Free some space there."
            ) from None
        yield Path(file.name), name


def _uploaded_file(url: str, home: Path, name: str) -> Path:
    found = re.match(r"/v1/datasets/([0-9a-f]{64})(/|$)", url)
    path = datasets_folder(home) / found[1] if found else None
    if path is None or not path.is_file():
        raise DataError(f"{name} is not on this backend any more. Submit the run again to upload it.")
    return path


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def _from_hub(source: HuggingFaceDataset, plan: _SplitPlan, options: _Options, *, evaluates: bool) -> Rows:
    if not _HUB_NAME.fullmatch(source.name):
        raise DataError(f"{source.name!r} is not a valid name of a Hugging Face data set; names look like owner/name.")
    trained = plan.train or source.split
    own = _validation_split(source, trained) if evaluates and plan.eval is None and plan.size is None else None
    train = _validate(_hub_records(source, trained), source.name, options)
    evaluated = plan.eval or own
    if evaluated is None:
        return train
    held_out = _validate(_hub_records(source, evaluated), source.name, evolve(options, format=train.format))
    note = (f"Evaluating on the split {own} of {source.name}",) if own else ()
    return evolve(train, eval=held_out.train, notes=(*train.notes, *held_out.notes, *note))


#: Names of the split that is meant for evaluation during the training.
_VALIDATION_SPLITS = ("validation", "valid", "val", "dev")


def _validation_split(source: HuggingFaceDataset, trained: str | None) -> str | None:
    """Return the validation split, at most `EVAL_ROWS` of it; None without one, or if it is trained on."""
    splits = _load_hub(source, None)
    if not isinstance(splits, Mapping) or len(splits) == 1:  # the only split is trained on
        return None
    trained_names = {part.partition("[")[0].strip() for part in (trained or "").split("+")}
    found = (name for name in _VALIDATION_SPLITS if name in splits and name not in trained_names)
    if (name := next(found, None)) is None:
        return None
    has_more = sum(1 for _ in islice(splits[name], EVAL_ROWS + 1)) > EVAL_ROWS
    return f"{name}[:{EVAL_ROWS}]" if has_more else name


def _load_hub(source: HuggingFaceDataset, split: str | None) -> Any:
    """Return the rows or records of a split, or those of all splits by name."""
    import datasets  # noqa: PLC0415 - takes a second, and other sources do not need it

    datasets.disable_progress_bars()
    load: Callable[..., Any] = datasets.load_dataset  # for Parquet and other files
    try:
        files = HubFiles.find(source.name, source.subset)
        return files.records(split) if files else load(source.name, source.subset, split=split)
    except DataError:
        raise
    except Exception as error:  # from one of many libraries; the message names the type
        raise DataError(_hub_problem(source, split, error)) from error


def _hub_records(source: HuggingFaceDataset, split: str | None) -> Iterator[Record]:
    """Yield the rows of a split; without a name, those of "train" or of the only split."""
    table = _load_hub(source, split)
    if isinstance(table, Mapping):
        first = next(iter(table))
        if len(table) > 1 and "train" not in table:
            raise DataError(f'{source.name} has the splits {", ".join(table)}; name one with split="{first}".')
        table = table["train" if "train" in table else first]
    for number, value in enumerate(table, 1):
        yield value if isinstance(value, Record) else Record(f"row {number}", without_nulls(value))


#: Exceptions of the libraries below `datasets` that mean that the hub cannot be reached.
_HUB_UNREACHABLE = {"ConnectionError", "ConnectError", "ReadTimeout", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}


def _hub_problem(source: HuggingFaceDataset, split: str | None, error: Exception) -> str:
    reason = one_line(str(error), 300)
    requested = " ".join(filter(None, [source.name, source.subset and f"({source.subset})", split and f"[{split}]"]))
    exception_name = type(error).__name__
    if exception_name in ("DatasetNotFoundError", "FileNotFoundError"):
        return f"The data set {requested} is not on the Hugging Face Hub, or is private (then set HF_TOKEN): {reason}"
    if exception_name in _HUB_UNREACHABLE:
        return f"The Hugging Face Hub cannot be reached for {requested}; use a file instead, or try again: {reason}"
    return f"The data set {requested} cannot be loaded ({exception_name}): {reason}"
