"""The tables of the database and their migrations.

A change of the tables is a new version with its statements in `MIGRATIONS`. A database is migrated
in one transaction, after a copy of it was made.
"""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

from arkor.errors import StructuredError
from arkor.files import atomic_writer
from arkor.settings import arkor_home

SCHEMA_VERSION = 3

metadata = MetaData()

meta = Table("meta", metadata, Column("schema_version", Integer, nullable=False))

users = Table(
    "users",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("email", String(320)),
    Column("created_at", String(32), nullable=False),
)

orgs = Table(
    "orgs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("slug", String(64), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("owner_id", ForeignKey("users.id"), nullable=False, index=True),
)

tokens = Table(
    "tokens",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False),
    Column("created_at", String(32), nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("org_id", ForeignKey("orgs.id"), nullable=False),
    Column("slug", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    UniqueConstraint("org_id", "slug"),
)

#: Selects unfinished jobs. SQLite uses the partial index only if the texts are equal.
UNFINISHED = sa.text("status IN ('queued', 'running')")

jobs = Table(
    "jobs",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("org_id", ForeignKey("orgs.id"), nullable=False),
    Column("project_id", ForeignKey("projects.id"), nullable=False, index=True),
    Column("name", String(200), nullable=False),
    Column("status", String(16), nullable=False),
    Column("config", Text, nullable=False),
    Column("error", Text),
    Column("created_at", String(32), nullable=False),
    Column("started_at", String(32)),
    Column("completed_at", String(32)),
    Column("cancel_requested_at", String(32)),
    Column("idempotency_key", String(255)),
    UniqueConstraint("project_id", "idempotency_key"),
)

Index("ix_jobs_unfinished", jobs.c.seq, sqlite_where=UNFINISHED, postgresql_where=UNFINISHED)

datasets = Table(
    "datasets",
    metadata,
    Column("project_id", ForeignKey("projects.id"), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("filename", String(255), primary_key=True),
    Column("bytes", Integer, nullable=False),
    Column("created_at", String(32), nullable=False),
)

deployments = Table(
    "deployments",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("org_id", ForeignKey("orgs.id"), nullable=False),
    Column("project_id", ForeignKey("projects.id"), nullable=False, index=True),
    Column("slug", String(50), nullable=False, unique=True),
    Column("target", Text, nullable=False),
    Column("auth_mode", String(16), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("run_retention_mode", String(16), nullable=False),
    Column("run_retention_days", Integer),
    Column("created_at", String(32), nullable=False),
    Column("updated_at", String(32), nullable=False),
)

deployment_keys = Table(
    "deployment_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("deployment_id", ForeignKey("deployments.id"), nullable=False, index=True),
    Column("label", String(80), nullable=False),
    Column("prefix", String(32), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("last_used_at", String(32)),
)

#: Version → the statements that migrate to it from the version before.
MIGRATIONS: dict[int, tuple[str, ...]] = {
    # An index for the query of the queue, which must not scan finished jobs.
    2: (
        "DROP INDEX ix_jobs_status",
        "CREATE INDEX ix_jobs_unfinished ON jobs (seq) WHERE status IN ('queued', 'running')",
    ),
    # Deployments and their keys.
    3: (
        "CREATE TABLE deployments (id VARCHAR(32) NOT NULL, org_id VARCHAR(32) NOT NULL, "
        "project_id VARCHAR(32) NOT NULL, slug VARCHAR(50) NOT NULL, target TEXT NOT NULL, "
        "auth_mode VARCHAR(16) NOT NULL, enabled BOOLEAN NOT NULL, run_retention_mode VARCHAR(16) NOT NULL, "
        "run_retention_days INTEGER, created_at VARCHAR(32) NOT NULL, updated_at VARCHAR(32) NOT NULL, "
        "PRIMARY KEY (id), FOREIGN KEY(org_id) REFERENCES orgs (id), "
        "FOREIGN KEY(project_id) REFERENCES projects (id), UNIQUE (slug))",
        "CREATE INDEX ix_deployments_project_id ON deployments (project_id)",
        "CREATE TABLE deployment_keys (id VARCHAR(32) NOT NULL, deployment_id VARCHAR(32) NOT NULL, "
        "label VARCHAR(80) NOT NULL, prefix VARCHAR(32) NOT NULL, hash VARCHAR(64) NOT NULL, "
        "enabled BOOLEAN NOT NULL, created_at VARCHAR(32) NOT NULL, last_used_at VARCHAR(32), "
        "PRIMARY KEY (id), FOREIGN KEY(deployment_id) REFERENCES deployments (id))",
        "CREATE INDEX ix_deployment_keys_deployment_id ON deployment_keys (deployment_id)",
    ),
}


class Tables:
    """Runs queries, each in a transaction of its own. Methods raise SQLAlchemy's errors."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def _rows(self, query: Any) -> Sequence[sa.Row[Any]]:
        with self._engine.connect() as connection:
            return connection.execute(query).all()

    def _write(self, statement: Any) -> int:
        """Return the number of rows that were changed."""
        with self._engine.begin() as connection:
            return connection.execute(statement).rowcount


class StartupError(StructuredError):
    """The backend cannot start; its process ends with `exit_code`."""

    def __init__(self, problem: str, *, remedy: str | None = None, exit_code: int = 2) -> None:
        super().__init__(problem, remedy=remedy)
        self.exit_code = exit_code


class AlreadyExists(Exception):
    """A row with the same key exists."""


def recovery_advice(path: Path) -> str:
    """Return what to do about a database that cannot be read, as a `remedy`."""
    home_setting = "" if path.parent == arkor_home() else f"ARKOR_HOME={shlex.quote(str(path.parent))} "
    return f"restore it from a backup, or rebuild it from the run folders: {home_setting}arkor doctor --rebuild"


def prepare_database(engine: sa.Engine, path: Path) -> None:
    """Create the tables, or migrate those of an older version. Raise `StartupError`."""
    with engine.begin() as connection:
        if (fault := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()) != "ok":
            problem = f"{path} is damaged ({str(fault).splitlines()[-1]})"
            raise StartupError(problem, remedy=recovery_advice(path))
        if not sa.inspect(connection).get_table_names():
            metadata.create_all(connection)
            connection.execute(meta.insert().values(schema_version=SCHEMA_VERSION))
            return
        has_version = sa.inspect(connection).has_table("meta")
        version = connection.scalar(sa.select(meta.c.schema_version)) if has_version else None
    if not isinstance(version, int) or version <= 0:
        raise StartupError(f"{path} is not a database of arkor.", remedy="Move it to another folder.")
    if version > SCHEMA_VERSION:
        problem = f"{path} was written by a newer arkor (schema {version}, this one supports {SCHEMA_VERSION})"
        raise StartupError(problem, remedy="pip install --upgrade arkor")
    if version < SCHEMA_VERSION:
        _migrate(engine, path, version)


def _migrate(engine: sa.Engine, path: Path, version: int) -> None:
    backup_database(path, path.with_name(f"{path.name}.v{version}.bak"))
    with engine.begin() as connection:
        for number in range(version + 1, SCHEMA_VERSION + 1):
            for statement in MIGRATIONS[number]:
                connection.exec_driver_sql(statement)
        connection.execute(meta.update().values(schema_version=SCHEMA_VERSION))


def backup_database(path: Path, target_file: Path) -> None:
    """Make a consistent copy of a database with SQLite's backup. Raise `StartupError`."""
    try:
        with (
            atomic_writer(target_file) as file,
            closing(sqlite3.connect(path)) as source,
            closing(sqlite3.connect(file.name)) as target,
        ):
            source.backup(target)
    except (OSError, sqlite3.Error) as error:
        raise StartupError(f"{path} cannot be copied to {target_file} before its migration: {error}.") from error


def enable_explicit_transactions(engine: sa.Engine) -> None:
    """Begin each transaction explicitly, so that it includes DDL; enforce foreign keys.

    By default the driver begins one at the first INSERT, and a server that is killed while it
    creates the tables leaves an incomplete schema.
    """

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")
