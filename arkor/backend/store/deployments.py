"""Deployments and their keys in the store's database.

A key is kept as a hash; what opens is shown once, by whoever made it. When a key was last used is remembered at once
and written at most once a minute, so that a busy deployment does not wait for the disk at every request. Which
conversations a deployment keeps is `conversations.py`'s, who may call what the routes'.
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

from sqlalchemy import Connection, Engine, Row, func, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from arkor.backend.store.schema import deployment_keys as keys
from arkor.backend.store.schema import deployments
from arkor.protocol.deployments import Deployment, DeploymentKey
from arkor.protocol.events import now

#: How a key begins; so many of its characters are shown in lists.
KEY_PREFIX = "ark_live_"
SHOWN_PREFIX_LENGTH = len(KEY_PREFIX) + 4

#: Keys that one deployment may have at a time, those that are revoked aside.
MAX_KEYS = 100

#: So much of a time stamp is the minute.
_MINUTE = len("2026-01-01T00:00")


logger = logging.getLogger("arkor.backend")


class SlugAlreadyExists(Exception):
    """Another deployment of this backend has that slug."""


class TooManyKeys(Exception):
    """The deployment has `MAX_KEYS` keys that open it."""


def hash_key(plaintext: str) -> str:
    """What of a key is kept."""
    return hashlib.sha256(plaintext.encode("utf-8", "replace")).hexdigest()


class DeploymentStore:
    """The deployments of a backend. Methods may be called from any thread; SQLAlchemy's errors go through."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._last_used: dict[str, str] = {}
        self._last_written: dict[str, str] = {}
        self._usage_lock = threading.Lock()

    # Deployments

    def add(self, deployment: Deployment) -> None:
        """Raises `SlugAlreadyExists`."""
        try:
            with self._engine.begin() as connection:
                connection.execute(deployments.insert().values(_row_values(deployment)))
        except IntegrityError as error:
            raise SlugAlreadyExists(deployment.slug) from error

    def of_project(self, project_id: str) -> list[Deployment]:
        """By slug."""
        query = select(deployments).where(deployments.c.project_id == project_id).order_by(deployments.c.slug)
        with self._engine.connect() as connection:
            return [_deployment_from_row(row) for row in connection.execute(query)]

    def all(self) -> list[Deployment]:
        """Everybody's."""
        with self._engine.connect() as connection:
            return [_deployment_from_row(row) for row in connection.execute(select(deployments))]

    def get(self, deployment_id: str) -> Deployment | None:
        return self._select_one(deployments.c.id == deployment_id)

    def by_slug(self, slug: str) -> Deployment | None:
        """The one that answers under this slug, disabled ones too."""
        return self._select_one(deployments.c.slug == slug)

    def _select_one(self, condition: Any) -> Deployment | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(deployments).where(condition)).first()
        return _deployment_from_row(row) if row else None

    def replace(self, deployment_id: str, change: Mapping[str, Any]) -> Deployment | None:
        """Write the fields in `change`, by their names in Python; returns it as it is then, None if it is gone."""
        values = {**change, **({"target": json.dumps(change["target"])} if "target" in change else {})}
        if values:
            with self._engine.begin() as connection:
                query = deployments.update().where(deployments.c.id == deployment_id)
                connection.execute(query.values(**values, updated_at=now()))
        return self.get(deployment_id)

    def remove(self, deployment_id: str) -> None:
        """Its keys go, too."""
        with self._engine.begin() as connection:
            connection.execute(keys.delete().where(keys.c.deployment_id == deployment_id))
            connection.execute(deployments.delete().where(deployments.c.id == deployment_id))

    # Keys

    def add_key(self, deployment_id: str, label: str) -> DeploymentKey:
        """A new key, with its plaintext. Raises `TooManyKeys`, and `LookupError` for a deployment that is gone."""
        plaintext = KEY_PREFIX + secrets.token_urlsafe(32)
        prefix = plaintext[:SHOWN_PREFIX_LENGTH]
        key = DeploymentKey(uuid.uuid4().hex, label, prefix, created_at=now(), plaintext=plaintext)
        values = {"id": key.id, "deployment_id": deployment_id, "label": label, "prefix": prefix}
        row = {**values, "hash": hash_key(plaintext), "enabled": True, "created_at": key.created_at}
        try:
            with self._engine.begin() as connection:
                if _count_active_keys(connection, deployment_id) >= MAX_KEYS:
                    raise TooManyKeys(deployment_id)
                connection.execute(keys.insert().values(row))
        except IntegrityError:
            raise LookupError(deployment_id) from None
        return key

    def keys_of(self, deployment_id: str) -> list[DeploymentKey]:
        """In the order in which they were made, revoked ones too; none with its plaintext."""
        query = select(keys).where(keys.c.deployment_id == deployment_id).order_by(keys.c.created_at, keys.c.id)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [self._key_from_row(row) for row in rows]

    def revoke_key(self, deployment_id: str, key_id: str) -> bool:
        """It opens nothing from now on; False when the deployment has no such key. One that is revoked stays so."""
        condition = (keys.c.deployment_id == deployment_id, keys.c.id == key_id)
        with self._engine.begin() as connection:
            return bool(connection.execute(keys.update().where(*condition).values(enabled=False)).rowcount)

    def verify_key(self, deployment_id: str, plaintext: str) -> str | None:
        """The id of the key, if it is one of the deployment's and not revoked; it counts as used now."""
        digest = hash_key(plaintext)
        query = select(keys.c.id, keys.c.hash).where(keys.c.deployment_id == deployment_id, keys.c.enabled)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        matching = [row.id for row in rows if hmac.compare_digest(row.hash, digest)]  # all of them, whichever it is
        if not matching:
            return None
        self._record_use(matching[0])
        return str(matching[0])

    # When a key was last used

    def flush(self) -> None:
        """Write down what is only remembered so far."""
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
            with self._engine.begin() as connection:
                connection.execute(keys.update().where(keys.c.id == key_id).values(last_used_at=at))
        except DBAPIError as error:  # no reason to keep somebody waiting who has the right key
            logger.warning("When the key %s was last used could not be written: %s", key_id, error.orig)

    def _key_from_row(self, row: Row[Any]) -> DeploymentKey:
        last_used = self._last_used.get(row.id, row.last_used_at)
        return DeploymentKey(row.id, row.label, row.prefix, row.enabled, row.created_at, last_used)


def _count_active_keys(connection: Connection, deployment_id: str) -> int:
    query = select(func.count()).select_from(keys).where(keys.c.deployment_id == deployment_id, keys.c.enabled)
    return connection.scalar(query) or 0


def _row_values(deployment: Deployment) -> dict[str, Any]:
    fields = {column.name: getattr(deployment, column.name) for column in deployments.c}
    return {**fields, "target": json.dumps(deployment.target)}


def _deployment_from_row(row: Row[Any]) -> Deployment:
    values = dict(row._mapping)
    return Deployment(**{**values, "target": json.loads(values["target"])})
