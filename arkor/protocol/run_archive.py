"""Pack the folder of a run into a zip, without the token of the data set and partial files."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from arkor.errors import InvalidConfig

#: The parts of a run's folder that are packed.
ARCHIVED_FILES = ("job.json", "events.jsonl", "worker.log")
ARCHIVED_FOLDERS = ("checkpoints", "final")

#: Files that are compressed; weights would hardly become smaller.
_COMPRESSED_SUFFIXES = frozenset({".json", ".jsonl", ".log", ".txt", ".md", ".jinja"})
_CHUNK_BYTES = 1024 * 1024


@contextmanager
def as_zip(path: Path) -> Iterator[Path]:
    """Yield `path`, or a temporary zip of the run's folder. Raise `InvalidConfig` or OSError."""
    if not path.is_dir():
        yield path
        return
    files = archived_files(path)
    with tempfile.TemporaryDirectory(prefix="arkor-import-") as folder:
        file = Path(folder, "run.zip")
        with file.open("wb") as target:
            for chunk in pack(path, files, path.resolve().name):
                target.write(chunk)
        yield file


def archived_files(folder: Path) -> list[Path]:
    """Return the files to pack. Raises `InvalidConfig` for links and for other folders."""
    if not all((folder / name).is_file() for name in ("job.json", "events.jsonl")):
        raise InvalidConfig("path", f"{folder} is not the folder of a run, which has a job.json and an events.jsonl")
    top_level = [folder / name for name in (*ARCHIVED_FILES, *ARCHIVED_FOLDERS)]
    nested = [path for name in ARCHIVED_FOLDERS for path in sorted((folder / name).rglob("*"))]
    everything = [path for path in (*top_level, *nested) if "/." not in f"/{path.relative_to(folder)}"]
    for path in everything:
        if path.is_symlink():
            raise InvalidConfig("path", f"{path} is a symbolic link", "replace it by its target")
    return [path for path in everything if path.is_file()]


def pack(folder: Path, files: list[Path], name: str) -> Generator[bytes, None, None]:
    """Yield the chunks of a zip with these files of the folder, below `name`. Raises OSError."""
    sink = _StreamingSink()
    with ZipFile(sink, "w") as archive:
        for file in files:
            member_name = f"{name}/{file.relative_to(folder).as_posix()}"
            try:
                entry = ZipInfo.from_file(file, member_name, strict_timestamps=False)
                source = file.open("rb")
            except FileNotFoundError:  # removed by the worker that has just ended
                continue
            entry.compress_type = ZIP_DEFLATED if file.suffix in _COMPRESSED_SUFFIXES else ZIP_STORED
            with source, archive.open(entry, "w") as target:
                while chunk := source.read(_CHUNK_BYTES):
                    target.write(chunk)
                    yield sink.drain()
    yield sink.drain()


class _StreamingSink(io.RawIOBase):
    """A write-only file whose contents are drained in chunks."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pending += data
        return len(data)

    def drain(self) -> bytes:
        data = bytes(self._pending)
        self._pending.clear()
        return data
