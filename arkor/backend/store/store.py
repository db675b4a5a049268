"""Users, organisations, projects, jobs and uploaded files in one SQLite database.

Only the server process writes, from several threads. The history of a run is in its event log; the
status of a job is derived from the log and stored when it is final.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sqlite3
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import asdict, frozen
from sqlalchemy import URL, Connection, create_engine, func, select
from sqlalchemy.dialects.sqlite import insert as insert_or
from sqlalchemy.exc import DBAPIError, IntegrityError

from arkor.backend.store.deployments import DeploymentStore, hash_key
from arkor.backend.store.schema import (
    UNFINISHED,
    AlreadyExists,
    StartupError,
    Tables,
    datasets,
    enable_explicit_transactions,
    jobs,
    orgs,
    prepare_database,
    projects,
    recovery_advice,
    tokens,
    users,
)
from arkor.protocol.accounts import Org, Project, User
from arkor.protocol.events import now
from arkor.protocol.jobs import JobStatus


@frozen
class JobRecord:
    """A job; while it runs, its log is more recent than `status`."""

    id: str
    org_id: str
    project_id: str
    name: str
    status: JobStatus
    config: Mapping[str, Any]
    created_at: str
    error: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    cancel_requested_at: str | None = None


#: The id of the user who owns the home.
OWNER_ID = "local"

_JOB = [column for column in jobs.c if column.name not in ("seq", "idempotency_key")]


def new_id() -> str:
    return uuid.uuid4().hex


def new_token() -> str:
    return f"arkor_{secrets.token_urlsafe(32)}"


class Store(Tables):
    """The database of the server. Methods are thread-safe; opening it raises `StartupError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        super().__init__(create_engine(URL.create("sqlite", database=str(path))))
        self.deployments = DeploymentStore(self._engine)
        enable_explicit_transactions(self._engine)
        try:
            prepare_database(self._engine, path)
        except DBAPIError as error:
            self.close()
            raise StartupError(f"{path} cannot be used ({error.orig})", remedy=_opening_advice(path, error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.deployments.flush()
        self._engine.dispose()

    # Users

    def ensure_owner(self, token: str) -> None:
        """Add the owner with org `local` and project `default`, and the token, if missing."""
        with self._engine.begin() as connection:
            if connection.scalar(select(users.c.id).where(users.c.id == OWNER_ID)) is None:
                org = _add_identity(connection, OWNER_ID, "local", "Local")
                connection.execute(projects.insert().values(id=new_id(), org_id=org.id, slug="default", name="Default"))
            values = {"hash": hash_key(token), "user_id": OWNER_ID, "created_at": now()}
            connection.execute(insert_or(tokens).values(values).on_conflict_do_nothing())

    def create_identity(self) -> tuple[str, User, Org]:
        """Add a user with their own org; return the token, which is stored as a hash."""
        token, user_id = new_token(), new_id()
        with self._engine.begin() as connection:
            org = _add_identity(connection, user_id, f"anon-{user_id[:12]}", "Personal")
            connection.execute(tokens.insert().values(hash=hash_key(token), user_id=user_id, created_at=now()))
        return token, User(user_id), org

    def user(self, token: str) -> User | None:
        digest = hash_key(token)
        query = select(tokens.c.hash, users.c.id, users.c.email).join(users).where(tokens.c.hash == digest)
        valid = [row for row in self._rows(query) if hmac.compare_digest(row.hash, digest)]
        return User(valid[0].id, valid[0].email) if valid else None

    def orgs(self, user: User) -> list[Org]:
        rows = self._rows(select(orgs).where(orgs.c.owner_id == user.id))
        return [Org(row.id, row.slug, row.name) for row in rows]

    # Projects

    def projects(self, org: Org) -> list[Project]:
        return self._projects(projects.c.org_id == org.id)

    def project(self, org: Org, slug: str) -> Project | None:
        return next(iter(self._projects(projects.c.org_id == org.id, projects.c.slug == slug)), None)

    def project_of_id(self, project_id: str) -> Project | None:
        return next(iter(self._projects(projects.c.id == project_id)), None)

    def _projects(self, *conditions: Any) -> list[Project]:
        rows = self._rows(select(projects).where(*conditions).order_by(projects.c.slug))
        return [Project(row.id, row.slug, row.name, row.org_id) for row in rows]

    def create_project(self, org: Org, name: str, slug: str) -> Project:
        """Add a project. Raise `AlreadyExists` if the org has a project with this slug."""
        project = Project(new_id(), slug, name, org.id)
        try:
            self._write(projects.insert().values(id=project.id, org_id=org.id, slug=slug, name=name))
        except IntegrityError as error:
            raise AlreadyExists(slug) from error
        return project

    def ensure_project(self, org_slug: str, org_name: str, slug: str, name: str) -> Project:
        """Return the project with these slugs; a new one belongs to the owner."""
        with self._engine.begin() as connection:
            row = connection.execute(select(orgs).where(orgs.c.slug == org_slug)).first()
            org = Org(row.id, row.slug, row.name) if row else Org(new_id(), org_slug, org_name)
            if row is None:
                connection.execute(orgs.insert().values(id=org.id, slug=org.slug, name=org.name, owner_id=OWNER_ID))
        try:
            return self.create_project(org, name, slug)
        except AlreadyExists:
            found = self.project(org, slug)
            assert found is not None  # noqa: S101 - the insert failed because it exists
            return found

    # Jobs

    def add_job(self, job: JobRecord, idempotency_key: str | None) -> None:
        """Add a job. Raise `AlreadyExists` if its id, or the key in its project, exists."""
        values = {
            **asdict(job, recurse=False),
            "status": job.status.value,
            "config": json.dumps(job.config),
            "error": _without_nul(job.error),
            "idempotency_key": idempotency_key,
        }
        try:
            self._write(jobs.insert().values(values))
        except IntegrityError as error:
            raise AlreadyExists(idempotency_key) from error

    def job(self, project: Project, job_id: str) -> JobRecord | None:
        return next(iter(self._jobs(jobs.c.project_id == project.id, jobs.c.id == job_id)), None)

    def job_of_key(self, project: Project, idempotency_key: str) -> JobRecord | None:
        conditions = (jobs.c.project_id == project.id, jobs.c.idempotency_key == idempotency_key)
        return next(iter(self._jobs(*conditions)), None)

    def jobs(
        self, project: Project, limit: int, *, before: JobRecord | None = None, prefix: str = ""
    ) -> list[JobRecord]:
        """Return at most `limit` jobs, newest first: before `before`, ids with `prefix`."""
        conditions = [jobs.c.project_id == project.id]
        if before is not None:
            conditions.append(jobs.c.seq < select(jobs.c.seq).where(jobs.c.id == before.id).scalar_subquery())
        if prefix:
            conditions.append(jobs.c.id.startswith(prefix, autoescape=True))
        return self._jobs(*conditions, newest=limit)

    def unfinished(self) -> list[JobRecord]:
        """Return the queued and running jobs of all projects in order of submission."""
        return self._jobs(UNFINISHED)

    def _jobs(self, *conditions: Any, newest: int | None = None) -> list[JobRecord]:
        """Return jobs in order of submission, or the `newest` ones in reverse order."""
        query = select(*_JOB).where(*conditions).order_by(jobs.c.seq if newest is None else jobs.c.seq.desc())
        return [
            JobRecord(**{**row._mapping, "status": JobStatus(row.status), "config": json.loads(row.config)})
            for row in self._rows(query.limit(newest))
        ]

    def job_ids(self) -> set[str]:
        return {row.id for row in self._rows(select(jobs.c.id))}

    def count_unfinished(self) -> int:
        return int(self._rows(select(func.count()).select_from(jobs).where(UNFINISHED))[0][0])

    def update_job(self, job_id: str, **values: str | None) -> None:
        """Set `status`, `error`, `started_at`, `completed_at` or `cancel_requested_at`."""
        values = {name: _without_nul(value) for name, value in values.items()}
        self._write(jobs.update().where(jobs.c.id == job_id).values(**values))

    def cancel_requested(self, job_id: str) -> bool:
        query = select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.cancel_requested_at.is_not(None))
        return bool(self._rows(query))

    # Uploaded files

    def add_dataset(self, project: Project, digest: str, filename: str, size: int) -> None:
        """Add an uploaded file of `size` bytes; adding it again has no effect."""
        row = {"project_id": project.id, "id": digest, "filename": filename, "bytes": size, "created_at": now()}
        self._write(insert_or(datasets).values(row).on_conflict_do_nothing())

    def has_dataset(self, project: Project, digest: str) -> bool:
        query = select(datasets.c.id).where(datasets.c.project_id == project.id, datasets.c.id == digest)
        return bool(self._rows(query))


def _without_nul(text: str | None) -> str | None:
    """Return the message of a library as every database can store it."""
    return text.replace("\0", "\ufffd") if text else text


def _opening_advice(path: Path, error: DBAPIError) -> str:
    """Return what to do about a database that cannot be opened, as a `remedy`."""
    if database_problem(error) == "disk":
        return "free some space or fix its permissions, and try again."
    if isinstance(error.orig, sqlite3.DatabaseError) and path.exists():
        return recovery_advice(path)
    return "fix the cause and try again."


#: Problem → parts of the names of SQLite's errors.
_DATABASE_PROBLEMS = {
    "disk": ("full", "ioerr", "readonly", "cantopen", "i/o"),
    "busy": ("busy", "locked"),
    "damaged": ("corrupt", "notadb"),
}


def database_problem(error: DBAPIError) -> str | None:
    """Return "disk" for space or permissions, "busy" for a lock, "damaged", or None."""
    name = (getattr(error.orig, "sqlite_errorname", "") or str(error.orig)).lower()
    return next((key for key, parts in _DATABASE_PROBLEMS.items() if any(part in name for part in parts)), None)


def _add_identity(connection: Connection, user_id: str, slug: str, name: str) -> Org:
    org = Org(new_id(), slug, name)
    connection.execute(users.insert().values(id=user_id, created_at=now()))
    connection.execute(orgs.insert().values(id=org.id, slug=slug, name=name, owner_id=user_id))
    return org
