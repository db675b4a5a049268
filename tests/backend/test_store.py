"""The store: who may see what, what is there once only, and databases that are not ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from attrs import evolve

from arkor.backend.store import Job, Project, Store, StoreError, Taken, new_id
from arkor.jobs import JobStatus


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "arkor.db")
    store.ensure_owner("the owner's token")
    yield store
    store.close()


@pytest.fixture
def project(store: Store) -> Project:
    user = store.user("the owner's token")
    assert user
    (org,) = store.orgs(user)
    found = store.project(org, "default")
    assert found
    return found


def a_job(project: Project, name: str = "a run") -> Job:
    return Job(new_id(), project.org_id, project.id, name, JobStatus.QUEUED, {"model": "m"}, "2026-01-01T00:00:00Z")


def test_the_owner_is_there_once(store: Store) -> None:
    store.ensure_owner("the owner's token")
    store.ensure_owner("a second token")
    first, second = store.user("the owner's token"), store.user("a second token")
    assert first == second
    assert first is not None
    assert [org.slug for org in store.orgs(first)] == ["local"]


def test_an_identity_has_an_org_of_its_own(store: Store) -> None:
    token, user, org = store.create_identity()
    assert store.user(token) == user
    assert store.orgs(user) == [org]
    assert store.projects(org) == []


@pytest.mark.parametrize("token", ["", "wrong", "\0", "\ud800"])
def test_a_wrong_token_is_nobody(store: Store, token: str) -> None:
    assert store.user(token) is None


def test_no_token_is_in_the_file(store: Store, tmp_path: Path) -> None:
    token, _, _ = store.create_identity()
    content = (tmp_path / "arkor.db").read_bytes()
    assert token.encode() not in content
    assert b"the owner's token" not in content


def test_a_slug_is_taken_once_per_org(store: Store, project: Project) -> None:
    _, _, org = store.create_identity()
    store.create_project(org, "Default", "default")
    with pytest.raises(Taken):
        store.create_project(org, "Again", "default")


def test_a_job_comes_back_as_it_went(store: Store, project: Project) -> None:
    job = a_job(project)
    store.add_job(job, None)
    assert store.job(project, job.id) == job
    store.update_job(job.id, status="failed", error="why", completed_at="later")
    assert store.job(project, job.id) == evolve(job, status=JobStatus.FAILED, error="why", completed_at="later")


def test_jobs_are_newest_first_and_the_unfinished_in_order(store: Store, project: Project) -> None:
    jobs = [a_job(project, str(number)) for number in range(4)]
    for job in jobs:
        store.add_job(job, None)
    store.update_job(jobs[1].id, status="completed")
    assert [job.name for job in store.jobs(project, 9)] == ["3", "2", "1", "0"]
    assert [job.name for job in store.unfinished()] == ["0", "2", "3"]
    assert store.count_unfinished() == 3


def test_a_key_makes_one_job(store: Store, project: Project) -> None:
    job = a_job(project)
    store.add_job(job, "key")
    with pytest.raises(Taken):
        store.add_job(a_job(project), "key")
    assert store.job_of_key(project, "key") == job
    assert store.job_of_key(project, "other") is None


def test_another_project_sees_nothing(store: Store, project: Project) -> None:
    _, _, org = store.create_identity()
    other = store.create_project(org, "Other", "other")
    job = a_job(project)
    store.add_job(job, "key")
    store.add_dataset(project, "0" * 64, "rows.jsonl", 1)
    assert store.job(other, job.id) is None
    assert store.job_of_key(other, "key") is None
    assert store.jobs(other, 9) == []
    assert not store.has_dataset(other, "0" * 64)
    assert store.has_dataset(project, "0" * 64)


def test_many_threads_may_write(store: Store, project: Project) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: store.add_job(a_job(project), None), range(40)))
    assert store.count_unfinished() == 40


def test_a_database_is_opened_again(tmp_path: Path) -> None:
    first = Store(tmp_path / "arkor.db")
    first.ensure_owner("token")
    first.close()
    second = Store(tmp_path / "arkor.db")
    assert second.user("token") is not None
    second.close()


def test_garbage_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "arkor.db"
    path.write_bytes(b"this is no database at all, " * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"arkor\.db cannot be used"):
        Store(path)
    assert path.read_bytes() == before


def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "arkor.db")
    connection.execute("CREATE TABLE songs (title)")
    connection.close()
    with pytest.raises(StoreError, match="not one of arkor's"):
        Store(tmp_path / "arkor.db")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "arkor.db").close()
    connection = sqlite3.connect(tmp_path / "arkor.db")
    connection.execute("UPDATE meta SET schema_version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="newer arkor"):
        Store(tmp_path / "arkor.db")


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open"):
        Store(tmp_path / "nowhere" / "arkor.db")
