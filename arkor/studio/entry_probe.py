"""What a project's entry point would train; `python -m arkor.studio.entry_probe FOLDER` prints it as one line of JSON.

A process of its own, because the entry point is somebody's program: it may be broken, print, hang, or load half the
world; and an edit is seen because nothing of it was loaded before. No run is started by looking, even if the file
does so when it is imported.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import IO, Any

from arkor.errors import ArkorError
from arkor.project import find_entry, inspect_entry
from arkor.protocol.codec import to_wire
from arkor.protocol.datasets import FileDataset
from arkor.trainer.trainer import Trainer

_MAX_MESSAGE_LENGTH = 2000


def probe(folder: Path) -> dict[str, Any]:
    """The trainer of the project in `folder` (`trainer`), or what is wrong with it (`fault`); never raises."""
    try:
        file = find_entry(folder)
    except ArkorError as error:
        return {"file": None, "fault": _describe_fault(error, None)}
    try:
        trainer = inspect_entry(file)
    except BaseException as error:  # noqa: BLE001 - SystemExit and the like are the entry's, too
        return {"file": str(file), "fault": _describe_fault(error, file)}
    return {"file": str(file), "trainer": _describe_trainer(trainer, file.parent)}


def _describe_trainer(trainer: Trainer, folder: Path) -> dict[str, Any]:
    config = trainer._config
    if config is None:
        return {"name": trainer.name, "watches": trainer.job_id}
    source = config.dataset_source
    return {"name": trainer.name, "config": to_wire(config), "data": _describe_data(source, folder)}


def _describe_data(source: Any, folder: Path) -> dict[str, Any]:
    """Where the rows come from, for a person; of a file, whether it is there."""
    if not isinstance(source, FileDataset):
        return {"name": getattr(source, "name", None) or getattr(source, "url", ""), "kind": source.type}
    path = Path(source.path)
    name = os.path.relpath(path, folder) if path.is_relative_to(folder) else str(path)
    there = path.is_file()
    return {"name": name, "kind": "file", "there": there, "bytes": path.stat().st_size if there else None}


def _describe_fault(error: BaseException, file: Path | None) -> dict[str, Any]:
    """A sentence; the line of the project's own code that it came from, and the text around it."""
    line_file, line = _source_location(error, file)
    sentence = str(error) if isinstance(error, ArkorError) else f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, SyntaxError):
        sentence = f"{type(error).__name__}: {error.msg}"
    fault = {"sentence": sentence[:_MAX_MESSAGE_LENGTH], "line": line, "place": line_file and Path(line_file).name}
    return {**fault, "source": _source_excerpt(line_file, line)}


def _source_location(error: BaseException, file: Path | None) -> tuple[str | None, int | None]:
    """The innermost line that lies in the project's folder."""
    if file is None:
        return None, None
    if isinstance(error, SyntaxError) and error.filename:
        return error.filename, error.lineno
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(file.parent)]
    return (frames[-1].filename, frames[-1].lineno) if frames else (str(file), None)


def _source_excerpt(file: str | None, line: int | None) -> list[tuple[int, str]]:
    """A few lines of source, numbered."""
    if file is None or line is None:
        return []
    try:
        lines = Path(file).read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    first = max(1, line - 2)
    return [(number, lines[number - 1][:200]) for number in range(first, min(len(lines), line + 2) + 1)]


def _keep_stdout() -> IO[str]:
    """Our own way out; what the entry prints goes nowhere."""
    answer = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    return answer


def main() -> None:
    """Print what is found, and leave at once, whatever threads the entry has left behind."""
    answer = _keep_stdout()
    json.dump(probe(Path(sys.argv[1])), answer)
    answer.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
