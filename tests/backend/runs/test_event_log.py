"""The event log: what goes in comes out, whatever is torn off; one writer; cursors of every kind."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arkor.backend.runs.event_log import (
    LogLocked,
    LogStatus,
    LogWriter,
    is_finished,
    read_events,
    read_last,
    read_status,
)
from arkor.files import is_locked
from arkor.protocol.events import (
    TYPE_OF,
    CheckpointSaved,
    Event,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailedEvent,
    TrainingLog,
    TrainingPreparing,
    TrainingResumed,
    TrainingStarted,
    TrainingWarning,
    decode_event,
)
from arkor.protocol.jobs import Artifact, JobStatus

TIME = "2026-01-02T03:04:05.678Z"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
numbers = st.none() | st.floats(allow_nan=False)
steps = st.integers(0, 10**9)
events = st.one_of(
    st.builds(TrainingPreparing, texts, texts, texts),
    st.builds(TrainingStarted, texts, texts, st.none() | steps),
    st.builds(TrainingResumed, texts, texts, steps, texts),
    st.builds(TrainingWarning, texts, texts, texts),
    st.builds(TrainingLog, texts, texts, steps, numbers, numbers, numbers, numbers, numbers),
    st.builds(CheckpointSaved, texts, texts, steps, st.none() | st.just((Artifact("checkpoint", 1, "a", 2),))),
    st.builds(TrainingFailedEvent, texts, texts, texts.filter(bool), st.none() | steps),
)


def write(path: Path, *events: Event) -> list[int]:
    with LogWriter(path) as log:
        return [log.append(event) for event in events]


def read_all(path: Path, after: int = 0, limit_bytes: int = 65536) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while more := read_events(path, after, limit_bytes):
        found += more
        after = more[-1][0]
    return found


def log_event(step: int, **numbers: float) -> TrainingLog:
    return TrainingLog("job", TIME, step, **numbers)


@settings(deadline=None)
@given(st.lists(events, max_size=20), st.integers(1, 300))
def test_events_come_back_as_they_were(written: list[Event], limit_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        ids = write(path, *written)
        found = read_all(path, limit_bytes=limit_bytes)
    assert [id_ for id_, _ in found] == ids
    assert [json.loads(line)["type"] for _, line in found] == [TYPE_OF[type(event)] for event in written]
    assert [decode_event(json.loads(line)) for _, line in found] == written


@settings(deadline=None)
@given(st.lists(events, min_size=1, max_size=8), st.data())
def test_a_log_torn_anywhere_is_a_prefix_and_can_be_written_on(written: list[Event], data: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        ids = write(path, *written)
        cut = data.draw(st.integers(0, ids[-1]))
        with path.open("r+b") as file:
            file.truncate(cut)
        whole = [id_ for id_ in ids if id_ <= cut]
        assert [id_ for id_, _ in read_all(path)] == whole
        with LogWriter(path) as log:
            assert log.tail.id == (whole[-1] if whole else 0)
            last = log.append(log_event(7))
        assert [id_ for id_, _ in read_all(path)] == [*whole, last]


@settings(deadline=None)
@given(st.lists(events, min_size=1, max_size=8), st.data())
def test_any_cursor_goes_on_with_the_next_line(written: list[Event], data: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        starts = [0, *write(path, *written)]
        cursor = data.draw(st.integers(0, starts[-1] + 100))
        first = next((start for start in starts if start >= cursor), starts[-1])
        assert [id_ for id_, _ in read_all(path, cursor)] == [id_ for id_ in starts if id_ > first]


def test_a_line_longer_than_the_limit_still_comes_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, TrainingPreparing("job", TIME, "x" * 100_000), log_event(1))
    (id_, line), *_ = read_events(path, 0, 10)
    assert id_ == len(line) + 1 > 100_000
    assert json.loads(read_events(path, 5, 10)[0][1])["type"] == "training.log"


def test_a_cursor_beyond_the_end_waits_for_the_log_to_pass_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    end = write(path, log_event(1))[-1]
    assert read_events(path, end + 5) == []
    ids = write(path, log_event(2), log_event(3))
    assert [id_ for id_, _ in read_all(path, end + 5)] == ids[1:]


def test_there_is_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert not is_locked(path)
    with LogWriter(path):
        assert is_locked(path)
        with pytest.raises(LogLocked):
            LogWriter(path)
    assert not is_locked(path)
    LogWriter(path).close()


def test_a_writer_in_another_process_holds_the_log_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = "import sys, time; from arkor.backend.runs.event_log import *; w = LogWriter(Path(sys.argv[1])); print(1); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-u", "-c", code, str(path)], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        assert is_locked(path)
        child.kill()
        with LogWriter(path, wait=True) as log:
            assert log.tail.id == 0


def test_a_loss_that_is_not_finite_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, log_event(1, loss=math.nan, eval_loss=-math.inf))
    data = json.loads(read_events(path)[0][1], parse_constant=pytest.fail)
    assert data["nonFinite"] == {"loss": "nan", "evalLoss": "-inf"}


def test_a_line_that_the_disk_did_not_take_leaves_no_trace(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from arkor.backend.runs.event_log import *
from arkor.protocol.events import TrainingPreparing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with LogWriter(Path(sys.argv[1])) as log:
    log.append(TrainingPreparing("job", "", "fits"))
    end = log.tail.id
    resource.setrlimit(resource.RLIMIT_FSIZE, (end + 100, resource.RLIM_INFINITY))
    try:
        log.append(TrainingPreparing("job", "", "x" * 500))
    except OSError:
        assert log.tail.id == end
    log.append(TrainingPreparing("", "", ""))
"""
    path = tmp_path / "events.jsonl"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert [json.loads(line)["message"] for _, line in read_all(path)] == ["fits", ""]


def test_standing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert read_status(path) == LogStatus(JobStatus.QUEUED)
    assert read_last(path) is None
    assert is_finished(path)
    write(path)
    assert read_status(path) == LogStatus(JobStatus.QUEUED)
    assert not is_finished(path)
    write(path, TrainingStarted("job", "1"), log_event(1))
    assert read_status(path) == LogStatus(JobStatus.RUNNING, started_at="1")
    assert read_last(path) == {"type": "training.log", "jobId": "job", "timestamp": TIME, "step": 1}
    assert not is_finished(path)
    write(path, TrainingFailedEvent("job", "2", "x" * 50_000))
    assert read_status(path) == LogStatus(JobStatus.FAILED, "x" * 50_000, "1", "2")
    assert is_finished(path)


def test_an_older_log_of_a_cancelled_run_is_understood(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text('{"type":"training.cancelled","jobId":"job","timestamp":"1"}\n')
    assert read_status(events) == LogStatus(JobStatus.CANCELLED, completed_at="1")
    assert decode_event(json.loads(events.read_text())) == TrainingCancelled("job", "1")


@pytest.mark.parametrize(
    ("event", "status"),
    [(TrainingCompleted("job", "1"), JobStatus.COMPLETED), (TrainingCancelled("job", "1"), JobStatus.CANCELLED)],
)
def test_a_run_that_only_ended_never_began(tmp_path: Path, event: Event, status: JobStatus) -> None:
    write(tmp_path / "events.jsonl", event)
    assert read_status(tmp_path / "events.jsonl") == LogStatus(status, completed_at="1")
