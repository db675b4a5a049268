"""The server's side of a check: run a child process and stream its results.

One check runs at a time; others wait. A check ends when its client disconnects, and on a GPU when a
run starts training.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, cast

from attrs import define

from arkor.backend.compute.child_process import describe_exit, encode_line, start_child
from arkor.backend.compute.process_tuning import NICENESS
from arkor.backend.runs.estimate_cache import store_estimate
from arkor.backend.runs.paths import CHECK_PREFIX, checks_folder
from arkor.backend.runs.sse import END, PING
from arkor.backend.store.store import new_id
from arkor.backend.workers.supervisor import oom_remedy
from arkor.protocol.codec import dumps
from arkor.protocol.estimates import parse_estimate

#: Seconds between keep-alive comments, and between polls.
PING_SECONDS, POLL_SECONDS = 5.0, 0.5


@define
class _CheckProcess:
    """A running check.

    `config` is the configuration as on the wire; `runs_alongside`: a run is training at the same
    time; `device` is where the check computes; `reported` and `finished`: it has sent results, and
    its last line.
    """

    process: Process
    config: Mapping[str, Any]
    folder: Path
    runs_alongside: bool
    device: str = "cpu"
    reported: bool = False
    finished: bool = False

    def yield_to_run(self) -> None:
        """Give a run that has started precedence over the check."""
        self.runs_alongside = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PGRP, self.process.pid, NICENESS)  # the leader of its own process group


class CheckService:
    """Runs checks one at a time. `is_training()` returns whether a run is training."""

    def __init__(self, home: Path, engine: str, is_training: Callable[[], bool]) -> None:
        self._home = home
        self._engine = engine
        self._is_training = is_training
        self._busy = False
        self._current: Process | None = None
        self._reapers: set[asyncio.Task[None]] = set()

    async def frames(self, config: Mapping[str, Any], token: str | None) -> AsyncGenerator[bytes, None]:
        """Check a `config` in wire format; yield events. Closing the generator ends the process."""
        async for keep_alive in self._wait_turn():
            yield keep_alive
        try:
            check = await self._spawn(config, token)
        except OSError as error:
            yield _frame("check.failed", error=f"The check cannot be started: {error}.", code="no_check", status=503)
            yield END
            return
        try:
            async for frame in self._follow(check):
                yield frame
            yield END
        finally:
            self._kill(check)

    async def close(self) -> None:
        """End the running check."""
        if self._current is not None:
            with contextlib.suppress(ProcessLookupError):
                self._current.kill()
        await asyncio.gather(*self._reapers, return_exceptions=True)

    async def _wait_turn(self) -> AsyncIterator[bytes]:
        """Yield keep-alive events until no other check is running."""
        last_sent = 0.0
        while self._busy:
            if not last_sent:
                yield _frame("check.progress", message="Waiting for another check to end")
                last_sent = time.monotonic()
            elif time.monotonic() - last_sent >= PING_SECONDS:
                yield PING
                last_sent = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)

    async def _spawn(self, config: Mapping[str, Any], token: str | None) -> _CheckProcess:
        self._busy = True
        folder = checks_folder(self._home) / f"{CHECK_PREFIX}{new_id()}"
        try:
            folder.mkdir(mode=0o700, parents=True)
            with (self._home / "checks.log").open("wb") as log:
                process = await start_child("arkor.backend.preflight.process", self._home, self._engine, log)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            self._busy = False
            raise
        self._current = process
        check = _CheckProcess(process, config, folder, self._is_training())
        request = {"config": config, "token": token, "folder": str(folder), "busy": check.runs_alongside}
        cast("asyncio.StreamWriter", process.stdin).write(encode_line(request))
        return check

    def _kill(self, check: _CheckProcess) -> None:
        """Kill the process; wait for its exit in the background, as the caller may be cancelled."""
        with contextlib.suppress(ProcessLookupError):
            check.process.kill()
        reaper = asyncio.get_running_loop().create_task(self._reap(check))
        self._reapers.add(reaper)
        reaper.add_done_callback(self._reapers.discard)

    async def _reap(self, check: _CheckProcess) -> None:
        await check.process.wait()
        self._current, self._busy = None, False
        await asyncio.to_thread(shutil.rmtree, check.folder, ignore_errors=True)

    async def _follow(self, check: _CheckProcess) -> AsyncIterator[bytes]:
        last_line_at = time.monotonic()
        async for line in _lines(check.process):
            if line is not None:
                last_line_at = time.monotonic()
                for frame in self._frames_for(json.loads(line), check):
                    yield frame
            elif not check.runs_alongside and self._is_training():
                if check.device != "cpu":
                    yield _note_frame("A run has started and uses the GPU alone; check again when it has ended.")
                    return
                check.yield_to_run()
            elif time.monotonic() - last_line_at >= PING_SECONDS:
                last_line_at = time.monotonic()
                yield PING
        if not check.finished:
            yield self._crash_frame(check, await check.process.wait())

    def _frames_for(self, line: Mapping[str, Any], check: _CheckProcess) -> list[bytes]:
        """Convert a line of the process to events for the client."""
        if "progress" in line:
            return [_frame("check.progress", message=line["progress"])]
        if "found" in line:
            check.reported = True
            if (estimate := parse_estimate(line["found"].get("estimate"))) is not None:
                with contextlib.suppress(OSError):  # the run then starts without an estimate
                    store_estimate(self._home, check.config, estimate)
            return [_frame("check.found", found=line["found"])]
        check.device = line.get("device", check.device)
        check.finished = check.finished or "device" not in line
        if "refused" in line:
            return [_frame("check.failed", error=line["refused"], code="invalid_request", status=400)]
        return []

    def _crash_frame(self, check: _CheckProcess, code: int) -> bytes:
        """Return the event for a process that exited without a last line."""
        killed = code == -signal.SIGKILL
        message = f"The check ended {describe_exit(code)} before it was complete."
        if killed and not check.runs_alongside:
            message += f" {oom_remedy(check.config)}".rstrip()
        if not killed:
            message += f" Its log is {self._home / 'checks.log'}."
        if not (killed and check.reported):
            return _frame("check.failed", error=message, code="check_ended", status=503)
        if check.runs_alongside:
            return _note_frame(message)
        return _frame("check.found", found={"problems": [message]})


async def _lines(process: Process) -> AsyncIterator[bytes | None]:
    """Yield the lines of the process; None after each `POLL_SECONDS` without a line."""
    stdout = cast("asyncio.StreamReader", process.stdout)
    while True:
        try:
            line = await asyncio.wait_for(stdout.readline(), POLL_SECONDS)
        except asyncio.TimeoutError:
            yield None
            continue
        if not line:
            return
        yield line


def _frame(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), dumps({"type": kind, **fields}).encode())


def _note_frame(note: str) -> bytes:
    return _frame("check.found", found={"notes": [note]})
