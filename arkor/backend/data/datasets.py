"""Load a data source: rows to train and evaluate on, or all errors by file, line and field.

`file_readers.py` reads the file formats, `protocol/row_formats.py` checks the rows, `download.py`
fetches URLs. Rows are not tokenized here.
"""

from __future__ import annotations

import random
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import evolve, field, frozen

from arkor.backend.data.download import download
from arkor.backend.data.file_readers import DataError, Record, read_records
from arkor.backend.data.packed_rows import PackedRows
from arkor.backend.engine.hyperparameters import EVAL_ROWS, EVAL_SHARE
from arkor.backend.runs.paths import datasets_folder
from arkor.formatting import one_line
from arkor.protocol.datasets import BlobDataset, HuggingFaceDataset
from arkor.protocol.row_formats import InvalidRow, detect_format, ignored_fields, map_columns, read_row

#: How many errors are listed; the rest is only counted.
MAX_FAULTS_REPORTED = 20

#: The seed of the evaluation split, so that the same data is always split in the same way.
SPLIT_SEED = 0


@frozen
class Rows:
    """The rows of a run: `train`, `eval` (or None), and `notes` for its owner."""

    train: PackedRows
    eval: PackedRows | None = None
    format: str = "chatml"
    notes: tuple[str, ...] = field(default=())

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
    evaluates: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Rows:
    """Load and check all rows of `source`. Raise `DataError` with up to `max_faults` errors.

    `columns` is the column mapping of `format`. `evaluates`: without a split for evaluation, use the
    validation split of a hub data set.
    """
    plan = _SplitPlan.of(split)
    mapped = partial(_mapped, columns=columns or {}, format_name=format)
    if isinstance(source, HuggingFaceDataset):
        own = _validation_split(source, plan.train) if evaluates and plan.eval is None and plan.size is None else None
        rows = _from_hub(source, evolve(plan, eval=own or plan.eval), format, max_faults, mapped)
        if own:
            rows = evolve(rows, notes=(*rows.notes, f"Evaluating on the split {own} of {source.name}"))
    elif isinstance(source, BlobDataset):
        with _blob_file(source, home, token, allow_private) as (path, name):
            rows = _apply_slices(_validate(mapped(read_records(path, name)), name, format, max_faults), plan, name)
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


def _mapped(records: Iterable[Record], columns: Mapping[str, str], format_name: str | None) -> Iterable[Record]:
    """Return the records under the names of the format."""
    if not columns or format_name is None:
        return records
    return (
        record if record.fault else evolve(record, value=map_columns(record.value, columns, format_name))
        for record in records
    )


def _validate(records: Iterable[Record], name: str, format_name: str | None, max_faults: int) -> Rows:
    """Convert every record to a row; raise `DataError` with the errors of all of them."""
    rows = PackedRows()
    notes: tuple[str, ...] = ()
    faults: list[str] = []
    count = 0
    for record in records:
        fault = record.fault
        if fault is None:
            try:
                known_format = format_name or detect_format(record.value)
                row = read_row(record.value, known_format)
            except InvalidRow as error:
                fault = str(error)
            except RecursionError:
                fault = "is nested too deeply"
        if fault is not None:
            count += 1
            if len(faults) < max_faults:
                faults.append(f"{record.place}: {fault}")
            continue
        if not rows and (ignored := ignored_fields(record.value, known_format)):
            notes = (f"Rows are read as {known_format}; these fields are ignored: {', '.join(ignored[:8])}",)
        rows.append(row)
        format_name = known_format
    if faults:
        raise DataError(_fault_report(name, faults, count), faults, count)
    if not rows:
        raise DataError(f"{name} is empty. A data set needs at least one row.")
    return Rows(rows, format=format_name or "", notes=notes)


def _fault_report(name: str, faults: list[str], count: int) -> str:
    omitted = count - len(faults)
    heading = f"{name} has {count} bad {'row' if count == 1 else 'rows'}; nothing was trained:"
    return "\n".join([heading, *(f"  {fault}" for fault in faults), *([f"  … and {omitted} more"] if omitted else [])])


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


def _from_hub(
    source: HuggingFaceDataset,
    plan: _SplitPlan,
    format_name: str | None,
    max_faults: int,
    mapped: Callable[[Iterable[Record]], Iterable[Record]],
) -> Rows:
    if not _HUB_NAME.fullmatch(source.name):
        raise DataError(f"{source.name!r} is not a valid name of a Hugging Face data set; names look like owner/name.")
    train = _validate(mapped(_hub_records(source, plan.train or source.split)), source.name, format_name, max_faults)
    if plan.eval is None:
        return train
    held_out = _validate(mapped(_hub_records(source, plan.eval)), source.name, train.format, max_faults)
    return evolve(train, eval=held_out.train)


#: Names of the split that is meant for evaluation during the training.
_VALIDATION_SPLITS = ("validation", "valid", "val", "dev")


def _validation_split(source: HuggingFaceDataset, trained: str | None) -> str | None:
    """Return the validation split, at most `EVAL_ROWS` of it; None without one, or if it is trained on."""
    splits = _load_hub(source, None)
    found = (name for name in _VALIDATION_SPLITS if isinstance(splits, Mapping) and name in splits)
    name = next((name for name in found if name != (trained or source.split or "").partition("[")[0]), None)
    return f"{name}[:{EVAL_ROWS}]" if name and len(splits[name]) > EVAL_ROWS else name


def _load_hub(source: HuggingFaceDataset, split: str | None) -> Any:
    """Return a split, or all splits by name."""
    import datasets  # noqa: PLC0415 - takes a second, and other sources do not need it

    datasets.disable_progress_bars()
    load: Callable[..., Any] = datasets.load_dataset
    try:
        return load(source.name, source.subset, split=split)
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
        yield Record(f"row {number}", value)


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
