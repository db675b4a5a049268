"""The store: who may see what, what is there once only, and databases that are not ours."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from arkor.backend.store.schema import MIGRATIONS, AlreadyExists, StartupError
from arkor.backend.store.store import JobRecord, Store, new_id
from arkor.protocol.accounts import Project
from arkor.protocol.jobs import JobStatus


@pytest.fixture
def project(store: Store) -> Project:
    user = store.user("the owner's token")
    assert user
    (org,) = store.orgs(user)
    found = store.project(org, "default")
    assert found
    return found


def make_job(project: Project, name: str = "a run") -> JobRecord:
    return JobRecord(
        new_id(), project.org_id, project.id, name, JobStatus.QUEUED, {"model": "m"}, "2026-01-01T00:00:00Z"
    )


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
    with pytest.raises(AlreadyExists):
        store.create_project(org, "Again", "default")


def test_a_job_comes_back_as_it_went(store: Store, project: Project) -> None:
    job = make_job(project)
    store.add_job(job, None)
    assert store.job(project, job.id) == job
    store.update_job(job.id, status="failed", error="why", completed_at="later")
    assert store.job(project, job.id) == evolve(job, status=JobStatus.FAILED, error="why", completed_at="later")


def test_jobs_are_newest_first_and_the_unfinished_in_order(store: Store, project: Project) -> None:
    jobs = [make_job(project, str(number)) for number in range(4)]
    for job in jobs:
        store.add_job(job, None)
    store.update_job(jobs[1].id, status="completed")
    assert [job.name for job in store.jobs(project, 9)] == ["3", "2", "1", "0"]
    assert [job.name for job in store.unfinished()] == ["0", "2", "3"]
    assert store.count_unfinished() == 3


def test_a_key_makes_one_job(store: Store, project: Project) -> None:
    job = make_job(project)
    store.add_job(job, "key")
    with pytest.raises(AlreadyExists):
        store.add_job(make_job(project), "key")
    assert store.job_of_key(project, "key") == job
    assert store.job_of_key(project, "other") is None


def test_another_project_sees_nothing(store: Store, project: Project) -> None:
    _, _, org = store.create_identity()
    other = store.create_project(org, "Other", "other")
    job = make_job(project)
    store.add_job(job, "key")
    store.add_dataset(project, "0" * 64, "rows.jsonl", 1)
    assert store.job(other, job.id) is None
    assert store.job_of_key(other, "key") is None
    assert store.jobs(other, 9) == []
    assert not store.has_dataset(other, "0" * 64)
    assert store.has_dataset(project, "0" * 64)


def test_many_threads_may_write(store: Store, project: Project) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: store.add_job(make_job(project), None), range(40)))
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
    with pytest.raises(StartupError, match=r"arkor\.db cannot be used"):
        Store(path)
    assert path.read_bytes() == before


def test_a_torn_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "arkor.db"
    store = Store(path)
    store.ensure_owner("token")
    store.close()
    torn = bytearray(path.read_bytes())
    torn[3 * 4096 : 5 * 4096] = b"\x07" * (2 * 4096)
    path.write_bytes(torn)
    with pytest.raises(StartupError, match=r"arkor\.db (is damaged|cannot be used).*--rebuild"):
        Store(path)
    assert path.read_bytes() == torn


def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "arkor.db")
    connection.execute("CREATE TABLE songs (title)")
    connection.close()
    with pytest.raises(StartupError, match="not a database of arkor"):
        Store(tmp_path / "arkor.db")


#: The tables as arkor 0.1 made them.
VERSION_1 = """
CREATE TABLE meta (schema_version INTEGER NOT NULL);
CREATE TABLE users (id VARCHAR(32) NOT NULL, email VARCHAR(320), created_at VARCHAR(32) NOT NULL, PRIMARY KEY (id));
CREATE TABLE orgs (id VARCHAR(32) NOT NULL, slug VARCHAR(64) NOT NULL, name VARCHAR(200) NOT NULL,
    owner_id VARCHAR(32) NOT NULL, PRIMARY KEY (id), UNIQUE (slug), FOREIGN KEY(owner_id) REFERENCES users (id));
CREATE INDEX ix_orgs_owner_id ON orgs (owner_id);
CREATE TABLE tokens (hash VARCHAR(64) NOT NULL, user_id VARCHAR(32) NOT NULL, created_at VARCHAR(32) NOT NULL,
    PRIMARY KEY (hash), FOREIGN KEY(user_id) REFERENCES users (id));
CREATE TABLE projects (id VARCHAR(32) NOT NULL, org_id VARCHAR(32) NOT NULL, slug VARCHAR(64) NOT NULL,
    name VARCHAR(200) NOT NULL, PRIMARY KEY (id), UNIQUE (org_id, slug), FOREIGN KEY(org_id) REFERENCES orgs (id));
CREATE TABLE jobs (seq INTEGER NOT NULL, id VARCHAR(32) NOT NULL, org_id VARCHAR(32) NOT NULL,
    project_id VARCHAR(32) NOT NULL, name VARCHAR(200) NOT NULL, status VARCHAR(16) NOT NULL, config TEXT NOT NULL,
    error TEXT, created_at VARCHAR(32) NOT NULL, started_at VARCHAR(32), completed_at VARCHAR(32),
    cancel_requested_at VARCHAR(32), idempotency_key VARCHAR(255), PRIMARY KEY (seq),
    UNIQUE (project_id, idempotency_key), UNIQUE (id), FOREIGN KEY(org_id) REFERENCES orgs (id),
    FOREIGN KEY(project_id) REFERENCES projects (id));
CREATE INDEX ix_jobs_status ON jobs (status);
CREATE INDEX ix_jobs_project_id ON jobs (project_id);
CREATE TABLE datasets (project_id VARCHAR(32) NOT NULL, id VARCHAR(64) NOT NULL, filename VARCHAR(255) NOT NULL,
    bytes INTEGER NOT NULL, created_at VARCHAR(32) NOT NULL, PRIMARY KEY (project_id, id, filename),
    FOREIGN KEY(project_id) REFERENCES projects (id));
INSERT INTO meta VALUES (1);
INSERT INTO users VALUES ('local', NULL, '1');
INSERT INTO orgs VALUES ('o', 'local', 'Local', 'local');
INSERT INTO projects VALUES ('p', 'o', 'default', 'Default');
INSERT INTO jobs VALUES (1, 'j1', 'o', 'p', 'one', 'completed', '{"model": "m"}', NULL, '1', '2', '3', NULL, 'k');
INSERT INTO jobs VALUES (2, 'j2', 'o', 'p', 'two', 'queued', '{"model": "m"}', NULL, '4', NULL, NULL, NULL, NULL);
"""


def old_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)


def schema_of(path: Path) -> tuple[int, dict[str, Any]]:
    """The version, and what can be told of every table and index however it came about."""
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("SELECT schema_version FROM meta").fetchone()
        found = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
        output: dict[str, Any] = {name: sql for kind, name, sql in found if kind == "index" and sql}
        for name in (name for kind, name, _ in found if kind == "table" and not name.startswith("sqlite_")):
            for what in ("table_info", "foreign_key_list", "index_list"):
                rows = connection.execute(f"PRAGMA {what}({name})").fetchall()
                output[f"{name}: {what}"] = sorted(str(row[1:]) for row in rows)
        return version, output


def test_an_older_schema_is_brought_up_to_date_and_a_copy_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "arkor.db"
    old_database(path)
    before = schema_of(path)
    store = Store(path)
    assert [job.id for job in store.unfinished()] == ["j2"]
    job = store.job_of_key(Project("p", "default", "Default", "o"), "k")
    assert job is not None
    assert (job.status, job.completed_at) == (JobStatus.COMPLETED, "3")
    store.close()
    Store(tmp_path / "new.db").close()
    assert schema_of(path) == schema_of(tmp_path / "new.db") != before
    assert schema_of(tmp_path / "arkor.db.v1.bak") == before


def test_so_is_the_one_in_between(tmp_path: Path) -> None:
    path = tmp_path / "arkor.db"
    old_database(path)
    with closing(sqlite3.connect(path)) as connection:
        for statement in (*MIGRATIONS[2], "UPDATE meta SET schema_version = 2"):
            connection.execute(statement)
        connection.commit()
    store = Store(path)
    assert [job.id for job in store.unfinished()] == ["j2"]
    assert store.deployments.all() == []
    store.close()
    Store(tmp_path / "new.db").close()
    assert schema_of(path) == schema_of(tmp_path / "new.db")
    assert schema_of(tmp_path / "arkor.db.v2.bak")[0] == 2


#: Opens a database in a child for each line, which dies at that statement; says how the child ended.
DYING = """
import json, os, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from arkor.backend.store.store import Store

def open_and_die(path, left):
    @event.listens_for(Engine, "before_cursor_execute")
    def count(*_):
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(9)
    Store(Path(path))
    os._exit(0)

for line in sys.stdin:
    if (child := os.fork()) == 0:
        open_and_die(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def dying() -> Iterator[Callable[[Path, int], int]]:
    """Opens a database, dies at a statement, if there are so many; returns the exit code."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", DYING], stdin=pipe, stdout=pipe, text=True) as mother:

        def die(path: Path, statements: int) -> int:
            assert mother.stdin is not None
            assert mother.stdout is not None
            mother.stdin.write(json.dumps([str(path), statements]) + "\n")
            mother.stdin.flush()
            return int(mother.stdout.readline())

        yield die


@pytest.mark.slow
def test_a_migration_that_is_killed_anywhere_has_not_begun_or_is_done(
    tmp_path: Path, dying: Callable[[Path, int], int]
) -> None:
    """The process dies at each statement in turn; whoever opens the database next finds it whole."""
    for made, path in ((True, tmp_path / "old.db"), (False, tmp_path / "new.db")):
        for statements in range(100):
            path.unlink(missing_ok=True)
            if made:
                old_database(path)
            code = dying(path, statements)
            store = Store(path)
            store.ensure_owner("token")
            assert store.count_unfinished() == (1 if made else 0)
            store.close()
            assert code in (0, 9)
            if code == 0:
                break
        assert code == 0
        assert statements > 5


def test_the_finished_runs_are_not_gone_through_for_the_unfinished(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "arkor.db")) as connection:
        query = "EXPLAIN QUERY PLAN SELECT * FROM jobs WHERE status IN ('queued', 'running') ORDER BY seq"
        assert "ix_jobs_unfinished" in str(connection.execute(query).fetchall())


def test_a_migration_without_room_for_the_copy_leaves_the_database_alone(tmp_path: Path) -> None:
    path = tmp_path / "arkor.db"
    old_database(path)
    (tmp_path / "arkor.db.v1.bak" / "in the way").mkdir(parents=True)
    with pytest.raises(StartupError, match="cannot be copied"):
        Store(path)
    assert schema_of(path)[0] == 1


def test_jobs_come_in_pages(store: Store, project: Project) -> None:
    jobs = [make_job(project, str(number)) for number in range(5)]
    for job in jobs:
        store.add_job(job, None)
    assert [job.name for job in store.jobs(project, 2)] == ["4", "3"]
    assert [job.name for job in store.jobs(project, 2, before=jobs[3])] == ["2", "1"]
    assert [job.name for job in store.jobs(project, 2, before=jobs[0])] == []
    assert store.jobs(project, 9, prefix=jobs[1].id[:12]) == [jobs[1]]
    assert store.jobs(project, 9, prefix="%") == []


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "arkor.db").close()
    connection = sqlite3.connect(tmp_path / "arkor.db")
    connection.execute("UPDATE meta SET schema_version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(StartupError, match="newer arkor"):
        Store(tmp_path / "arkor.db")


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="unable to open"):
        Store(tmp_path / "nowhere" / "arkor.db")


def test_an_error_is_stored_without_nul(store: Store, project: Project) -> None:
    job = JobRecord("a" * 32, project.org_id, project.id, "n", JobStatus.QUEUED, {}, "t")
    store.add_job(job, None)
    store.update_job(job.id, status="failed", error="ValueError: a\0b")
    found = store.job(project, job.id)
    assert found is not None
    assert found.error == "ValueError: a\ufffdb"
