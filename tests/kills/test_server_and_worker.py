"""Server and worker die as a seed has it, and in the end nothing of it is to be seen but that it is told.

`pytest --schedules=200 tests/kills` runs many more seeds than `make test` does.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from arkor.backend.runs.event_log import read_status
from arkor.backend.runs.log_queries import read_log_progress
from arkor.backend.runs.paths import RunFolder, database_file
from arkor.protocol.jobs import JobStatus
from tests.conftest import Backend
from tests.kills.schedule import FaultSchedule, forget_fork, run_count

pytestmark = pytest.mark.slow

STEPS, SAVE_STEPS = 40, 8

#: What is of one run alone, or of the moment.
PASSING = ("timestamp", "jobId", "samplesPerSecond")


@pytest.fixture
def schedule(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultSchedule]:
    monkeypatch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "0.02")
    here = FaultSchedule(tmp_path / "arkor-home", random.Random(seed))
    yield here
    here.clean_up()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    """The same run in peace."""
    here = FaultSchedule(tmp_path_factory.mktemp("peace") / "home", random.Random(0))
    here.submit(STEPS, SAVE_STEPS)
    here.wait_until_finished(60)
    yield here.folders()[0]
    here.clean_up()


def test_nothing_is_lost_and_nothing_is_doubled(schedule: FaultSchedule, undisturbed: RunFolder, seed: int) -> None:
    for _ in range(2):
        schedule.submit(STEPS, SAVE_STEPS)
    try:
        for _ in range(schedule.rng.randint(2, 6)):
            schedule.step()
        schedule.wait_until_finished(60)
        for folder in schedule.folders():
            check_whatever_came_of_it(schedule, folder, undisturbed)
        check_store(schedule)
        check_watchers(schedule)
        for copy in schedule.copies:
            check_copy(schedule, copy, undisturbed)
    except BaseException:
        print(f"seed {seed}", *schedule.log_lines, sep="\n")
        raise


def lines_of(folder: RunFolder) -> list[dict[str, Any]]:
    data = folder.events.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def told(lines: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    """The events of these types without what differs from run to run."""
    return [{k: v for k, v in line.items() if k not in PASSING} for line in lines if line["type"] in kinds]


def check_whatever_came_of_it(disaster: FaultSchedule, folder: RunFolder, undisturbed: RunFolder) -> None:
    standing = read_status(folder.events)
    if standing.status == JobStatus.CANCELLED:
        assert folder.id in disaster.cancelled
        return check_cut_short(folder)
    if standing.status == JobStatus.FAILED:  # the seed has killed three workers before one came any further
        assert read_log_progress(folder).stalled_resumptions == 2
        assert "3 times in a row" in (standing.error or "")
        return check_cut_short(folder)
    if folder.read_job()["config"]["maxSteps"] == STEPS:
        return check_run(folder, undisturbed)
    lines = lines_of(folder)
    assert [line["step"] for line in lines if line["type"] == "training.log"] == list(range(1, 21))
    return None


def check_cut_short(folder: RunFolder) -> None:
    """The beginning of a run, its end, and the checkpoints that the end speaks of."""
    *lines, last = lines_of(folder)
    steps = [line["step"] for line in lines if line["type"] == "training.log"]
    assert steps == list(range(1, len(steps) + 1))
    assert last["type"] == "training.failed"
    for artifact in last["artifacts"]:
        assert (folder.path / artifact["path"]).is_dir()
    assert not folder.pid.exists()
    assert not folder.cancelled.exists()


def check_watchers(disaster: FaultSchedule) -> None:
    """Each has seen each event once, in order, by an id that rises."""
    for watcher, folder in zip(disaster.watchers, disaster.folders(), strict=True):
        ids = [int(frame.id or 0) for frame in watcher.frames]
        assert ids == sorted(set(ids))
        assert [frame.data for frame in watcher.frames] == lines_of(folder)


def check_run(folder: RunFolder, undisturbed: RunFolder) -> None:
    """Whole lines, every step once and in order, one beginning and one end, and the very files of the other run."""
    lines, peace = lines_of(folder), lines_of(undisturbed)
    assert {line["jobId"] for line in lines} == {folder.id}
    assert [line["step"] for line in lines if line["type"] == "training.log"] == list(range(1, STEPS + 1))
    for kinds in (("training.started", "training.log"), ("checkpoint.saved",), ("training.completed",)):
        assert told(lines, *kinds) == told(peace, *kinds)
    assert lines[-1]["type"] == "training.completed"
    assert content(folder.final) == content(undisturbed.final)
    assert not folder.pid.exists()
    assert not any(path.name.startswith(".") for path in folder.path.rglob("*"))


def content(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_store(disaster: FaultSchedule) -> None:
    """What the database says of each run is what the log of the run says; there are no other runs."""
    caller = disaster.serve()
    listed = {job["id"]: job for job in caller.call("GET", "/v1/jobs").json()["jobs"]}
    assert set(listed) == set(disaster.jobs)
    assert run_count(disaster.home) == len(disaster.jobs)
    for folder in disaster.folders():
        standing = read_status(folder.events)
        job = listed[folder.id]
        assert (job["status"], job.get("startedAt"), job["completedAt"]) == (
            standing.status.value,
            standing.started_at,
            standing.completed_at,
        )
    with closing(sqlite3.connect(database_file(disaster.home))) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def check_copy(disaster: FaultSchedule, copy: Path, undisturbed: RunFolder) -> None:
    """It opens, its logs are the beginning of the true ones, and its runs come to their end."""
    logs = {job: copy / "runs" / job / "events.jsonl" for job in disaster.jobs}
    for job, events in logs.items():
        if events.exists():
            assert (disaster.home / "runs" / job / "events.jsonl").read_bytes().startswith(events.read_bytes())
    begun = [job for job in logs if (copy / "runs" / job / "job.json").exists()]
    elsewhere = FaultSchedule(copy, disaster.rng, jobs=begun)
    elsewhere.cancelled = disaster.cancelled & set(begun)  # if the copy was made after that
    try:
        elsewhere.start_or_rebuild()
        elsewhere.wait_until_finished(60)
        for folder in elsewhere.folders():
            check_whatever_came_of_it(elsewhere, folder, undisturbed)
    finally:
        elsewhere.clean_up()
        forget_fork(copy)


def test_the_harness_sees_what_it_is_to_see(backend: Backend) -> None:
    """A line that is missing, doubled or torn does not pass."""
    here = FaultSchedule(backend.home, random.Random(0), server=backend)
    here.submit(STEPS, SAVE_STEPS)
    here.wait_until_finished(60)
    (folder,) = here.folders()
    peace = RunFolder(shutil.copytree(folder.path, backend.home / "peace"))
    check_run(folder, peace)
    whole = folder.events.read_bytes().splitlines(keepends=True)
    for broken in (whole[:10] + whole[11:], whole[:10] + whole[9:], [*whole[:-1], whole[-1][:-1]]):
        folder.events.write_bytes(b"".join(broken))
        with pytest.raises(AssertionError):
            check_run(folder, peace)
