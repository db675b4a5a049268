"""Entry files: an inspection returns the trainer and starts no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from arkor.trainer.project import inspect_entry, load_entry

ENTRY = """
import threading
from arkor import Trainer

trainer = Trainer("a run", "some-model", {"type": "huggingface", "name": "some/rows"}, progress=False)
"""
CATCHING = """
try:
    trainer.%s()
except Exception:
    pass
raise RuntimeError("the file goes on")
"""
ON_A_THREAD = """
threading.excepthook = lambda arguments: caught.append(arguments.exc_type.__name__)
caught = []
thread = threading.Thread(target=trainer.start)
thread.start()
thread.join()
assert caught == ["StartPrevented"], caught
"""


@pytest.mark.parametrize("call", ["start", "wait"])
def test_a_file_that_starts_its_run_is_inspected_without_starting_it(call: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(ENTRY + CATCHING % call)
    assert inspect_entry(tmp_path).name == "a run"


def test_a_start_on_another_thread_is_prevented_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)
    (tmp_path / "train.py").write_text(ENTRY + ON_A_THREAD)
    trainer = inspect_entry(tmp_path)
    assert (trainer.name, trainer.job_id) == ("a run", None)


def test_an_exception_of_the_file_is_raised(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(ENTRY + "raise RuntimeError('my mistake')")
    for load in (load_entry, inspect_entry):
        with pytest.raises(RuntimeError, match="my mistake"):
            load(tmp_path)
