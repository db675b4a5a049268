"""The server's side of a check: the one process that looks, what it says as server-sent events, what is kept of it.

One check is at work at a time; others wait. It ends at once when nobody waits for it any more, and where its steps
would take a run's place on the GPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from arkor.backend.compute.process_tuning import NICENESS
from arkor.backend.runs.estimate_cache import remember
from arkor.backend.runs.paths import checks_folder
from arkor.backend.runs.sse import END, PING
from arkor.backend.workers.exit_report import cause, memory_advice
from arkor.protocol.codec import dumps
from arkor.protocol.estimates import parse_estimate

#: A word at least so often, in seconds, so that the client knows that somebody is there; and how often to look around.
PING_SECONDS, LOOK_SECONDS = 5.0, 0.5

#: The longest line that the process may send, in bytes.
LINE_LIMIT = 16 * 1024 * 1024


@frozen
class Asked:
    """The configuration to look at, as on the wire, and the token of its data set."""

    config: Mapping[str, Any]
    token: str | None = field(default=None, repr=False)


@define
class _Look:
    """One process at work: whether runs train beside it, where it computes, whether it has said how it ended."""

    process: Process
    folder: Path
    beside: bool
    device: str = "cpu"
    found: bool = False
    over: bool = False

    def go_second(self) -> None:
        """A run has begun, and goes first from here on."""
        self.beside = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PGRP, self.process.pid, NICENESS)  # it leads a group of its own


class Checking:
    """Everything that is being checked, for as long as the server lives; `is_training` says whether a run is."""

    def __init__(self, home: Path, engine: str, is_training: Callable[[], bool]) -> None:
        self._home = home
        self._engine = engine
        self._is_training = is_training
        self._at_work: Process | None = None
        self._waiting = 0
        self._endings: set[asyncio.Task[None]] = set()

    async def frames(self, asked: Asked) -> AsyncGenerator[bytes, None]:
        """All that is found, as frames; closing it ends the process."""
        async for silence in self._turn():
            yield silence
        self._waiting += 1  # nobody else may take the turn before the process is there
        try:
            look = await self._begin(asked)
        except OSError as error:
            yield _frame("check.failed", error=f"The check cannot be started: {error}.", code="no_check", status=503)
            yield END
            return
        finally:
            self._waiting -= 1
        try:
            async for frame in self._follow(look, asked):
                yield frame
            yield END
        finally:
            self._end(look)

    async def close(self) -> None:
        """End the process at work."""
        if self._at_work is not None:
            with contextlib.suppress(ProcessLookupError):
                self._at_work.kill()
        await asyncio.gather(*self._endings, return_exceptions=True)

    # Beginning and ending

    async def _turn(self) -> AsyncIterator[bytes]:
        """Words for who waits, until it is their turn."""
        said = 0.0
        while self._at_work is not None or self._waiting:
            if not said:
                yield _frame("check.progress", message="Waiting for another check to end")
                said = time.monotonic()
            elif time.monotonic() - said >= PING_SECONDS:
                yield PING
                said = time.monotonic()
            await asyncio.sleep(LOOK_SECONDS)

    async def _begin(self, asked: Asked) -> _Look:
        checks_folder(self._home).mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=checks_folder(self._home), prefix=".at-work-"))
        module = [sys.executable, "-u", "-m", "arkor.backend.preflight.process"]
        command = [*module, "--home", str(self._home), "--engine", self._engine]
        try:
            with (self._home / "checks.log").open("wb") as errors:
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=PIPE, stdout=PIPE, stderr=errors, limit=LINE_LIMIT, start_new_session=True
                )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._at_work = process
        look = _Look(process, folder, self._is_training())
        question = {"config": asked.config, "token": asked.token, "folder": str(folder), "busy": look.beside}
        if process.stdin is not None:
            process.stdin.write(dumps(question).encode() + b"\n")
        return look

    def _end(self, look: _Look) -> None:
        """Kill it now; see it off later, as whoever calls may have no time left to wait."""
        with contextlib.suppress(ProcessLookupError):
            look.process.kill()
        ending = asyncio.get_running_loop().create_task(self._see_off(look))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def _see_off(self, look: _Look) -> None:
        await look.process.wait()
        self._at_work = None
        await asyncio.to_thread(shutil.rmtree, look.folder, ignore_errors=True)

    # Following it

    async def _follow(self, look: _Look, asked: Asked) -> AsyncIterator[bytes]:
        quiet_since = time.monotonic()
        async for line in _lines(look.process):
            if line is not None:
                quiet_since = time.monotonic()
                for frame in self._told(json.loads(line), look, asked):
                    yield frame
            elif not look.beside and self._is_training():
                if look.device != "cpu":
                    yield _note("A run has begun and has the GPU to itself; check again when it has ended.")
                    return
                look.go_second()
            elif time.monotonic() - quiet_since >= PING_SECONDS:
                quiet_since = time.monotonic()
                yield PING
        if not look.over:
            yield self._obituary(look, await look.process.wait(), asked)

    def _told(self, line: Mapping[str, Any], look: _Look, asked: Asked) -> list[bytes]:
        """What a line of the process is to the client."""
        if "say" in line:
            return [_frame("check.progress", message=line["say"])]
        if "found" in line:
            look.found = True
            self._remember(line["found"], asked)
            return [_frame("check.found", found=line["found"])]
        look.device = line.get("device", look.device)
        look.over = look.over or "device" not in line
        if "refused" in line:
            return [_frame("check.failed", error=line["refused"], code="invalid_request", status=400)]
        return []

    def _remember(self, found: Mapping[str, Any], asked: Asked) -> None:
        if (estimate := parse_estimate(found.get("estimate"))) is not None:
            with contextlib.suppress(OSError):  # without it the run only has nothing to be compared with
                remember(self._home, asked.config, estimate)

    def _obituary(self, look: _Look, code: int, asked: Asked) -> bytes:
        """What is told of a process that has left no word."""
        killed = code == -9
        advice = memory_advice(asked.config) if killed and not look.beside else ""
        sentence = f"The check ended {cause(code)} before it was through. {advice}".strip()
        if not killed:
            sentence += f" Its log is {self._home / 'checks.log'}."
        if killed and look.found:
            return _note(sentence) if look.beside else _frame("check.found", found={"problems": [sentence]})
        return _frame("check.failed", error=sentence, code="check_ended", status=503)


async def _lines(process: Process) -> AsyncIterator[bytes | None]:
    """The lines of the process as they come; None where there was none for a while."""
    assert process.stdout is not None  # noqa: S101 - it was started with a pipe
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(process.stdout.readline())
            done, _ = await asyncio.wait({pending}, timeout=LOOK_SECONDS)
            if not done:
                yield None
                continue
            line, pending = pending.result(), None
            if not line:
                return
            yield line
    finally:
        if pending is not None:
            pending.cancel()


def _frame(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), dumps({"type": kind, **fields}).encode())


def _note(sentence: str) -> bytes:
    return _frame("check.found", found={"notes": [sentence]})


def sweep_checks(home: Path) -> None:
    """Clear away what checks of a server that is dead have left."""
    for abandoned in checks_folder(home).glob(".at-work-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
