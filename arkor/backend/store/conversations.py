"""The stored conversations of deployments, and their retention.

A conversation is a JSON object on a line of `ARKOR_HOME/conversations/<deployment>/<day>.jsonl`
(UTC, mode 0600). A deployment with retention `disabled` has no such folder. Expired lines are
removed when the server starts and every `PURGE_SECONDS`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from arkor.files import atomic_writer
from arkor.protocol.codec import dumps
from arkor.protocol.deployments import Deployment
from arkor.protocol.events import format_timestamp

#: Seconds between two removals of expired conversations.
PURGE_SECONDS = 600.0

logger = logging.getLogger("arkor.backend")


class ConversationStore:
    """The stored conversations of a home. Methods may be called from any thread."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "conversations"
        self._write_lock = threading.Lock()

    def append(self, read: Callable[[], Deployment | None], entry: Mapping[str, Any]) -> None:
        """Store a conversation, if the deployment keeps any. Raise OSError.

        `read` returns the deployment; it is called under the lock, so that nothing is stored after
        a deployment was set to `disabled`.
        """
        with self._write_lock:
            deployment = read()
            if deployment is None or deployment.run_retention_mode == "disabled":
                return
            created_at = datetime.now(timezone.utc)
            line = dumps({"createdAt": format_timestamp(created_at), **entry}).encode() + b"\n"
            _append_line(self._folder / deployment.id / f"{created_at:%Y-%m-%d}.jsonl", line)

    def apply_retention(self, deployment: Deployment, as_of: datetime | None = None) -> None:
        """Remove what has expired by the time `as_of` (default: now). Raise OSError."""
        folder = self._folder / deployment.id
        with self._write_lock:
            if not folder.is_dir():
                return
            if deployment.run_retention_mode == "disabled":
                shutil.rmtree(folder)
            elif deployment.run_retention_mode == "days":
                days = timedelta(days=deployment.run_retention_days or 0)
                _remove_before(folder, (as_of or datetime.now(timezone.utc)) - days)

    def delete(self, deployment_id: str) -> None:
        """Remove all conversations of a deployment. Raise OSError."""
        with self._write_lock:
            if (self._folder / deployment_id).is_dir():
                shutil.rmtree(self._folder / deployment_id)

    async def purge_periodically(self, deployments: Callable[[], Iterable[Deployment]]) -> None:
        """Remove expired conversations every `PURGE_SECONDS`; never return."""
        while True:
            try:
                await asyncio.to_thread(lambda: self.purge(deployments()))
            except DBAPIError as error:
                logger.warning("The retention of conversations could not be read: %s", error.orig)
            await asyncio.sleep(PURGE_SECONDS)

    def purge(self, deployments: Iterable[Deployment], as_of: datetime | None = None) -> None:
        """Apply each retention, and log errors. Folders of unknown deployments are kept."""
        for deployment in deployments:
            try:
                self.apply_retention(deployment, as_of)
            except OSError as error:  # noqa: PERF203 - an error must not stop the others
                logger.warning("Expired conversations of %s could not be removed: %s", deployment.slug, error)


def _append_line(file: Path, line: bytes) -> None:
    """Append a line, on a line of its own even after one that was cut off."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "r+b", buffering=0) as target:
        size = target.seek(0, os.SEEK_END)
        incomplete = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        target.write(b"\n" + line if incomplete else line)


def _remove_before(folder: Path, cutoff: datetime) -> None:
    """Remove the files of earlier days, and the earlier lines of the day of `cutoff`."""
    for leftover in folder.glob(".*"):  # of an interrupted rewrite
        leftover.unlink()
    cutoff_day = f"{cutoff:%Y-%m-%d}"
    for file in sorted(folder.glob("*.jsonl")):
        if file.stem < cutoff_day:
            file.unlink()
        elif file.stem == cutoff_day:
            _truncate_before(file, format_timestamp(cutoff))


def _truncate_before(file: Path, before: str) -> None:
    """Rewrite the file from the first line with a later `createdAt`; lines are in order of time."""
    with file.open("rb") as source:
        begin = 0
        for line in source:
            if _timestamp_of(line) >= before:
                break
            begin += len(line)
        if begin:
            source.seek(begin)
            with atomic_writer(file) as target:
                shutil.copyfileobj(source, target)


def _timestamp_of(line: bytes) -> str:
    try:
        return str(json.loads(line)["createdAt"])
    except (ValueError, KeyError, TypeError):
        return ""
