"""A project's entry point, read in a separate process."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from arkor.studio.entry_point import probe_entry, source_version
from tests.studio.conftest import ENTRY

TRAINER = 'Trainer("a", "org/model", {"type": "file", "path": "tickets.jsonl"})'


def write(folder: Path, text: str) -> Path:
    (folder / "train.py").write_text(text)
    return folder


def test_what_it_would_train(project: Path) -> None:
    entry = probe_entry(project)
    assert entry.fault is None
    assert entry.file == str(project / "train.py")
    assert entry.trainer is not None
    assert entry.trainer["name"] == "support-bot"
    config = entry.trainer["config"]
    assert (config["model"], config["maxSteps"], config["loraR"]) == ("org/small-model", 12, 16)
    size = (project / "tickets.jsonl").stat().st_size
    assert entry.trainer["data"] == {"name": "tickets.jsonl", "kind": "file", "bytes": size}


def test_an_edit_is_seen_at_the_next_look(project: Path) -> None:
    probe_entry(project)
    write(project, ENTRY.replace("max_steps=12", "max_steps=13"))
    entry = probe_entry(project)
    assert entry.trainer
    assert entry.trainer["config"]["maxSteps"] == 13


def test_the_version_follows_the_code_of_the_project(project: Path) -> None:
    before = source_version(project)
    (project / "tickets.jsonl").write_text("data is not code")
    (project / ".hidden").mkdir()
    (project / ".hidden" / "a.py").write_text("x = 1")
    assert source_version(project) == before
    seen = {before}
    (project / "inner").mkdir()
    for name in ("train.py", "helper.py", "inner/helper.py", "pyproject.toml"):
        (project / name).write_text("# edited")
        seen.add(source_version(project))
    (project / "helper.py").unlink()
    seen.add(source_version(project))
    assert len(seen) == 6


def test_data_that_is_not_there(project: Path) -> None:
    (project / "tickets.jsonl").unlink()
    entry = probe_entry(project)
    assert entry.trainer
    assert entry.trainer["data"]["bytes"] is None


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        (ENTRY.replace("max_steps", "max_step"), 4, "TypeError: Trainer() has no keyword 'max_step'; did you mean 'max_steps'?"),
        (ENTRY.replace("=12", "=-1"), 4, "max_steps: must be a whole number of at least 1, not -1"),
        ("import arkor\nx = (\n", 2, "SyntaxError: '(' was never closed"),
        ("import nothing_of_that_name\n", 1, "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def f():\n    raise ValueError('no')\n\n\nf()\n", 2, "ValueError: no"),
        ("raise SystemExit(3)\n", 1, "SystemExit: 3"),
        ("raise KeyboardInterrupt\n", 1, "KeyboardInterrupt"),
        ("x = 1\n", None, None),
    ],
)  # fmt: skip
def test_what_is_wrong_and_where(project: Path, text: str, line: int | None, sentence: str | None) -> None:
    entry = probe_entry(write(project, text))
    assert entry.trainer is None
    assert entry.fault
    assert (entry.fault["place"], entry.fault["line"]) == ("train.py", line)
    if sentence is not None:
        assert entry.fault["sentence"] == sentence
        assert [line, text.splitlines()[(line or 0) - 1]] in entry.fault["source"]
    else:
        assert "has neither `arkor = create_arkor(trainer=…)` nor `trainer = Trainer(…)`" in entry.fault["sentence"]


def test_no_entry_at_all(tmp_path: Path) -> None:
    entry = probe_entry(tmp_path)
    assert entry.file is None
    assert entry.fault
    assert "arkor init" in entry.fault["sentence"]


@pytest.mark.parametrize(
    "call",
    ["trainer.wait()", "trainer.start()", "with __import__('contextlib').suppress(Exception):\n    trainer.wait()"],
)
def test_looking_starts_nothing(project: Path, call: str) -> None:
    entry = probe_entry(write(project, f"from arkor import Trainer\ntrainer = {TRAINER}\n{call}\nopen('ran', 'w')\n"))
    assert entry.trainer
    assert entry.trainer["name"] == "a"
    assert not (project / "ran").exists()
    assert not (project / ".arkor").exists()


def test_what_it_prints_is_in_nobodys_way(project: Path) -> None:
    text = f"import os\nfrom arkor import Trainer\nprint('{{')\nos.write(1, b'x' * 200_000)\ntrainer = {TRAINER}\n"
    assert probe_entry(write(project, text)).trainer


def test_one_that_hangs_is_ended_with_all_that_it_has_started(project: Path) -> None:
    text = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open('child', 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    began = time.monotonic()
    entry = probe_entry(write(project, text), seconds=3)
    assert time.monotonic() - began < 30
    assert entry.fault
    assert entry.fault["sentence"].startswith("The import of the entry point took longer than 3 s and was stopped.")
    child = int((project / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_one_that_ends_python(project: Path) -> None:
    entry = probe_entry(write(project, "import os\nos._exit(7)\n"))
    assert entry.fault
    assert entry.fault["sentence"] == "The entry point ended its Python process (exit status 7)."


def test_threads_that_are_left_do_not_hold_it_up(project: Path) -> None:
    text = f"import threading, time\nfrom arkor import Trainer\nthreading.Thread(target=time.sleep, args=(600,)).start()\ntrainer = {TRAINER}\n"
    began = time.monotonic()
    assert probe_entry(write(project, text)).trainer
    assert time.monotonic() - began < 30
