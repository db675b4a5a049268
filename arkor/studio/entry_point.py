"""The project's entry point, read in a process of its own, which is killed after a timeout.

The entry is arbitrary code, which may fail, print, hang or import large packages. In a process of
its own (`python -m arkor.studio.entry_point FOLDER`) it is also read anew after each edit. No run
is started, even if the file calls `start()` while it is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from attrs import frozen

from arkor.errors import ArkorError
from arkor.protocol.codec import to_wire
from arkor.protocol.datasets import FileDataset
from arkor.trainer.project import find_entry, inspect_entry
from arkor.trainer.trainer import Trainer

#: Seconds to import an entry; importing torch takes a large part of it.
SECONDS = 30.0
_MAX_MESSAGE_LENGTH = 2000


@frozen
class EntryPoint:
    """The entry file, and its trainer or the error in it, both as `probe` describes them."""

    file: str | None
    trainer: Mapping[str, Any] | None = None
    fault: Mapping[str, Any] | None = None


def probe_entry(folder: Path, seconds: float = SECONDS) -> EntryPoint:
    """Read the entry point of the project in `folder`; errors in it are returned, not raised."""
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-m", "arkor.studio.entry_point", str(folder)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        answer, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return _broken_entry(
            f"The import of the entry point took longer than {seconds:g} s and was stopped. "
            "Move its work into a function that is called only by `if __name__ == '__main__':`."
        )
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also ends processes that the entry has started
        process.communicate()
    try:
        found = json.loads(answer)
    except ValueError:
        return _broken_entry(f"The entry point ended its Python process (exit status {process.returncode}).")
    return EntryPoint(found["file"], found.get("trainer"), found.get("fault"))


#: Folders below a project that hold no code of it, besides hidden ones.
_SKIPPED_FOLDERS = {"__pycache__", "node_modules", "venv", "site-packages"}
_MAX_SOURCES = 2000


def source_version(folder: Path) -> str:
    """Return a value that changes with the Python files of the project and with pyproject.toml."""
    digest = hashlib.sha256()
    sources = islice(_sources(folder), _MAX_SOURCES)
    for path in sources:
        with suppress(OSError):  # deleted at this moment
            state = path.stat()
            digest.update(f"{path}\0{state.st_mtime_ns}\0{state.st_size}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _sources(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS)
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".py") or name == "pyproject.toml")


def _broken_entry(sentence: str) -> EntryPoint:
    return EntryPoint(None, fault={"sentence": sentence, "line": None, "place": None, "source": []})


# In the process


def probe(folder: Path) -> dict[str, Any]:
    """Return the project's trainer (`trainer`) or the error in its entry (`fault`); never raise."""
    try:
        file = find_entry(folder)
    except ArkorError as error:
        return {"file": None, "fault": _describe_fault(error, None)}
    try:
        trainer = inspect_entry(file)
    except BaseException as error:  # noqa: BLE001 - the entry may also raise SystemExit
        return {"file": str(file), "fault": _describe_fault(error, file)}
    return {"file": str(file), "trainer": _describe_trainer(trainer, file.parent)}


def _describe_trainer(trainer: Trainer, folder: Path) -> dict[str, Any]:
    config = trainer._config
    if config is None:
        return {"name": trainer.name, "watches": trainer.job_id}
    data = _describe_data(config.dataset_source, folder)
    return {"name": trainer.name, "config": to_wire(config), "data": data}


def _describe_data(source: Any, folder: Path) -> dict[str, Any]:
    """Return the name of the data set; for a file also its size, None if it does not exist."""
    if not isinstance(source, FileDataset):
        name = getattr(source, "name", None) or getattr(source, "url", "")
        return {"name": name, "kind": source.type}
    path = Path(source.path)
    name = os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)
    return {"name": name, "kind": "file", "bytes": path.stat().st_size if path.is_file() else None}


def _describe_fault(error: BaseException, file: Path | None) -> dict[str, Any]:
    """Return the message, and the line of the project's code that raised it with its context."""
    line_file, line = _source_location(error, file)
    if isinstance(error, ArkorError):
        message = str(error)
    else:
        detail = error.msg if isinstance(error, SyntaxError) else str(error)
        message = f"{type(error).__name__}: {detail}" if detail else type(error).__name__
    return {
        "sentence": message[:_MAX_MESSAGE_LENGTH],
        "line": line,
        "place": line_file and Path(line_file).name,
        "source": _source_excerpt(line_file, line),
    }


def _source_location(error: BaseException, file: Path | None) -> tuple[str | None, int | None]:
    """Return the file and the line of the innermost frame in the project's folder."""
    if file is None:
        return None, None
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(file.parent)]
    return (own[-1].filename, own[-1].lineno) if own else (str(file), None)


def _source_excerpt(file: str | None, line: int | None) -> list[tuple[int, str]]:
    """Return the line and two before and after it, each with its number."""
    if file is None or line is None:
        return []
    try:
        lines = Path(file).read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    numbers = range(max(1, line - 2), min(len(lines), line + 2) + 1)
    return [(number, lines[number - 1][:200]) for number in numbers]


def main() -> None:
    """Print nothing but the result, and exit at once, even if the entry has started threads."""
    answer = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    json.dump(probe(Path(sys.argv[1])), answer)
    answer.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
