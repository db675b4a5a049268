"""The store made again from run folders, and runs that come from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from attrs import evolve

from arkor.backend.runs.event_log import LogWriter, read_events, read_last
from arkor.backend.runs.paths import (
    RunFolder,
    create_run,
    database_file,
    datasets_folder,
    prepare,
    remove_leftovers,
    run_folder,
    runs_folder,
)
from arkor.backend.store.run_registry import InvalidRunFolder, import_run, manifest, quarantine, register_orphans
from arkor.backend.store.store import JobRecord, Store, new_id
from arkor.protocol.accounts import Org, Project
from arkor.protocol.events import CheckpointSaved, Event, TrainingCompleted, TrainingLog, TrainingStarted
from arkor.protocol.jobs import Artifact, JobStatus
from tests.backend.caller import CONFIG, owner, stranger
from tests.conftest import Backend, start_backend

TIME = "2026-01-02T03:04:05.678Z"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    prepare(tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    store = Store(database_file(home))
    store.ensure_owner("token")
    yield store
    store.close()


LOCAL, DEFAULT = Org("", "local", "Local"), Project("", "default", "Default", "")


def make_run(
    home: Path, *events: Event, org: Org = LOCAL, project: Project = DEFAULT, key: str | None = None
) -> JobRecord:
    """A run's folder of which no store knows."""
    job = JobRecord(new_id(), "", "", "a run", JobStatus.QUEUED, {"model": "m", "datasetSource": {"name": "r"}}, TIME)
    folder = create_run(home, manifest(job, org, project, key), None)
    with LogWriter(folder.events) as log:
        for event in events:
            log.append(evolve(event, job_id=job.id))
    return job


def finished() -> tuple[Event, ...]:
    artifact = Artifact("checkpoint", 1, "checkpoints/1", 2)
    return (
        TrainingStarted("", "1", 2),
        TrainingLog("", "2", 1, 0.5),
        CheckpointSaved("", "3", 1, (artifact,)),
        TrainingCompleted("", "4", {"loss": 0.5}, (artifact,)),
    )


def the_project(store: Store) -> tuple[Org, Project]:
    user = store.user("token")
    assert user is not None
    org = store.orgs(user)[0]
    project = store.project(org, "default")
    assert project is not None
    return org, project


def test_a_folder_without_a_row_gets_one(home: Path, store: Store) -> None:
    queued, ended = make_run(home, key="key"), make_run(home, *finished())
    assert sorted(register_orphans(home, store)) == sorted([queued.id, ended.id])
    assert register_orphans(home, store) == []
    _, project = the_project(store)
    assert [job.id for job in store.unfinished()] == [queued.id]
    assert store.job_of_key(project, "key") == store.unfinished()[0]
    found = store.job(project, ended.id)
    assert found is not None
    assert (found.status, found.started_at, found.completed_at) == (JobStatus.COMPLETED, "1", "4")
    assert found.config == ended.config


def test_runs_come_back_into_the_projects_that_they_were_in(home: Path, store: Store) -> None:
    job = make_run(home, org=Org("", "anon-1", "Personal"), project=Project("", "mine", "Mine", ""))
    register_orphans(home, store)
    user = store.user("token")
    assert user is not None
    org = next(org for org in store.orgs(user) if org.slug == "anon-1")  # its own token is lost
    project = store.project(org, "mine")
    assert project is not None
    assert [found.id for found in store.jobs(project, 9)] == [job.id]


def test_a_key_that_was_used_again_stays_with_the_later_run(home: Path, store: Store) -> None:
    first, second = make_run(home, key="key"), make_run(home, key="key")
    assert len(register_orphans(home, store)) == 2
    assert {job.id for job in store.unfinished()} == {first.id, second.id}


def test_an_uploaded_file_is_known_again(home: Path, store: Store) -> None:
    digest = "a" * 64
    (datasets_folder(home) / digest).write_text("{}")
    job = make_run(home)
    folder = run_folder(home, job.id)
    data = folder.read_job()
    data["config"]["datasetSource"] = {"type": "blob", "url": f"/v1/datasets/{digest}/my%20rows.jsonl"}
    folder.job.write_text(json.dumps(data))
    register_orphans(home, store)
    assert store.has_dataset(the_project(store)[1], digest)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"id": 1}', b'{"id": "x", "name": "n", "createdAt": "", "config": {}}']
)
def test_a_folder_that_is_no_run_is_left_alone(home: Path, store: Store, content: bytes) -> None:
    folder = runs_folder(home) / "something"
    folder.mkdir()
    (folder / "job.json").write_bytes(content)
    (runs_folder(home) / "empty").mkdir()
    assert register_orphans(home, store) == []
    assert (folder / "job.json").read_bytes() == content


def test_a_folder_by_the_name_of_another_run_is_left_alone(home: Path, store: Store) -> None:
    job = make_run(home)
    shutil.copytree(run_folder(home, job.id).path, run_folder(home, new_id()).path)
    assert register_orphans(home, store) == [job.id]


def test_a_run_whose_log_is_damaged_is_told_of(home: Path, store: Store) -> None:
    job = make_run(home)
    run_folder(home, job.id).events.write_bytes(b"what is this\n")
    register_orphans(home, store)
    found = store.job(the_project(store)[1], job.id)
    assert found is not None
    assert found.status == JobStatus.FAILED
    assert "damaged" in (found.error or "")


def test_a_folder_that_was_not_put_together_is_swept_away(home: Path, store: Store) -> None:
    half = runs_folder(home) / f".{new_id()}.new"
    half.mkdir()
    (half / "job.json").write_text("{")
    assert register_orphans(home, store) == []
    remove_leftovers(home)
    assert list(runs_folder(home).iterdir()) == []


def test_the_old_database_is_kept_aside(home: Path) -> None:
    assert quarantine(home) is None
    for number in (1, 2):
        database_file(home).write_text(str(number))
        aside = quarantine(home)
        assert aside == home / f"arkor.db.aside-{number}"
        assert aside.read_text() == str(number)


# A run from elsewhere


@pytest.fixture
def other_home(tmp_path: Path) -> Path:
    prepare(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def make_copy(elsewhere: Path, *events: Event) -> RunFolder:
    folder = run_folder(elsewhere, make_run(elsewhere, *events, org=Org("", "other", "Other"), key="key").id)
    for path in (folder.checkpoint(1), folder.final):
        path.mkdir(parents=True)
        (path / "adapter_model.safetensors").write_text("weights")
    (folder.path / "secret.json").write_text("hush")
    return folder


def test_a_run_opens_here_with_all_that_it_has(home: Path, store: Store, other_home: Path) -> None:
    source = make_copy(other_home, *finished())
    org, project = the_project(store)
    job = import_run(home, store, source.path, project, org)
    assert store.job(project, job.id) == job
    assert (job.status, job.completed_at) == (JobStatus.COMPLETED, "4")
    folder = run_folder(home, job.id)
    assert read_events(folder.events) == read_events(source.events)
    assert (folder.final / "adapter_model.safetensors").read_text() == "weights"
    assert (folder.checkpoint(1) / "adapter_model.safetensors").read_text() == "weights"
    assert not folder.secret.exists()
    assert folder.read_job()["org"]["slug"] == "local"
    with pytest.raises(InvalidRunFolder, match="here already"):
        import_run(home, store, source.path, project, org)


def test_a_run_that_had_not_ended_has_ended_here(home: Path, store: Store, other_home: Path) -> None:
    source = make_copy(other_home, *finished()[:-1])
    with source.events.open("ab") as log:
        log.write(b'{"type":"training.log","torn')
    org, project = the_project(store)
    job = import_run(home, store, source.path, project, org)
    assert job.status == JobStatus.FAILED
    assert "had not ended when it was copied" in (job.error or "")
    last = read_last(run_folder(home, job.id).events)
    assert last is not None
    assert (last["step"], [artifact["step"] for artifact in last["artifacts"]]) == (1, [1])
    assert store.unfinished() == []


def no_log(folder: RunFolder) -> None:
    folder.events.unlink()


def no_job(folder: RunFolder) -> None:
    folder.job.unlink()


def traversal(folder: RunFolder) -> None:
    folder.job.write_text(json.dumps({**folder.read_job(), "id": "../../outside"}))


def link(folder: RunFolder) -> None:
    (folder.final / "config.json").symlink_to("/etc/hostname")


def linked_folder(folder: RunFolder) -> None:
    shutil.rmtree(folder.final)
    folder.final.symlink_to("/etc")


def linked_log(folder: RunFolder) -> None:
    folder.events.rename(folder.path / "away")
    folder.events.symlink_to(folder.path / "away")


def pipe(folder: RunFolder) -> None:
    os.mkfifo(folder.final / "adapter_config.json")


def foreign_log(folder: RunFolder) -> None:
    folder.events.write_bytes(b'{"type":"training.log","jobId":"another","timestamp":"","step":1}\n')


def garbage_log(folder: RunFolder) -> None:
    folder.events.write_bytes(b"\xff\n")


@pytest.mark.parametrize(
    "spoil", [no_log, no_job, traversal, link, linked_folder, linked_log, pipe, foreign_log, garbage_log]
)
def test_what_is_no_run_is_not_taken_in(
    home: Path, store: Store, other_home: Path, spoil: Callable[[RunFolder], None]
) -> None:
    source = make_copy(other_home, *finished())
    spoil(source)
    org, project = the_project(store)
    with pytest.raises(InvalidRunFolder, match=r"\.$") as refusal:
        import_run(home, store, source.path, project, org)
    assert str(source.path) in str(refusal.value)
    assert list(runs_folder(home).iterdir()) == []
    assert store.job_ids() == set()


def test_a_run_at_work_is_not_taken_in(home: Path, store: Store, other_home: Path) -> None:
    source = make_copy(other_home, *finished()[:2])
    org, project = the_project(store)
    with LogWriter(source.events), pytest.raises(InvalidRunFolder, match="at work"):
        import_run(home, store, source.path, project, org)


# With real servers


@pytest.mark.slow
def test_a_lost_database_comes_back_by_itself_and_a_garbled_one_when_asked_for(backend: Backend) -> None:
    caller = owner(backend)
    jobs = [caller.submit(maxSteps=2, name=str(number)) for number in range(3)]
    before = [caller.until(job, "completed") for job in jobs]
    other = stranger(backend)
    theirs = other.submit(maxSteps=2)
    other.until(theirs, "completed")
    for how in ("lost", "garbled"):
        backend.process.kill()
        backend.process.wait()
        database_file(backend.home).unlink() if how == "lost" else database_file(backend.home).write_bytes(b"?" * 9999)
        if how == "garbled":
            command = [sys.executable, "-m", "arkor.backend", "--home", str(backend.home)]
            refused = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
            assert refused.returncode == 2
            assert "--rebuild" in refused.stderr
            done = subprocess.run([*command, "--rebuild"], check=True, capture_output=True, text=True, timeout=30)
            assert "4 runs from their folders" in done.stdout
            assert database_file(backend.home).with_name("arkor.db.aside-1").read_bytes() == b"?" * 9999
        backend = start_backend(backend.home, "--engine", "scripted")
        caller = owner(backend)
        after = [caller.job(job) for job in jobs]
        for old, new in zip(before, after, strict=True):
            assert {k: v for k, v in old.items() if k not in ("orgId", "projectId")} == {
                k: v for k, v in new.items() if k not in ("orgId", "projectId")
            }
        assert list(caller.events(jobs[0]))[-1].event == "end"
        scope = {**other.scope}
        assert evolve(caller, scope=scope).job(theirs)["status"] == "completed"  # it is the owner's now
    backend.process.kill()
    backend.process.wait()


@pytest.mark.slow
def test_there_is_no_rebuilding_under_a_server(backend: Backend) -> None:
    command = [sys.executable, "-m", "arkor.backend", "--home", str(backend.home), "--rebuild"]
    refused = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert refused.returncode == 3
    assert database_file(backend.home).exists()


@pytest.mark.slow
def test_a_submission_that_the_server_died_of_is_found_by_its_key(backend: Backend) -> None:
    """The folder was made, the row was not, and the caller asks again."""
    caller = owner(backend)
    backend.process.kill()
    backend.process.wait()
    job = make_run(backend.home, key="my key")
    backend = start_backend(backend.home, "--engine", "scripted")
    caller = owner(backend)
    assert caller.submit(key="my key") == job.id
    assert caller.until(job.id, "completed")
    assert len(caller.call("GET", "/v1/jobs").json()["jobs"]) == 1
    backend.process.kill()
    backend.process.wait()


@pytest.mark.slow
def test_a_database_that_another_program_holds_stops_neither_reading_nor_the_queue(backend: Backend) -> None:
    caller = owner(backend)
    running = caller.submit(maxSteps=3)
    caller.until(running, "completed")
    with closing(sqlite3.connect(database_file(backend.home), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = caller.call("POST", "/v1/jobs", json={"name": "n", "config": CONFIG})
        assert (answer.status_code, answer.json()["code"]) == (503, "busy")
        assert str(database_file(backend.home)) in answer.json()["error"]
        assert caller.job(running)["status"] == "completed"
        other.execute("ROLLBACK")
    assert caller.until(caller.submit(maxSteps=1), "completed")
    assert len(list(runs_folder(backend.home).iterdir())) == 2
