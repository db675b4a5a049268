"""The list of jobs: its pages, and its speed with many runs."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from attrs import evolve

from arkor.backend.runs.event_log import LogWriter
from arkor.backend.runs.paths import create_run, database_file, prepare
from arkor.backend.store.run_registry import manifest
from arkor.backend.store.store import JobRecord, Store, new_id
from arkor.protocol.accounts import Org, Project
from arkor.protocol.events import TrainingCompleted, TrainingStarted
from arkor.protocol.jobs import JobStatus
from tests.backend.caller import Caller, owner
from tests.conftest import Backend, start_backend


def names(caller: Caller, **query: str) -> tuple[list[str], str | None]:
    answer = caller.call("GET", "/v1/jobs", params={**caller.scope, **query})
    assert answer.status_code == 200, answer.text
    page = answer.json()
    return [job["name"] for job in page["jobs"]], page.get("nextBefore")


def test_pages(backend: Backend) -> None:
    caller = owner(backend)
    jobs = [caller.submit(name=str(number), maxSteps=1) for number in range(5)]
    assert names(caller) == (["4", "3", "2", "1", "0"], None)
    first, cursor = names(caller, limit="2")
    assert (first, cursor) == (["4", "3"], jobs[3])
    caller.submit(name="later", maxSteps=1)  # does not shift the next page
    second, cursor = names(caller, limit="2", before=cursor or "")
    assert (second, cursor) == (["2", "1"], jobs[1])
    assert names(caller, limit="2", before=cursor or "") == (["0"], None)
    assert names(caller, idPrefix=jobs[2][:10]) == (["2"], None)


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "1.5", "٣", "9" * 5000])
def test_a_limit_that_is_none(caller: Caller, limit: str) -> None:
    answer = caller.call("GET", "/v1/jobs", params={**caller.scope, "limit": limit})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("limit: must be a whole number from 1 to 1000")


def test_a_cursor_that_is_none(caller: Caller) -> None:
    answer = caller.call("GET", "/v1/jobs", params={**caller.scope, "before": "nothing"})
    assert answer.status_code == 404


@pytest.mark.slow
def test_ten_thousand_runs(tmp_path: Path) -> None:
    home = tmp_path / "arkor-home"
    fill(home, 10_000)
    began = time.monotonic()
    backend = start_backend(home, "--engine", "scripted")
    assert time.monotonic() - began < 20
    caller = owner(backend)
    for query in ({}, {"limit": "1000"}, {"idPrefix": "ab"}):
        costs = []
        for _ in range(3):
            began = time.perf_counter()
            found, _cursor = names(caller, **query)
            costs.append(time.perf_counter() - began)
            assert found
        assert min(costs) < 3, (query, costs)
    job = caller.submit(maxSteps=1)
    assert caller.until(job, "completed", seconds=30)
    backend.process.kill()
    backend.process.wait()


def fill(home: Path, count: int) -> None:
    """Create a home with `count` finished runs: their rows and their folders."""
    prepare(home)
    store = Store(database_file(home))
    store.ensure_owner("token")
    project = store.ensure_project("local", "Local", "default", "Default")
    store.close()
    config = '{"model": "some/model", "datasetSource": {"type": "huggingface", "name": "rows"}, "maxSteps": 100}'
    rows = [
        (new_id(), project.org_id, project.id, f"run {n}", "completed", config, "2026", "2026", "2026")
        for n in range(count)
    ]
    with closing(sqlite3.connect(database_file(home))) as database:
        columns = "id, org_id, project_id, name, status, config, created_at, started_at, completed_at"
        database.executemany(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        database.commit()
    for row in rows:
        (home / "runs" / row[0]).mkdir()


@pytest.mark.slow
def test_the_list_tells_of_running_runs_what_their_logs_say(tmp_path: Path) -> None:
    """A page of runs that are unfinished in the database and finished in their logs."""
    home = tmp_path / "home"
    prepare(home)
    store = Store(database_file(home))
    store.ensure_owner("token")
    project = store.ensure_project("local", "Local", "default", "Default")
    for _ in range(100):
        job = JobRecord(new_id(), project.org_id, project.id, "run", JobStatus.QUEUED, {"model": "m"}, "2026")
        make_run(home, job, project)
        store.add_job(job, None)
    store.close()
    backend = start_backend(home, "--engine", "scripted")
    began = time.perf_counter()
    answer = owner(backend).call("GET", "/v1/jobs").json()["jobs"]
    assert time.perf_counter() - began < 5
    assert {job["status"] for job in answer} == {"completed"}
    backend.process.kill()
    backend.process.wait()


def make_run(home: Path, job: JobRecord, project: Project) -> None:
    folder = create_run(home, manifest(job, Org("", "local", "Local"), project, None), None)
    with LogWriter(folder.events) as log:
        for event in (TrainingStarted("", "1"), TrainingCompleted("", "2")):
            log.append(evolve(event, job_id=job.id))
