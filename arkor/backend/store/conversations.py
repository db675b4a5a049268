"""What was asked of a deployment and answered, kept for as long as its owner wants.

One JSON object a line, in `ARKOR_HOME/conversations/<deployment>/<day>.jsonl` (UTC), mode 0600; a deployment that keeps
nothing has no such folder. The setting is the deployment's; that it is obeyed is up to this room: what is too old is
removed at the start of the server and every ten minutes, to the line.
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

from arkor.protocol.codec import dumps
from arkor.protocol.deployments import Deployment
from arkor.protocol.events import format_timestamp

#: How long it takes until something that has become too old is removed, in seconds.
PURGE_SECONDS = 600.0

#: Where a deployment's days are, below the home.
FOLDER = "conversations"

logger = logging.getLogger("arkor.backend")


class ConversationStore:
    """The stored conversations of a home. Methods may be called from any thread."""

    def __init__(self, home: Path) -> None:
        self._folder = home / FOLDER
        self._write_lock = threading.Lock()

    def append(self, read: Callable[[], Deployment | None], entry: Mapping[str, Any]) -> None:
        """Add one, if the deployment keeps any; its `createdAt` is now. Raises OSError.

        The deployment is read when nobody can change its mind any more: who turns this off finds nothing later.
        """
        with self._write_lock:
            deployment = read()
            if deployment is None or deployment.run_retention_mode == "disabled":
                return
            created_at = datetime.now(timezone.utc)
            line = dumps({"createdAt": format_timestamp(created_at), **entry}).encode() + b"\n"
            _append_line(self._folder_of(deployment.id) / f"{created_at:%Y-%m-%d}.jsonl", line)

    def apply_retention(self, deployment: Deployment, as_of: datetime | None = None) -> None:
        """Remove what the deployment's setting does not keep, as of `as_of` (now). Raises OSError."""
        folder = self._folder_of(deployment.id)
        if not folder.is_dir():
            return
        with self._write_lock:
            if deployment.run_retention_mode == "disabled":
                shutil.rmtree(folder)
            elif deployment.run_retention_mode == "days":
                days = timedelta(days=deployment.run_retention_days or 0)
                _remove_before(folder, (as_of or datetime.now(timezone.utc)) - days)

    def delete(self, deployment_id: str) -> None:
        """Remove all of a deployment's. Raises OSError."""
        with self._write_lock:
            if self._folder_of(deployment_id).is_dir():
                shutil.rmtree(self._folder_of(deployment_id))

    async def purge_periodically(self, deployments: Callable[[], Iterable[Deployment]]) -> None:
        """Sweep now and then, for ever."""
        while True:
            try:
                await asyncio.to_thread(lambda: self.purge(deployments()))
            except DBAPIError as error:
                logger.warning("Whether conversations have become too old cannot be seen: %s", error.orig)
            await asyncio.sleep(PURGE_SECONDS)

    def purge(self, deployments: Iterable[Deployment], as_of: datetime | None = None) -> None:
        """Obey every one of them; what cannot be removed is told to the log.

        Folders of deployments that are not known stay: a database that was made anew knows none.
        """
        for deployment in deployments:
            self._try_apply_retention(deployment, as_of)

    def _try_apply_retention(self, deployment: Deployment, as_of: datetime | None) -> None:
        try:
            self.apply_retention(deployment, as_of)
        except OSError as error:
            logger.warning("Conversations of %s that are too old cannot be removed: %s", deployment.slug, error)

    def _folder_of(self, deployment_id: str) -> Path:
        return self._folder / deployment_id


def _append_line(file: Path, line: bytes) -> None:
    """On a line of its own, even behind one that a full disk or a kill cut off."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "r+b", buffering=0) as target:
        size = target.seek(0, os.SEEK_END)
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        target.write(b"\n" + line if torn else line)


def _remove_before(folder: Path, cutoff: datetime) -> None:
    """Whole days first; of the day in which `cutoff` lies the lines before it."""
    for torn in folder.glob(".*"):
        torn.unlink()
    today = f"{cutoff:%Y-%m-%d}"
    for file in sorted(folder.glob("*.jsonl")):
        if file.stem < today:
            file.unlink()
        elif file.stem == today:
            _truncate_before(file, format_timestamp(cutoff))


def _truncate_before(file: Path, before: str) -> None:
    """Lines are in the order of their times."""
    rest = file.with_name(f".{file.name}")
    with file.open("rb") as source:
        begin = 0
        for line in source:
            if _timestamp_of(line) >= before:
                break
            begin += len(line)
        if not begin:
            return
        source.seek(begin)
        rest.touch(mode=0o600)
        with rest.open("wb") as target:
            shutil.copyfileobj(source, target)
    rest.replace(file)


def _timestamp_of(line: bytes) -> str:
    try:
        return str(json.loads(line)["createdAt"])
    except (ValueError, KeyError, TypeError):
        return ""
