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

from arkor.backend.inference.messages import CompletionRequest, Delta, Failed, GenerationError, Reply, reply_from_json
from arkor.backend.runs.checkpoints import locate
from arkor.backend.runs.paths import RunFolder
from arkor.protocol.chat import Adapter
from arkor.protocol.codec import dumps
from arkor.settings import serving_idle_seconds

#: How long the serving process has to leave when it is told to, in seconds.
TERMINATE_SECONDS = 2.0

#: The longest line that it may send, in bytes.
LINE_LIMIT = 16 * 1024 * 1024


def adapter_folder(run: RunFolder, adapter: Adapter) -> Path:
    """Where the run keeps that adapter. Raises `GenerationError` (404) when it is not there, or not whole."""
    folder = run.final if adapter.kind == "final" else locate(run.checkpoint(adapter.step or 0))
    if _is_complete(folder):
        return folder
    steps = [str(step) for step in checkpoint_steps(run)]
    available = f"Its checkpoints are of step {', '.join(steps)}." if steps else "It has no checkpoint yet."
    description = "final adapter" if adapter.kind == "final" else f"checkpoint of step {adapter.step}"
    raise GenerationError(404, f"{adapter.kind}_not_found", f"The job {run.id!r} has no {description}. {available}")


def checkpoint_steps(run: RunFolder) -> list[int]:
    """The steps of the checkpoints that are whole, in order."""
    try:
        folders = [folder for folder in run.checkpoints.iterdir() if folder.name.isdecimal() and _is_complete(folder)]
    except FileNotFoundError:
        return []
    return sorted(int(folder.name) for folder in folders)


def _is_complete(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and (folder / "adapter_model.safetensors").is_file()


class ReplyStream:
    """The replies to one completion, as they come. Must be closed; closing an unfinished one stops its generation."""

    def __init__(self, worker: WorkerProcess, completion_id: str) -> None:
        self._worker = worker
        self._id = completion_id
        self._replies: asyncio.Queue[Reply] = asyncio.Queue()
        self._finished = False

    async def next(self) -> Reply:
        """The next reply; the last one is a `Done` or a `Failed`."""
        return await self._replies.get()

    def put(self, reply: Reply) -> None:
        """The child's word."""
        self._finished = not isinstance(reply, Delta)
        self._replies.put_nowait(reply)

    def close(self) -> None:
        """Want nothing more."""
        self._worker.drop(self._id, cancel=not self._finished)


class WorkerProcess:
    """One serving process and the answers that it owes. It leaves after `idle_seconds` in which it owed none."""

    def __init__(self, process: Process, log: Path, idle_seconds: float) -> None:
        self._process = process
        self._stdin = cast("asyncio.StreamWriter", process.stdin)
        self._stdout = cast("asyncio.StreamReader", process.stdout)
        self._log = log
        self._idle_seconds = idle_seconds
        self._idle_timer: asyncio.TimerHandle | None = None
        self._streams: dict[str, ReplyStream] = {}
        self._reader = asyncio.create_task(self._read())

    @property
    def accepts_requests(self) -> bool:
        """Whether it takes on anything more."""
        return not self._reader.done() and not self._stdin.is_closing()

    def send(self, completion: CompletionRequest) -> ReplyStream:
        """Begin an answer."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        stream = self._streams[completion.id] = ReplyStream(self, completion.id)
        self._write({"completion": attrs.asdict(completion)})
        return stream

    def drop(self, completion_id: str, *, cancel: bool) -> None:
        """An answer is wanted no more."""
        if self._streams.pop(completion_id, None) is None:
            return
        if cancel:
            self._write({"cancel": completion_id})
        if not self._streams and self._idle_seconds > 0:
            self._idle_timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._stdin.close)

    async def close(self) -> None:
        """Send it away, patiently at first."""
        self._stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), TERMINATE_SECONDS)
        except asyncio.TimeoutError:
            self._process.kill()
        await self._reader

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.accepts_requests:  # else the reader tells everybody
            self._stdin.write(dumps(line).encode() + b"\n")

    async def _read(self) -> None:
        """Hand out its replies until it ends; then tell who still waits."""
        try:
            async for line in self._stdout:
                reply = reply_from_json(json.loads(line))
                if stream := self._streams.get(reply.id):
                    stream.put(reply)
        except ValueError:  # what it says cannot be understood any more
            self._process.kill()
        code = await self._process.wait()
        for completion_id, stream in self._streams.items():
            stream.put(Failed(completion_id, 503, "serving_ended", self._crash_message(code)))

    def _crash_message(self, code: int) -> str:
        cause = f"with exit code {code}" if code >= 0 else f"by the signal {signal.Signals(-code).name}"
        hint = " (too little memory is the usual reason)" if code == -signal.SIGKILL else ""
        return f"The process that answers ended {cause}{hint}; its log is {self._log}. Ask again: another is started."


class InferenceService:
    """What answers completions, for as long as the server lives."""

    def __init__(self, home: Path, engine: str) -> None:
        self._home = home
        self._engine = engine
        self._worker: WorkerProcess | None = None
        self._start_lock = asyncio.Lock()

    async def generate(self, completion: CompletionRequest) -> ReplyStream:
        """Begin an answer, with a new process if there is none. Raises `GenerationError` when none can be started."""
        async with self._start_lock:
            if self._worker is None or not self._worker.accepts_requests:
                self._worker = await self._start()
            return self._worker.send(completion)

    async def close(self) -> None:
        """End the serving process."""
        async with self._start_lock:
            if self._worker is not None:
                await self._worker.close()
                self._worker = None

    async def _start(self) -> WorkerProcess:
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
            raise GenerationError(503, "serving_unavailable", sentence) from error
        return WorkerProcess(process, log, serving_idle_seconds())
