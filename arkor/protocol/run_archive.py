"""A run's folder as one zip: which of its files travel, and how they are packed.

What belongs to one machine alone stays behind: the data set's token, the worker's process id, anything half written.
Taking a zip apart is the backend's (`backend/store/import_run.py`).
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from arkor.errors import InvalidConfig

#: What of a run's folder travels.
ARCHIVED_FILES = ("job.json", "events.jsonl", "worker.log")
ARCHIVED_FOLDERS = ("checkpoints", "final")

#: What is worth compressing; weights are as good as random.
_COMPRESSED_SUFFIXES = frozenset({".json", ".jsonl", ".log", ".txt", ".md", ".jinja"})
_CHUNK_BYTES = 1024 * 1024


@contextmanager
def as_zip(path: Path) -> Iterator[Path]:
    """`path` itself, or a zip of the folder that it is, for as long as the block lasts.

    Raises `InvalidConfig` for what cannot be a run, OSError for what cannot be read or written.
    """
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
    """The files that travel. Raises `InvalidConfig` for a folder that is no run's, or has links in it."""
    if not all((folder / name).is_file() for name in ("job.json", "events.jsonl")):
        raise InvalidConfig("path", f"{folder} is not the folder of a run: those have a job.json and an events.jsonl")
    top_level = [folder / name for name in (*ARCHIVED_FILES, *ARCHIVED_FOLDERS)]
    nested = [path for name in ARCHIVED_FOLDERS for path in sorted((folder / name).rglob("*"))]
    everything = [path for path in (*top_level, *nested) if not _is_hidden(path.relative_to(folder))]
    for path in everything:
        if path.is_symlink():
            raise InvalidConfig("path", f"{path} is a link; put what it leads to in its place")
    return [path for path in everything if path.is_file()]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def pack(folder: Path, files: list[Path], name: str) -> Iterator[bytes]:
    """The zip, piece by piece, in which those files of the folder lie below `name`. Raises OSError."""
    sink = _StreamingSink()
    with ZipFile(sink, "w") as archive:
        for file in files:
            member_name = f"{name}/{file.relative_to(folder).as_posix()}"
            try:
                entry = ZipInfo.from_file(file, member_name, strict_timestamps=False)
                source = file.open("rb")
            except FileNotFoundError:  # a worker that has just ended tidies up behind itself
                continue
            entry.compress_type = ZIP_DEFLATED if file.suffix in _COMPRESSED_SUFFIXES else ZIP_STORED
            with source, archive.open(entry, "w") as target:
                while chunk := source.read(_CHUNK_BYTES):
                    target.write(chunk)
                    yield sink.drain()
    yield sink.drain()


class _StreamingSink(io.RawIOBase):
    """A file that cannot be sought in, and hands on what is written to it."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pending += data
        return len(data)

    def drain(self) -> bytes:
        """What was written since the last time."""
        data = bytes(self._pending)
        self._pending.clear()
        return data
