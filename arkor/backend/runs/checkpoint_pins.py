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

from arkor.backend.runs.checkpoints import discharge
from arkor.backend.runs.paths import RunFolder, run_folder
from arkor.protocol.deployments import Deployment

Target = Mapping[str, Any]

logger = logging.getLogger("arkor.backend")


class Pins:
    """What the deployments of a home keep. Methods may be called from any thread of the one server."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._changing = threading.Lock()

    @contextmanager
    def moved(
        self, deployment_id: str, before: Callable[[], Deployment | None], after: Target | None
    ) -> Iterator[None]:
        """Around the change of a deployment's target to `after` (None: it goes); if that fails, all is as it was.

        What it names `before` is read when nobody else can change it. Raises OSError.
        """
        with self._changing:
            deployment = before()
            old = self._pin(deployment_id, deployment.target) if deployment else None
            new = self._pin(deployment_id, after) if after else None
            unwanted = new
            try:
                if new is not None:
                    _put(new)
                yield
                unwanted = old
            finally:
                if unwanted is not None and old != new:
                    _take(unwanted)

    def restore(self, deployments: Iterable[Deployment]) -> None:
        """Those that an arkor without pins left out, or that somebody removed."""
        for deployment in deployments:
            pin = self._pin(deployment.id, deployment.target)
            if pin is not None and pin.parent.parent.is_dir() and not pin.exists():
                try:
                    _put(pin)
                except OSError as error:
                    logger.warning("The checkpoint that %s answers with may not be kept: %s", deployment.slug, error)

    def _pin(self, deployment_id: str, target: Target) -> Path | None:
        adapter = target.get("adapter") or {}
        if adapter.get("kind") != "checkpoint":
            return None
        return run_folder(self._home, adapter["jobId"]).pins / f"{adapter['step']}.{deployment_id}"


def _put(pin: Path) -> None:
    pin.parent.mkdir(mode=0o700, exist_ok=True)
    pin.touch(mode=0o600)


def _take(pin: Path) -> None:
    """One that stays behind, since the disk cannot be written, costs no more than the room of a checkpoint."""
    with suppress(OSError):
        pin.unlink()
    discharge(RunFolder(pin.parent.parent))
