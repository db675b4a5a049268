"""Deployments and their keys in the database.

A key is stored as a hash; its plaintext is returned once, when it is created. The time of its last
use is kept in memory and written at most once a minute, so that requests need not wait for the
disk.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import threading
import uuid
from collections.abc import Mapping
from typing import Any

from attrs import evolve
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from arkor.backend.store.schema import AlreadyExists, Tables, deployments
from arkor.backend.store.schema import deployment_keys as keys
from arkor.protocol.deployments import Deployment, DeploymentKey
from arkor.protocol.events import now

#: The prefix of every key, and how many characters of a key are shown in lists.
KEY_PREFIX = "ark_live_"
SHOWN_PREFIX_LENGTH = len(KEY_PREFIX) + 4

#: The number of active keys that a deployment may have.
MAX_KEYS = 100

#: The length of a time stamp up to the minute.
_MINUTE = len("2026-01-01T00:00")

logger = logging.getLogger("arkor.backend")


class TooManyKeys(Exception):
    """The deployment has `MAX_KEYS` active keys."""


def hash_key(plaintext: str) -> str:
    """Return the hash under which a key or token is stored."""
    return hashlib.sha256(plaintext.encode("utf-8", "replace")).hexdigest()


class DeploymentStore(Tables):
    """The deployments of a backend. Methods are thread-safe and raise SQLAlchemy's errors."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._last_used: dict[str, str] = {}
        self._last_written: dict[str, str] = {}
        self._usage_lock = threading.Lock()

    # Deployments

    def add(self, deployment: Deployment) -> None:
        """Add a deployment. Raise `AlreadyExists` if another of this backend has its slug."""
        try:
            fields = {column.name: getattr(deployment, column.name) for column in deployments.c}
            self._write(deployments.insert().values({**fields, "target": json.dumps(deployment.target)}))
        except IntegrityError as error:
            raise AlreadyExists(deployment.slug) from error

    def of_project(self, project_id: str) -> list[Deployment]:
        return self._select(deployments.c.project_id == project_id)

    def all(self) -> list[Deployment]:
        return self._select()

    def get(self, deployment_id: str) -> Deployment | None:
        return next(iter(self._select(deployments.c.id == deployment_id)), None)

    def by_slug(self, slug: str) -> Deployment | None:
        """Return the deployment with this slug, even if it is disabled."""
        return next(iter(self._select(deployments.c.slug == slug)), None)

    def _select(self, *conditions: Any) -> list[Deployment]:
        query = select(deployments).where(*conditions).order_by(deployments.c.slug)
        return [Deployment(**{**row._mapping, "target": json.loads(row.target)}) for row in self._rows(query)]

    def replace(self, deployment_id: str, change: Mapping[str, Any]) -> Deployment | None:
        """Set fields by their Python names; return the deployment, or None if it is gone."""
        values = {**change, **({"target": json.dumps(change["target"])} if "target" in change else {})}
        if values:
            query = deployments.update().where(deployments.c.id == deployment_id)
            self._write(query.values(**values, updated_at=now()))
        return self.get(deployment_id)

    def remove(self, deployment_id: str) -> None:
        """Remove a deployment and its keys."""
        with self._engine.begin() as connection:
            connection.execute(keys.delete().where(keys.c.deployment_id == deployment_id))
            connection.execute(deployments.delete().where(deployments.c.id == deployment_id))

    # Keys

    def add_key(self, deployment_id: str, label: str) -> DeploymentKey:
        """Create a key with its plaintext. Raise `TooManyKeys`; without deployment `LookupError`."""
        plaintext = KEY_PREFIX + secrets.token_urlsafe(32)
        prefix = plaintext[:SHOWN_PREFIX_LENGTH]
        key = DeploymentKey(uuid.uuid4().hex, label, prefix, created_at=now(), plaintext=plaintext)
        values = {"id": key.id, "deployment_id": deployment_id, "label": label, "prefix": prefix}
        row = {**values, "hash": hash_key(plaintext), "enabled": True, "created_at": key.created_at}
        active = select(func.count()).select_from(keys).where(keys.c.deployment_id == deployment_id, keys.c.enabled)
        try:
            with self._engine.begin() as connection:
                if (connection.scalar(active) or 0) >= MAX_KEYS:
                    raise TooManyKeys(deployment_id)
                connection.execute(keys.insert().values(row))
        except IntegrityError:
            raise LookupError(deployment_id) from None
        return key

    def keys_of(self, deployment_id: str) -> list[DeploymentKey]:
        """Return all keys in order of creation, including revoked ones, without their plaintext."""
        columns = (keys.c.id, keys.c.label, keys.c.prefix, keys.c.enabled, keys.c.created_at, keys.c.last_used_at)
        query = select(*columns).where(keys.c.deployment_id == deployment_id).order_by(keys.c.created_at, keys.c.id)
        found = [DeploymentKey(**dict(row._mapping)) for row in self._rows(query)]
        return [evolve(key, last_used_at=self._last_used.get(key.id, key.last_used_at)) for key in found]

    def revoke_key(self, deployment_id: str, key_id: str) -> bool:
        """Disable a key, even again; return False if the deployment has no such key."""
        condition = (keys.c.deployment_id == deployment_id, keys.c.id == key_id)
        return bool(self._write(keys.update().where(*condition).values(enabled=False)))

    def verify_key(self, deployment_id: str, plaintext: str) -> str | None:
        """Return the id of an active key and record its use, or None if it is not valid."""
        digest = hash_key(plaintext)
        query = select(keys.c.id, keys.c.hash).where(keys.c.deployment_id == deployment_id, keys.c.enabled)
        rows = self._rows(query)
        matching = [row.id for row in rows if hmac.compare_digest(row.hash, digest)]  # all of them, in constant time
        if not matching:
            return None
        self._record_use(matching[0])
        return str(matching[0])

    # Last use of keys

    def flush(self) -> None:
        """Write the times that are only in memory."""
        with self._usage_lock:
            pending = {key: at for key, at in self._last_used.items() if self._last_written.get(key) != at}
            self._last_written.update(pending)
        for key_id, at in pending.items():
            self._write_use(key_id, at)

    def _record_use(self, key_id: str) -> None:
        at = now()
        with self._usage_lock:
            self._last_used[key_id] = at
            due = self._last_written.get(key_id, "")[:_MINUTE] != at[:_MINUTE]
            if due:
                self._last_written[key_id] = at
        if due:
            self._write_use(key_id, at)

    def _write_use(self, key_id: str, at: str) -> None:
        try:
            self._write(keys.update().where(keys.c.id == key_id).values(last_used_at=at))
        except DBAPIError as error:  # the request itself can still be served
            logger.warning("The last use of the key %s could not be stored: %s", key_id, error.orig)
