"""A disk that takes nothing more: a checkpoint less and a warning, or an end in good order that can be resumed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arkor.backend.runs.paths import RunFolder, runs_folder
from arkor.backend.workers.worker import EXIT_LOG_UNWRITABLE
from tests.backend.crashing_worker import assert_same, events_of_type, finalize, lines, make_run
from tests.fakes.process_tree import ProcessTree
from tests.fakes.tiny_model import make_tiny_model

pytestmark = pytest.mark.slow

PAGE = 4096


def start(folder: RunFolder, output: Path, largest: int | None = None, pace: float = 0.0) -> subprocess.Popen[bytes]:
    home = folder.path.parent.parent
    command = [
        sys.executable,
        "-m",
        "arkor.backend.workers.worker",
        str(folder.path),
        "--home",
        str(home),
        "--engine",
        "scripted",
    ]
    limit = (largest or resource.RLIM_INFINITY,) * 2
    with output.open("ab") as file:
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            env={**os.environ, "ARKOR_SCRIPTED_STEP_SECONDS": str(pace), "ARKOR_KEEP_CHECKPOINTS": "2"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),  # noqa: PLW1509 - there is no other thread here
        )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The runs of this home are on a disk of a quarter of a megabyte."""
    runs = runs_folder(tmp_path)
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(runs)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk, and not everywhere")
    yield tmp_path
    subprocess.run(["umount", "-l", str(runs)], check=True)


def free_pages(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize // PAGE


def test_a_full_disk_costs_checkpoints_and_not_the_run(small_disk: Path) -> None:
    folder = make_run(small_disk, "run", maxSteps=30, saveSteps=2)
    ballast = folder.path.parent / "ballast"
    ballast.write_bytes(b"\0" * PAGE * (free_pages(folder.path) - 12))
    with start(folder, small_disk / "worker.log", pace=0.02) as process:
        deadline = time.monotonic() + 30
        while b"training.warning" not in folder.events.read_bytes():
            assert time.monotonic() < deadline
            assert process.poll() is None, (small_disk / "worker.log").read_text()
        ballast.unlink()
        assert process.wait(timeout=30) == 0
    warning = events_of_type(folder, "training.warning")[0]["message"]
    assert f"could not be saved in {folder.checkpoints}: the disk is full. The run continues without it." in warning
    assert [event["step"] for event in events_of_type(folder, "training.log")] == list(range(1, 31))
    saved = [event["step"] for event in events_of_type(folder, "checkpoint.saved")]
    assert saved[-1] == 30
    assert len(saved) < 15
    end = lines(folder)[-1]
    assert end["type"] == "training.completed"
    assert [artifact["step"] for artifact in end["artifacts"]] == [28, 30, 30]


def test_a_disk_that_stays_full_takes_what_came_of_it(small_disk: Path) -> None:
    """The training states make room for the final adapter."""
    folder = make_run(small_disk, "run", maxSteps=4, saveSteps=2)
    (folder.path.parent / "ballast").write_bytes(b"\0" * PAGE * (free_pages(folder.path) - 11))
    with start(folder, small_disk / "worker.log") as process:
        assert process.wait(timeout=30) == 0
    assert lines(folder)[-1]["type"] == "training.completed"
    assert (folder.final / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("full", [False, True])
def test_a_log_that_cannot_be_written_ends_the_worker_and_not_the_run(tmp_path: Path, full: bool) -> None:
    undisturbed = make_run(tmp_path, "undisturbed", maxSteps=12, saveSteps=3)
    with start(undisturbed, tmp_path / "undisturbed.log") as process:
        assert process.wait(timeout=30) == 0
    folder = make_run(tmp_path, "run", maxSteps=12, saveSteps=3)
    output = tmp_path / "worker.log"
    output.write_bytes(b"\0" * 1500 * full)  # where there is no room for a last word either
    with start(folder, output, largest=1500) as process:
        assert process.wait(timeout=30) == EXIT_LOG_UNWRITABLE
    if not full:
        assert "cannot be written: a file would be larger than the limit" in output.read_text()
    assert lines(folder)
    finalize(folder)
    with start(folder, output) as process:
        assert process.wait(timeout=30) == 0
    assert_same(folder, undisturbed)


def test_a_trainer_says_what_it_could_not_keep(tmp_path: Path, trainers: ProcessTree) -> None:
    """The libraries that write an adapter have errors of their own for a disk that does not take it."""
    model = make_tiny_model(tmp_path / "model")
    rows = [{"text": f"The number {number}."} for number in range(8)]
    folder = make_run(tmp_path, "run", rows, model=str(model), maxSteps=4, saveSteps=2)
    assert trainers.run(folder.path, largest=30_000).code == 0
    assert len(events_of_type(folder, "training.warning")) == 2
    assert "a file would be larger than the limit" in events_of_type(folder, "training.warning")[0]["message"]
    assert [event["step"] for event in events_of_type(folder, "training.log")] == [1, 2, 3, 4]
    end = lines(folder)[-1]
    assert end["type"] == "training.failed"
    assert "could not be written: a file would be larger than the limit" in end["error"]
    assert not list(folder.path.glob(".*partial"))
    assert not list(folder.checkpoints.iterdir())
