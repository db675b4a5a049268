"""The checks of the backend's files, which must not change any of them."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from arkor.backend.diagnostics import Diagnostic, check_database, check_engine, check_starter, check_store
from arkor.backend.inference.llama_cpp import library
from arkor.backend.inference.llama_cpp.library import installed_version, load_library
from arkor.backend.runs.event_log import LogWriter
from arkor.backend.runs.paths import create_run, database_file, prepare, run_folder
from arkor.backend.store.schema import SCHEMA_VERSION
from arkor.backend.store.store import Store
from tests.backend.http.routes.test_job_list import fill

JOB = {"id": "a" * 32, "name": "n", "createdAt": "2026", "config": {"model": "m"}}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home as the backend leaves it, without runs."""
    home = tmp_path / "arkor-home"
    prepare(home)
    Store(database_file(home)).close()
    return home


def told(home: Path, *, serving: bool = False) -> list[tuple[str, str]]:
    return [(finding.level, finding.sentence) for finding in check_store(home, serving)]


def everything(home: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in home.rglob("*")}


def test_a_home_without_fault(home: Path) -> None:
    before = everything(home)
    assert told(home) == [("ok", "intact, with 0 runs"), ("ok", "0 folders")]
    assert everything(home) == before


def test_a_home_that_is_not_there(tmp_path: Path) -> None:
    assert told(tmp_path / "home") == [("ok", "none yet; the backend creates it when it starts")]
    assert not (tmp_path / "home").exists()


def database(home: Path) -> Diagnostic:
    before = everything(home)
    finding = check_database(home)[0]
    assert everything(home) == before
    return finding


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"SQLite format 3\0" + b"x" * 5000])
def test_garbage(home: Path, content: bytes) -> None:
    database_file(home).write_bytes(content)
    found = database(home)
    assert (found.level, str(database_file(home)) in found.sentence) == ("problem", True)
    assert found.remedy is not None
    assert found.remedy.endswith(": arkor doctor --rebuild")


def test_a_page_that_is_damaged(home: Path) -> None:
    data = bytearray(database_file(home).read_bytes())
    data[4096:5200] = b"\xff" * 1104
    database_file(home).write_bytes(data)
    assert database(home).level == "problem"


def test_databases_of_others(home: Path) -> None:
    path = database_file(home)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE meta SET schema_version = 99")
        connection.commit()
    newer = database(home)
    assert (newer.level, newer.remedy) == ("problem", "pip install --upgrade arkor")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE meta SET schema_version = 1")
        connection.commit()
    assert SCHEMA_VERSION > 1
    assert (database(home).level, "migrates it" in database(home).sentence) == ("ok", True)
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE recipes (name)")
    assert "is not a database of arkor" in database(home).sentence
    path.write_bytes(b"")
    assert database(home) == Diagnostic("database", "ok", "empty; the backend fills it when it starts")
    path.unlink()
    path.mkdir()
    assert database(home).level == "problem"


def test_a_database_that_somebody_holds(home: Path) -> None:
    with closing(sqlite3.connect(database_file(home))) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        assert database(home).level == "warning"


def test_folders_and_rows(home: Path) -> None:
    create_run(home, JOB, None)
    assert told(home)[1:] == [("ok", "1 folder; 1 not in the database yet; the backend adds them when it starts")]
    run_folder(home, JOB["id"]).job.write_text("{")
    (level, sentence), last = told(home)[1:]
    assert (level, sentence.endswith("job.json does not describe a run")) == ("warning", True)
    assert last == ("ok", "1 folder")


def test_a_log_that_is_damaged(home: Path) -> None:
    create_run(home, JOB, None).events.write_text("hello\n")
    assert any("events.jsonl is damaged" in sentence for level, sentence in told(home) if level == "warning")


def test_rows_without_folders(tmp_path: Path) -> None:
    home = tmp_path / "arkor-home"
    fill(home, 5)
    (next((home / "runs").iterdir())).rmdir()
    assert any("1 run of the database without a folder" in sentence for _, sentence in told(home))


def test_leftovers(home: Path) -> None:
    folder = create_run(home, JOB, None)
    folder.pid.write_text("1")
    (folder.path / "checkpoints" / ".5.partial").mkdir(parents=True)
    (home / "datasets" / ".abc.part").write_bytes(b"x" * 2_000_000)
    (home / "arkor.db.aside-1").write_bytes(b"x")
    found = [finding for finding in check_store(home, False) if finding.subject == "leftovers"]
    assert [finding.level for finding in found] == ["warning", "ok"]
    assert found[0].sentence.startswith("3 files of killed processes (2.0 MB)")
    assert "1 older database kept" in found[1].sentence
    assert not [finding for finding in check_store(home, True) if finding.subject == "leftovers"]
    (home / "datasets" / ".abc.part").unlink()
    with LogWriter(folder.events):  # its worker lives
        assert not [f for f in check_store(home, False) if f.subject == "leftovers" and f.level == "warning"]


def test_the_starter_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    folder = home / "models" / "smollm2-135m-instruct"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    (found,) = check_starter(home)
    assert (found.level, "is converted" in found.sentence) == ("ok", True)


@pytest.mark.slow
def test_ten_thousand_runs_are_looked_through_in_seconds(tmp_path: Path) -> None:
    fill(tmp_path / "home", 10_000)
    began = time.monotonic()
    command = [sys.executable, "-m", "arkor.backend.diagnostics", "home", "--home", str(tmp_path / "home")]
    findings = json.loads(subprocess.check_output(command, text=True))
    assert time.monotonic() - began < 60
    assert findings[0] == {"subject": "database", "level": "ok", "sentence": "intact, with 10000 runs"}


def test_the_engine_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_SERVING_ENGINE", "transformers")
    expected = ("ok", "computed by transformers: ARKOR_SERVING_ENGINE selects it")
    assert (check_engine("cpu").level, check_engine("cpu").sentence) == expected
    monkeypatch.setenv("ARKOR_SERVING_ENGINE", "llama")
    assert (check_engine("cpu").level, check_engine("cpu").remedy) == ("problem", "unset ARKOR_SERVING_ENGINE")
    monkeypatch.delenv("ARKOR_SERVING_ENGINE")
    assert check_engine("cuda").sentence == "computed by transformers: it uses the GPU"
    if installed_version() is not None:
        assert check_engine("cpu").sentence.startswith("computed by llama.cpp (xllamacpp 2026.10.")


def test_a_missing_engine_is_a_problem_only_if_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    load_library.cache_clear()
    monkeypatch.setattr(library, "installed_version", lambda: None)
    remedy = "Run: pip install 'arkor[llama-cpp]'"
    assert check_engine("cpu").level == "ok"
    assert check_engine("cpu").sentence == f"computed by transformers: xllamacpp is not installed. {remedy}"
    monkeypatch.setenv("ARKOR_SERVING_ENGINE", "llama.cpp")
    assert (check_engine("cpu").level, check_engine("cpu").remedy) == ("problem", remedy)
    load_library.cache_clear()
