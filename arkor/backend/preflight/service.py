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
from arkor.backend.runs.estimate_cache import store_estimate
from arkor.backend.runs.paths import checks_folder
from arkor.backend.runs.sse import END, PING
from arkor.backend.workers.exit_report import describe_exit, oom_remedy
from arkor.protocol.codec import dumps
from arkor.protocol.estimates import parse_estimate

#: A word at least so often, in seconds, so that the client knows that somebody is there; and how often to look around.
PING_SECONDS, POLL_SECONDS = 5.0, 0.5

#: The longest line that the process may send, in bytes.
LINE_LIMIT = 16 * 1024 * 1024


@frozen
class CheckRequest:
    """The configuration to look at, as on the wire, and the token of its data set."""

    config: Mapping[str, Any]
    token: str | None = field(default=None, repr=False)


@define
class _CheckProcess:
    """One process at work: whether runs train beside it, where it computes, whether it has said how it ended."""

    process: Process
    folder: Path
    runs_alongside: bool
    device: str = "cpu"
    reported: bool = False
    finished: bool = False

    def yield_to_run(self) -> None:
        """A run has begun, and goes first from here on."""
        self.runs_alongside = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PGRP, self.process.pid, NICENESS)  # it leads a group of its own


class CheckService:
    """Everything that is being checked, for as long as the server lives; `is_training` says whether a run is."""

    def __init__(self, home: Path, engine: str, is_training: Callable[[], bool]) -> None:
        self._home = home
        self._engine = engine
        self._is_training = is_training
        self._current: Process | None = None
        self._waiting = 0
        self._reapers: set[asyncio.Task[None]] = set()

    async def frames(self, request: CheckRequest) -> AsyncGenerator[bytes, None]:
        """All that is found, as frames; closing it ends the process."""
        async for keep_alive in self._wait_turn():
            yield keep_alive
        self._waiting += 1  # nobody else may take the turn before the process is there
        try:
            check_process = await self._spawn(request)
        except OSError as error:
            yield _frame("check.failed", error=f"The check cannot be started: {error}.", code="no_check", status=503)
            yield END
            return
        finally:
            self._waiting -= 1
        try:
            async for frame in self._follow(check_process, request):
                yield frame
            yield END
        finally:
            self._kill(check_process)

    async def close(self) -> None:
        """End the process at work."""
        if self._current is not None:
            with contextlib.suppress(ProcessLookupError):
                self._current.kill()
        await asyncio.gather(*self._reapers, return_exceptions=True)

    # Beginning and ending

    async def _wait_turn(self) -> AsyncIterator[bytes]:
        """Words for who waits, until it is their turn."""
        last_sent = 0.0
        while self._current is not None or self._waiting:
            if not last_sent:
                yield _frame("check.progress", message="Waiting for another check to end")
                last_sent = time.monotonic()
            elif time.monotonic() - last_sent >= PING_SECONDS:
                yield PING
                last_sent = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)

    async def _spawn(self, request: CheckRequest) -> _CheckProcess:
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
        self._current = process
        check_process = _CheckProcess(process, folder, self._is_training())
        payload = {
            "config": request.config,
            "token": request.token,
            "folder": str(folder),
            "busy": check_process.runs_alongside,
        }
        if process.stdin is not None:
            process.stdin.write(dumps(payload).encode() + b"\n")
        return check_process

    def _kill(self, check_process: _CheckProcess) -> None:
        """Kill it now; see it off later, as whoever calls may have no time left to wait."""
        with contextlib.suppress(ProcessLookupError):
            check_process.process.kill()
        reaper = asyncio.get_running_loop().create_task(self._reap(check_process))
        self._reapers.add(reaper)
        reaper.add_done_callback(self._reapers.discard)

    async def _reap(self, check_process: _CheckProcess) -> None:
        await check_process.process.wait()
        self._current = None
        await asyncio.to_thread(shutil.rmtree, check_process.folder, ignore_errors=True)

    # Following it

    async def _follow(self, check_process: _CheckProcess, request: CheckRequest) -> AsyncIterator[bytes]:
        last_line_at = time.monotonic()
        async for line in _lines(check_process.process):
            if line is not None:
                last_line_at = time.monotonic()
                for frame in self._frames_for(json.loads(line), check_process, request):
                    yield frame
            elif not check_process.runs_alongside and self._is_training():
                if check_process.device != "cpu":
                    yield _note_frame("A run has begun and has the GPU to itself; check again when it has ended.")
                    return
                check_process.yield_to_run()
            elif time.monotonic() - last_line_at >= PING_SECONDS:
                last_line_at = time.monotonic()
                yield PING
        if not check_process.finished:
            yield self._crash_frame(check_process, await check_process.process.wait(), request)

    def _frames_for(self, line: Mapping[str, Any], check_process: _CheckProcess, request: CheckRequest) -> list[bytes]:
        """What a line of the process is to the client."""
        if "say" in line:
            return [_frame("check.progress", message=line["say"])]
        if "found" in line:
            check_process.reported = True
            self._cache_estimate(line["found"], request)
            return [_frame("check.found", found=line["found"])]
        check_process.device = line.get("device", check_process.device)
        check_process.finished = check_process.finished or "device" not in line
        if "refused" in line:
            return [_frame("check.failed", error=line["refused"], code="invalid_request", status=400)]
        return []

    def _cache_estimate(self, report: Mapping[str, Any], request: CheckRequest) -> None:
        if (estimate := parse_estimate(report.get("estimate"))) is not None:
            with contextlib.suppress(OSError):  # without it the run only has nothing to be compared with
                store_estimate(self._home, request.config, estimate)

    def _crash_frame(self, check_process: _CheckProcess, code: int, request: CheckRequest) -> bytes:
        """What is told of a process that has left no word."""
        killed = code == -9
        remedy = oom_remedy(request.config) if killed and not check_process.runs_alongside else ""
        sentence = f"The check ended {describe_exit(code)} before it was through. {remedy}".strip()
        if not killed:
            sentence += f" Its log is {self._home / 'checks.log'}."
        if killed and check_process.reported:
            return (
                _note_frame(sentence)
                if check_process.runs_alongside
                else _frame("check.found", found={"problems": [sentence]})
            )
        return _frame("check.failed", error=sentence, code="check_ended", status=503)


async def _lines(process: Process) -> AsyncIterator[bytes | None]:
    """The lines of the process as they come; None where there was none for a while."""
    assert process.stdout is not None  # noqa: S101 - it was started with a pipe
    pending: asyncio.Task[bytes] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(process.stdout.readline())
            done, _ = await asyncio.wait({pending}, timeout=POLL_SECONDS)
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


def _note_frame(sentence: str) -> bytes:
    return _frame("check.found", found={"notes": [sentence]})


def remove_stale_checks(home: Path) -> None:
    """Clear away what checks of a server that is dead have left."""
    for abandoned in checks_folder(home).glob(".at-work-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
