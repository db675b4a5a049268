"""The server's side of inference: which weights are meant, and the one serving process that answers with them.

The process is started when it is first needed, kept, and let go after a quiet while to free its memory. If it dies,
the answers in progress fail with a sentence and the next request starts another. Nothing here imports torch.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import attrs

from arkor.backend.inference.messages import CannotAnswer, Completion, Delta, Failed, Reply, reply_from_json
from arkor.backend.runs.checkpoints import whereabouts
from arkor.backend.runs.paths import RunFolder
from arkor.protocol.chat import Adapter
from arkor.protocol.codec import dumps
from arkor.settings import serving_idle_seconds

#: How long the serving process has to leave when it is told to, in seconds.
GRACE_SECONDS = 2.0

#: The longest line that it may send, in bytes.
LINE_LIMIT = 16 * 1024 * 1024


def adapter_folder(run: RunFolder, adapter: Adapter) -> Path:
    """Where the run keeps that adapter. Raises `CannotAnswer` (404) when it is not there, or not whole."""
    folder = run.final if adapter.kind == "final" else whereabouts(run.checkpoint(adapter.step or 0))
    if _is_whole(folder):
        return folder
    steps = [str(step) for step in checkpoint_steps(run)]
    there = f"Its checkpoints are of step {', '.join(steps)}." if steps else "It has no checkpoint yet."
    wanted = "final adapter" if adapter.kind == "final" else f"checkpoint of step {adapter.step}"
    raise CannotAnswer(404, f"{adapter.kind}_not_found", f"The job {run.id!r} has no {wanted}. {there}")


def checkpoint_steps(run: RunFolder) -> list[int]:
    """The steps of the checkpoints that are whole, in order."""
    try:
        folders = [folder for folder in run.checkpoints.iterdir() if folder.name.isdecimal() and _is_whole(folder)]
    except FileNotFoundError:
        return []
    return sorted(int(folder.name) for folder in folders)


def _is_whole(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and (folder / "adapter_model.safetensors").is_file()


class Answer:
    """The replies to one completion, as they come. Must be closed; closing an unfinished one stops its generation."""

    def __init__(self, child: Child, completion_id: str) -> None:
        self._child = child
        self._id = completion_id
        self._replies: asyncio.Queue[Reply] = asyncio.Queue()
        self._over = False

    async def next(self) -> Reply:
        """The next reply; the last one is a `Done` or a `Failed`."""
        return await self._replies.get()

    def put(self, reply: Reply) -> None:
        """The child's word."""
        self._over = not isinstance(reply, Delta)
        self._replies.put_nowait(reply)

    def close(self) -> None:
        """Want nothing more."""
        self._child.forget(self._id, cancel=not self._over)


class Child:
    """One serving process and the answers that it owes. It leaves after `idle_seconds` in which it owed none."""

    def __init__(self, process: Process, log: Path, idle_seconds: float) -> None:
        self._process = process
        self._stdin = cast("asyncio.StreamWriter", process.stdin)
        self._stdout = cast("asyncio.StreamReader", process.stdout)
        self._log = log
        self._idle_seconds = idle_seconds
        self._departure: asyncio.TimerHandle | None = None
        self._answers: dict[str, Answer] = {}
        self._reader = asyncio.create_task(self._read())

    @property
    def open(self) -> bool:
        """Whether it takes on anything more."""
        return not self._reader.done() and not self._stdin.is_closing()

    def ask(self, completion: Completion) -> Answer:
        """Begin an answer."""
        if self._departure is not None:
            self._departure.cancel()
        answer = self._answers[completion.id] = Answer(self, completion.id)
        self._write({"completion": attrs.asdict(completion)})
        return answer

    def forget(self, completion_id: str, *, cancel: bool) -> None:
        """An answer is wanted no more."""
        if self._answers.pop(completion_id, None) is None:
            return
        if cancel:
            self._write({"cancel": completion_id})
        if not self._answers and self._idle_seconds > 0:
            self._departure = asyncio.get_running_loop().call_later(self._idle_seconds, self._stdin.close)

    async def leave(self) -> None:
        """Send it away, patiently at first."""
        self._stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), GRACE_SECONDS)
        except asyncio.TimeoutError:
            self._process.kill()
        await self._reader

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.open:  # else the reader tells everybody
            self._stdin.write(dumps(line).encode() + b"\n")

    async def _read(self) -> None:
        """Hand out its replies until it ends; then tell who still waits."""
        try:
            async for line in self._stdout:
                reply = reply_from_json(json.loads(line))
                if answer := self._answers.get(reply.id):
                    answer.put(reply)
        except ValueError:  # what it says cannot be understood any more
            self._process.kill()
        code = await self._process.wait()
        for completion_id, answer in self._answers.items():
            answer.put(Failed(completion_id, 503, "serving_ended", self._obituary(code)))

    def _obituary(self, code: int) -> str:
        how = f"with exit code {code}" if code >= 0 else f"by the signal {signal.Signals(-code).name}"
        hint = " (too little memory is the usual reason)" if code == -signal.SIGKILL else ""
        return f"The process that answers ended {how}{hint}; its log is {self._log}. Ask again: another is started."


class Inference:
    """What answers completions, for as long as the server lives."""

    def __init__(self, home: Path, engine: str) -> None:
        self._home = home
        self._engine = engine
        self._child: Child | None = None
        self._starting = asyncio.Lock()

    async def ask(self, completion: Completion) -> Answer:
        """Begin an answer, with a new process if there is none. Raises `CannotAnswer` when none can be started."""
        async with self._starting:
            if self._child is None or not self._child.open:
                self._child = await self._start()
            return self._child.ask(completion)

    async def close(self) -> None:
        """End the serving process."""
        async with self._starting:
            if self._child is not None:
                await self._child.leave()
                self._child = None

    async def _start(self) -> Child:
        module = [sys.executable, "-u", "-m", "arkor.backend.inference.process"]
        command = [*module, "--home", str(self._home), "--engine", self._engine]
        log = self._home / "serving.log"
        try:
            with log.open("ab") as errors:
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=PIPE, stdout=PIPE, stderr=errors, limit=LINE_LIMIT, start_new_session=True
                )
        except OSError as error:
            sentence = f"The process that answers cannot be started: {error}."
            raise CannotAnswer(503, "serving_unavailable", sentence) from error
        return Child(process, log, serving_idle_seconds())
