"""Read the records of a JSONL, JSON, CSV or Parquet file, plain or gzip, in UTF-8.

The first bytes determine the format, or the name if they are ambiguous. A record that cannot be
read is yielded as a fault, so that all of them are reported together; an error of the whole file
raises `DataError`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import IO, Any, cast

from attrs import frozen

from arkor.backend.data.faults import DataError as DataError  # noqa: PLC0414 - re-exported
from arkor.formatting import one_line

#: The longest line, 64 MiB, and the longest JSON document, 2 GiB.
MAX_LINE_BYTES = 64 * 2**20
MAX_DOCUMENT_BYTES = 2 * 2**30

_SPACE = re.compile(r"\s*")


@frozen
class Record:
    """A record of a file: its `place` ("line 3"), and its `value` or why it cannot be read."""

    place: str
    value: Any = None
    fault: str | None = None


def read_records(path: Path, name: str) -> Iterator[Record]:
    """Yield the records of the file at `path`; `name` is used in messages. Raise `DataError`."""
    try:
        yield from _read(path, name)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"The gzip stream of {name} is incomplete. Compress or upload it again.") from None


def _read(path: Path, name: str) -> Iterator[Record]:
    with _open(path) as data:
        head = data.read(4096)
        data.seek(0)
        _reject_unsupported(head, name)
        kind = _detect_kind(data, name)
        data.seek(0)
        if kind != "parquet" and head.startswith(b"\xef\xbb\xbf"):
            data.seek(3)
        yield from {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet}[kind](data, name)


def _open(path: Path) -> IO[bytes]:
    """Open a file and decompress gzip."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path.open("rb")
    return cast("IO[bytes]", gzip.open(path, "rb"))


_UNSUPPORTED_MAGIC = {
    b"PK\x03\x04": "a ZIP archive (or a spreadsheet); save it as JSONL or CSV, or compress it with gzip",
    b"%PDF": "a PDF; a data set is JSONL, JSON, CSV or Parquet",
    b"\xff\xfe": "in UTF-16; save it as UTF-8",
    b"\xfe\xff": "in UTF-16; save it as UTF-8",
    b"SQLite format 3": "a SQLite database; export the table as JSONL or CSV",
    b"BZh": "compressed with bzip2; use gzip or none",
    b"\xfd7zXZ": "compressed with xz; use gzip or none",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; use gzip or none",
}


def _reject_unsupported(head: bytes, name: str) -> None:
    if not head.strip(b"\xef\xbb\xbf \t\r\n"):
        raise DataError(f"{name} is empty. A data set needs at least one row.")
    for magic, what in _UNSUPPORTED_MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{name} is {what}.")
    if re.match(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)", head, re.IGNORECASE):
        raise DataError(
            f"{name} is a web page, not data. Use the address of the file itself (a download or raw link), "
            "and a token if the file is private."
        )


_KINDS = {"csv": "csv", "tsv": "csv", "jsonl": "jsonl", "ndjson": "jsonl"}


def _detect_kind(data: IO[bytes], name: str) -> str:
    """Return the format by the first lines, or by the name if they are ambiguous."""
    ending = name.lower().removesuffix(".gz").rpartition(".")[2]
    first, second = _first_lines(data)
    if first.startswith(b"PAR1"):
        return "parquet"
    if ending in ("parquet", "pq"):
        raise DataError(f"{name} is not a Parquet file, although its name ends like one.")
    start, whole = first[:1], _is_json(first)
    several_lines = first == b"{" or (start == b"[" and not (whole and second))
    if several_lines or _looks_like_wrapped_array(first + b"\n" + second):
        return "json"
    if start == b"{" and whole:
        return "jsonl"
    default = "json" if start in (b"[", b"{") or ending == "json" else "csv"
    return _KINDS.get(ending, default)


def _first_lines(data: IO[bytes]) -> tuple[bytes, bytes]:
    """Return the first two lines that are not empty, without spaces around them."""
    lines: list[bytes] = []
    while len(lines) < 2 and (line := data.readline(MAX_LINE_BYTES)):
        if stripped := line.removeprefix(b"\xef\xbb\xbf").strip():
            lines.append(stripped)
    first, second = [*lines, b"", b""][:2]
    return first, second


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _looks_like_wrapped_array(head: bytes) -> bool:
    return re.match(rb'\{\s*"data"\s*:\s*\[', head) is not None


def _lines(data: IO[bytes], name: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := data.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{name}, line {number} is longer than 64 MiB. A row is one line; is this really JSONL?")
        yield number, line


def _decode(data: bytes, name: str, first_line: int = 1) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{name}, line {line} is not UTF-8 (byte 0x{data[error.start]:02X} at column {column}). "
            "Save the file as UTF-8; it may be Windows-1252 or Latin-1 now."
        ) from None


def _jsonl(data: IO[bytes], name: str) -> Iterator[Record]:
    for number, line in _lines(data, name):
        text = _decode(line, name, number).strip()
        if not text:
            continue
        place = f"line {number}"
        try:
            yield Record(place, json.loads(text))
        except RecursionError:
            yield Record(place, fault="is nested too deeply to be read; a row is a flat object with messages")
        except ValueError as error:
            yield Record(place, fault=f"{_json_problem(error)}; write one whole JSON object per line")


def _json_problem(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON ({error.msg} at column {error.colno})"
    return f"contains a value that cannot be read ({error})"


def _json(data: IO[bytes], name: str) -> Iterator[Record]:
    """Decode an array of records, or `{"data": [record, …]}`, one record at a time."""
    raw = data.read(MAX_DOCUMENT_BYTES + 1)
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise DataError(f"{name} is one JSON document of more than 2 GiB. Save it as JSONL, one row per line.")
    text = _decode(raw, name)
    del raw
    start = re.match(r'\s*(\{\s*"data"\s*:\s*)?\[', text)
    if start is None:
        yield from _objects(text, name)
        return
    yield from _array(text, start.end(), name)


def _objects(text: str, name: str) -> Iterator[Record]:
    """Decode a document without an array of records: one record, or several after each other."""
    decoder, position, line, counted = json.JSONDecoder(), _skip_space(text, 0), 1, 0
    while position < len(text):
        line, counted = line + text.count("\n", counted, position), position
        value, position = _decode_value(decoder, text, position, name, line)
        if not isinstance(value, dict):
            raise DataError(f"{name} must be a list of rows, or JSONL with one row per line.")
        yield Record(f"line {line}", value)
        position = _skip_space(text, position)


def _array(text: str, position: int, name: str) -> Iterator[Record]:
    decoder, line, counted = json.JSONDecoder(), 1, 0
    position = _skip_space(text, position)
    if text[position : position + 1] == "]":
        raise DataError(f"{name} is an empty list. A data set needs at least one row.")
    while True:
        line, counted = line + text.count("\n", counted, position), position
        value, position = _decode_value(decoder, text, position, name, line)
        yield Record(f"line {line}", value)
        position = _skip_space(text, position)
        if text[position : position + 1] == "]":
            return
        if text[position : position + 1] != ",":
            line += text.count("\n", counted, position)
            raise DataError(
                f"{name}, line {line}: a comma or the closing ] is missing after a row; is the file complete?"
            )
        position = _skip_space(text, position + 1)


def _decode_value(decoder: json.JSONDecoder, text: str, position: int, name: str, line: int) -> tuple[Any, int]:
    """Decode the value at `position`, in that line; return it and the position of its end."""
    try:
        return decoder.raw_decode(text, position)
    except RecursionError:
        raise DataError(f"{name}, line {line}: is nested too deeply to be read.") from None
    except ValueError as error:
        line = getattr(error, "lineno", line)
        raise DataError(f"{name}, line {line}: the file {_json_problem(error)}.") from None


def _skip_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _csv(data: IO[bytes], name: str) -> Iterator[Record]:
    csv.field_size_limit(MAX_LINE_BYTES)
    text = (_decode(line, name, number) for number, line in _lines(data, name))
    delimiter = "\t" if name.lower().removesuffix(".gz").endswith(".tsv") else ","
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        duplicates = sorted({column for column in header if header.count(column) > 1})
        if duplicates:
            raise DataError(f"{name}, line 1: the column {duplicates[0]!r} occurs twice; rename or remove one.")
        start_line = reader.line_num + 1
        for cells in reader:
            place, start_line = f"line {start_line}", reader.line_num + 1
            if cells and len(cells) != len(header):
                fault = f"has {len(cells)} cells, but the header has {len(header)}"
                yield Record(place, fault=f"{fault}; put texts with commas in quotation marks")
            elif cells:
                yield Record(place, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: {error}. Is a quotation mark not closed?") from None


def _parquet(data: IO[bytes], name: str) -> Iterator[Record]:
    import pyarrow as arrow  # noqa: PLC0415 - takes 0.25 s, and other formats do not need it
    from pyarrow import parquet  # noqa: PLC0415 - as above

    source = data if not isinstance(data, gzip.GzipFile) else io.BytesIO(data.read(MAX_DOCUMENT_BYTES))
    try:
        row = 0
        for batch in parquet.ParquetFile(source).iter_batches(batch_size=1000):
            for value in batch.to_pylist():
                row += 1
                yield Record(f"row {row}", without_nulls(value))
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{name} cannot be read as Parquet ({one_line(str(error), 160)}); is the file complete?"
        ) from None
    if row == 0:
        raise DataError(f"{name} is empty. A data set needs at least one row.")


def without_nulls(record: Any) -> Any:
    """Return a record of Arrow as JSON has it: without nulls in its columns, with dates as text.

    In a column of objects, every row has the fields of all rows, null where a row has none. Texts
    that are all dates become dates when the `datasets` library reads them.
    """
    if not isinstance(record, Mapping):
        return record
    return {key: _without_nulls(value) for key, value in record.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list) and value and all(isinstance(item, tuple) and len(item) == 2 for item in value):
        return {key: _without_nulls(item) for key, item in value if item is not None}  # a map
    if isinstance(value, (list, tuple)):
        return [_without_nulls(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat().removesuffix("T00:00:00")
    return value.isoformat() if isinstance(value, (date, time)) else value
