"""Users, organisations, projects, jobs and uploaded files, in one database; deployments are in `deployments.py`.

SQLAlchemy Core on SQLite; one process writes (the server), from several threads. What a run did is not here but in its
event log: the status of a job is a projection of that, written down when it is final.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import asdict, frozen
from sqlalchemy import URL, Connection, Row, create_engine, func, select
from sqlalchemy.dialects.sqlite import insert as insert_or
from sqlalchemy.exc import DBAPIError, IntegrityError

from arkor.backend.store.deployments import DeploymentStore
from arkor.backend.store.schema import (
    UNFINISHED,
    StoreError,
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
from arkor.protocol.events import now
from arkor.protocol.jobs import JobStatus


class AlreadyExists(Exception):
    """What was to be created is there already."""


@frozen
class UserRecord:
    id: str
    email: str | None


@frozen
class OrgRecord:
    id: str
    slug: str
    name: str


@frozen
class ProjectRecord:
    id: str
    slug: str
    name: str
    org_id: str


@frozen
class JobRecord:
    """A job as it was submitted, and as it ended if it did; in between, its log knows better than `status`."""

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


#: The user whose home it is.
OWNER_ID = "local"

_JOB = [column for column in jobs.c if column.name not in ("seq", "idempotency_key")]


def new_id() -> str:
    """An id that cannot be guessed."""
    return uuid.uuid4().hex


def new_token() -> str:
    return f"arkor_{secrets.token_urlsafe(32)}"


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


class Store:
    """The database behind the server. Methods may be called from any thread; raises `StoreError` on opening alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = create_engine(URL.create("sqlite", database=str(path)))
        self.deployments = DeploymentStore(self._engine)
        enable_explicit_transactions(self._engine)
        try:
            prepare_database(self._engine, path)
        except DBAPIError as error:
            self.close()
            problem = str(error.orig).rstrip(".")
            raise StoreError(f"{path} cannot be used: {problem}. {_opening_advice(path, error)}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.deployments.flush()
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            yield connection

    # Who calls

    def ensure_owner(self, token: str) -> None:
        """The user of this home, with org `local` and project `default`, reached by `token`."""
        with self._engine.begin() as connection:
            if connection.scalar(select(users.c.id).where(users.c.id == OWNER_ID)) is None:
                org = _add_identity(connection, OWNER_ID, "local", "Local")
                connection.execute(projects.insert().values(id=new_id(), org_id=org.id, slug="default", name="Default"))
            values = {"hash": _hash(token), "user_id": OWNER_ID, "created_at": now()}
            connection.execute(insert_or(tokens).values(values).on_conflict_do_nothing())

    def create_identity(self) -> tuple[str, UserRecord, OrgRecord]:
        """A new user with an org of their own, and the token that reaches them: shown this once."""
        token, user_id = new_token(), new_id()
        with self._engine.begin() as connection:
            org = _add_identity(connection, user_id, f"anon-{user_id[:12]}", "Personal")
            connection.execute(tokens.insert().values(hash=_hash(token), user_id=user_id, created_at=now()))
        return token, UserRecord(user_id, None), org

    def user(self, token: str) -> UserRecord | None:
        """Who the token belongs to."""
        digest = _hash(token)
        query = select(tokens.c.hash, users.c.id, users.c.email).join(users).where(tokens.c.hash == digest)
        with self._reading() as connection:
            row = connection.execute(query).first()
        return UserRecord(row.id, row.email) if row and hmac.compare_digest(row.hash, digest) else None

    def orgs(self, user: UserRecord) -> list[OrgRecord]:
        """The orgs that the user is a member of."""
        with self._reading() as connection:
            rows = connection.execute(select(orgs).where(orgs.c.owner_id == user.id)).all()
        return [OrgRecord(row.id, row.slug, row.name) for row in rows]

    # Projects

    def projects(self, org: OrgRecord) -> list[ProjectRecord]:
        with self._reading() as connection:
            rows = connection.execute(select(projects).where(projects.c.org_id == org.id).order_by(projects.c.slug))
            return [ProjectRecord(row.id, row.slug, row.name, row.org_id) for row in rows]

    def project(self, org: OrgRecord, slug: str) -> ProjectRecord | None:
        query = select(projects).where(projects.c.org_id == org.id, projects.c.slug == slug)
        with self._reading() as connection:
            row = connection.execute(query).first()
        return ProjectRecord(row.id, row.slug, row.name, row.org_id) if row else None

    def project_of_id(self, project_id: str) -> ProjectRecord | None:
        with self._reading() as connection:
            row = connection.execute(select(projects).where(projects.c.id == project_id)).first()
        return ProjectRecord(row.id, row.slug, row.name, row.org_id) if row else None

    def create_project(self, org: OrgRecord, name: str, slug: str) -> ProjectRecord:
        """Raises `AlreadyExists` when the org has a project of that slug."""
        project = ProjectRecord(new_id(), slug, name, org.id)
        try:
            with self._engine.begin() as connection:
                values = {"id": project.id, "org_id": org.id, "slug": slug, "name": name}
                connection.execute(projects.insert().values(values))
        except IntegrityError as error:
            raise AlreadyExists(slug) from error
        return project

    def ensure_project(self, org_slug: str, org_name: str, slug: str, name: str) -> ProjectRecord:
        """The project by these slugs; where there is none, the home's owner gets one. `ensure_owner` comes first."""
        with self._engine.begin() as connection:
            row = connection.execute(select(orgs).where(orgs.c.slug == org_slug)).first()
            org = OrgRecord(row.id, row.slug, row.name) if row else OrgRecord(new_id(), org_slug, org_name)
            if row is None:
                connection.execute(orgs.insert().values(id=org.id, slug=org.slug, name=org.name, owner_id=OWNER_ID))
        try:
            return self.create_project(org, name, slug)
        except AlreadyExists:
            found = self.project(org, slug)
            assert found is not None  # noqa: S101 - it is what the slug is taken by
            return found

    # Jobs

    def add_job(self, job: JobRecord, idempotency_key: str | None) -> None:
        """Raises `AlreadyExists` when there is a job of that id, or the project has one of that key."""
        values = {
            **asdict(job, recurse=False),
            "status": job.status.value,
            "config": json.dumps(job.config),
            "idempotency_key": idempotency_key,
        }
        try:
            with self._engine.begin() as connection:
                connection.execute(jobs.insert().values(values))
        except IntegrityError as error:
            raise AlreadyExists(idempotency_key) from error

    def job(self, project: ProjectRecord, job_id: str) -> JobRecord | None:
        query = select(*_JOB).where(jobs.c.id == job_id, jobs.c.project_id == project.id)
        with self._reading() as connection:
            row = connection.execute(query).first()
        return _job_from_row(row) if row else None

    def job_of_key(self, project: ProjectRecord, idempotency_key: str) -> JobRecord | None:
        """The job that was submitted with this key."""
        condition = (jobs.c.project_id == project.id, jobs.c.idempotency_key == idempotency_key)
        with self._reading() as connection:
            row = connection.execute(select(*_JOB).where(*condition)).first()
        return _job_from_row(row) if row else None

    def jobs(
        self, project: ProjectRecord, limit: int, *, before: JobRecord | None = None, prefix: str = ""
    ) -> list[JobRecord]:
        """Newest first: at most `limit`, those that are older than `before`, those whose id begins with `prefix`."""
        query = select(*_JOB).where(jobs.c.project_id == project.id).order_by(jobs.c.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(jobs.c.seq < select(jobs.c.seq).where(jobs.c.id == before.id).scalar_subquery())
        if prefix:
            query = query.where(jobs.c.id.startswith(prefix, autoescape=True))
        with self._reading() as connection:
            return [_job_from_row(row) for row in connection.execute(query)]

    def job_ids(self) -> set[str]:
        """The ids of everybody's jobs."""
        with self._reading() as connection:
            return set(connection.scalars(select(jobs.c.id)))

    def unfinished(self) -> list[JobRecord]:
        """The queued and the running jobs of everybody, in the order of submission."""
        with self._reading() as connection:
            return [
                _job_from_row(row) for row in connection.execute(select(*_JOB).where(UNFINISHED).order_by(jobs.c.seq))
            ]

    def count_unfinished(self) -> int:
        with self._reading() as connection:
            return connection.scalar(select(func.count()).select_from(jobs).where(UNFINISHED)) or 0

    def update_job(self, job_id: str, **values: str | None) -> None:
        """Write down what the log says (`status`, `error`, `started_at`, `completed_at`), or `cancel_requested_at`."""
        with self._engine.begin() as connection:
            connection.execute(jobs.update().where(jobs.c.id == job_id).values(**values))

    def cancel_requested(self, job_id: str) -> bool:
        with self._reading() as connection:
            return connection.scalar(select(jobs.c.cancel_requested_at).where(jobs.c.id == job_id)) is not None

    # Uploaded files

    def add_dataset(self, project: ProjectRecord, digest: str, filename: str, size: int) -> None:
        """`size` in bytes; adding the same file again changes nothing."""
        values = {
            "project_id": project.id,
            "id": digest,
            "filename": filename,
            "bytes": size,
            "created_at": now(),
        }
        with self._engine.begin() as connection:
            connection.execute(insert_or(datasets).values(values).on_conflict_do_nothing())

    def has_dataset(self, project: ProjectRecord, digest: str) -> bool:
        query = select(datasets.c.id).where(datasets.c.project_id == project.id, datasets.c.id == digest)
        with self._reading() as connection:
            return connection.execute(query).first() is not None


def _opening_advice(path: Path, error: DBAPIError) -> str:
    """What to do about a database that cannot be opened."""
    if is_disk_error(error):
        return "Free some space, or let it be written, and try again."
    return recovery_advice(path) if isinstance(error.orig, sqlite3.DatabaseError) and path.exists() else "Mend that."


def is_disk_error(error: DBAPIError) -> bool:
    """Whether the database could not be written for want of space or permission."""
    return _mentions(error, "full", "ioerr", "readonly", "cantopen", "i/o")


def is_busy(error: DBAPIError) -> bool:
    """Whether another program held the database for longer than one waits."""
    return _mentions(error, "busy", "locked")


def is_corrupted(error: DBAPIError) -> bool:
    """Whether the file is no database, or not a whole one."""
    return _mentions(error, "corrupt", "notadb")


def _mentions(error: DBAPIError, *markers: str) -> bool:
    name = getattr(error.orig, "sqlite_errorname", "") or str(error.orig)
    return any(marker in name.lower() for marker in markers)


def _add_identity(connection: Connection, user_id: str, slug: str, name: str) -> OrgRecord:
    org = OrgRecord(new_id(), slug, name)
    connection.execute(users.insert().values(id=user_id, created_at=now()))
    connection.execute(orgs.insert().values(id=org.id, slug=slug, name=name, owner_id=user_id))
    return org


def _job_from_row(row: Row[Any]) -> JobRecord:
    values = dict(row._mapping)
    return JobRecord(**{**values, "status": JobStatus(values["status"]), "config": json.loads(values["config"])})
