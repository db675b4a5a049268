"""Checkpoints that deployments answer with are kept, however many newer ones their run comes to have.

A pin is an empty file in the run's folder, named by the step and the deployment: the server puts it there before a
deployment names the checkpoint and takes it away after the last word of that, the worker that thins out looks at it.
Nothing but the deployment itself takes its pin away: a database that was made anew knows of no deployments, and still
loses nobody a checkpoint.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from arkor.backend.runs.checkpoints import remove_expired
from arkor.backend.runs.paths import RunFolder, run_folder
from arkor.protocol.deployments import Deployment

Target = Mapping[str, Any]

logger = logging.getLogger("arkor.backend")


class CheckpointPins:
    """What the deployments of a home keep. Methods may be called from any thread of the one server."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()

    @contextmanager
    def pin_moved(
        self, deployment_id: str, read: Callable[[], Deployment | None], target: Target | None
    ) -> Iterator[None]:
        """Around the change of a deployment's target to `target` (None: it goes); if that fails, all is as it was.

        What it names `read` is read when nobody else can change it. Raises OSError.
        """
        with self._lock:
            deployment = read()
            old = self._pin(deployment_id, deployment.target) if deployment else None
            new = self._pin(deployment_id, target) if target else None
            to_remove = new
            try:
                if new is not None:
                    _create(new)
                yield
                to_remove = old
            finally:
                if to_remove is not None and old != new:
                    _remove(to_remove)

    def restore(self, deployments: Iterable[Deployment]) -> None:
        """Those that an arkor without pins left out, or that somebody removed."""
        for deployment in deployments:
            pin = self._pin(deployment.id, deployment.target)
            if pin is not None and pin.parent.parent.is_dir() and not pin.exists():
                try:
                    _create(pin)
                except OSError as error:
                    logger.warning("The checkpoint that %s answers with may not be kept: %s", deployment.slug, error)

    def _pin(self, deployment_id: str, target: Target) -> Path | None:
        adapter = target.get("adapter") or {}
        if adapter.get("kind") != "checkpoint":
            return None
        return run_folder(self._home, adapter["jobId"]).pins / f"{adapter['step']}.{deployment_id}"


def _create(pin: Path) -> None:
    pin.parent.mkdir(mode=0o700, exist_ok=True)
    pin.touch(mode=0o600)


def _remove(pin: Path) -> None:
    """One that stays behind, since the disk cannot be written, costs no more than the room of a checkpoint."""
    with suppress(OSError):
        pin.unlink()
    remove_expired(RunFolder(pin.parent.parent))
