"""The error of a run whose worker died without reporting one."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from arkor.backend.compute.child_process import describe_exit
from arkor.backend.workers.supervisor import crash_message, oom_remedy, stderr_tail, wait_for_exit


def test_the_children_of_a_worker_end_with_it() -> None:
    command = ["bash", "-c", "sleep 60 & echo $!; exit 3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as worker:
        assert worker.stdout is not None
        child = psutil.Process(int(worker.stdout.readline()))
        assert wait_for_exit(worker) == 3
        child.wait(30)


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (0, "with exit code 0"),
        (13, "with exit code 13"),
        (-signal.SIGKILL, "by the signal SIGKILL"),
        (-signal.SIGSEGV, "by the signal SIGSEGV"),
        (143, "by the signal SIGTERM"),
        (255, "with exit code 255"),
    ],
)
def test_the_cause(exit_code: int, words: str) -> None:
    assert describe_exit(exit_code) == words


@pytest.mark.parametrize(
    ("config", "setting"),
    [
        ({}, "batch_size=4 (it was 8)"),
        ({"batchSize": 3}, "batch_size=1 (it was 3)"),
        ({"batchSize": 1}, "max_length=512 (it was 1024)"),
        ({"batchSize": 1, "maxLength": 128}, "a smaller model"),
    ],
)
def test_the_smallest_change_that_needs_less_memory(config: dict[str, Any], setting: str) -> None:
    assert setting in oom_remedy(config)


@pytest.mark.parametrize(
    ("how", "log", "memory"),
    [
        ("by the signal SIGKILL", "", True),
        ("with exit code 1", "torch.OutOfMemoryError: CUDA out of memory.", True),
        ("by the signal SIGABRT", "terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("by the signal SIGSEGV", "Fatal Python error: Segmentation fault", False),
    ],
)
def test_memory_is_named_where_it_may_be_the_cause(tmp_path: Path, how: str, log: str, memory: bool) -> None:
    file = tmp_path / "worker.log"
    file.write_text(log)
    sentence = crash_message(how, 3, file, {})
    assert how in sentence
    assert "3 times in a row" in sentence
    assert log in sentence
    assert ("batch_size" in sentence) == memory


def test_the_tail_of_the_log_is_short(tmp_path: Path) -> None:
    file = tmp_path / "worker.log"
    assert stderr_tail(file) == "It left no log."
    file.write_bytes(b"\xff line\n" * 100_000 + b"1\n2\n3\n4\n5\n\n")
    assert stderr_tail(file).endswith("with:\n1\n2\n3\n4\n5")
    file.write_bytes(b"x" * 100_000)
    assert len(stderr_tail(file)) < 1200
    file.write_bytes(b"")
    assert stderr_tail(file).endswith("is empty.")
