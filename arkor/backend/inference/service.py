"""The server's side of inference: find adapters, and send requests to the serving process.

The process starts with the first request and is stopped after a time without requests, to free
memory. If it exits, its answers fail and the next request starts another. Does not import torch.
"""

from __future__ import annotations

import asyncio
import json
import signal
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import attrs

from arkor.backend.compute.child_process import describe_exit, encode_line, start_child
from arkor.backend.inference.messages import CompletionRequest, Done, Failed, GenerationError, Reply, reply_from_json
from arkor.backend.runs.checkpoints import locate
from arkor.backend.runs.paths import RunFolder
from arkor.protocol.chat import Adapter
from arkor.settings import serving_idle_seconds

#: Seconds for the serving process to exit before it is killed.
TERMINATE_SECONDS = 2.0


def adapter_folder(run: RunFolder, adapter: Adapter) -> Path:
    """Return the folder of an adapter. Raise `GenerationError` (404) if it is incomplete."""
    folder = run.final if adapter.kind == "final" else locate(run.checkpoint(adapter.step or 0))
    if _is_complete(folder):
        return folder
    steps = [str(step) for step in checkpoint_steps(run)]
    available = f"Its checkpoints are of step {', '.join(steps)}." if steps else "It has no checkpoint yet."
    description = "final adapter" if adapter.kind == "final" else f"checkpoint of step {adapter.step}"
    problem = f"The job {run.id!r} has no {description}. {available}"
    raise GenerationError(404, f"{adapter.kind}_not_found", problem)


def checkpoint_steps(run: RunFolder) -> list[int]:
    """Return the steps of the complete checkpoints, in order."""
    try:
        folders = [folder for folder in run.checkpoints.iterdir() if folder.name.isdecimal() and _is_complete(folder)]
    except FileNotFoundError:
        return []
    return sorted(int(folder.name) for folder in folders)


def _is_complete(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file() and (folder / "adapter_model.safetensors").is_file()


class ReplyStream:
    """The replies to completions that run concurrently.

    Must be closed; closing it early cancels those that are unfinished.
    """

    def __init__(self, worker: WorkerProcess, completion_ids: Sequence[str]) -> None:
        self._worker = worker
        self._ids = completion_ids
        self._replies: asyncio.Queue[Reply] = asyncio.Queue()
        self._finished: set[str] = set()

    async def next(self) -> Reply:
        """Wait for the next reply; the last one of a completion is a `Done` or a `Failed`."""
        return await self._replies.get()

    def put(self, reply: Reply) -> None:
        """Add a reply of the process."""
        if isinstance(reply, (Done, Failed)):
            self._finished.add(reply.id)
        self._replies.put_nowait(reply)

    def close(self) -> None:
        """Release the stream; cancel the unfinished completions."""
        for completion_id in self._ids:
            self._worker.drop(completion_id, cancel=completion_id not in self._finished)


class WorkerProcess:
    """One serving process and its unfinished answers. It exits after `idle_seconds` without any."""

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
        """Whether the process accepts further requests."""
        return not self._reader.done() and not self._stdin.is_closing()

    def send(self, completions: Sequence[CompletionRequest]) -> ReplyStream:
        """Send requests."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        stream = ReplyStream(self, [completion.id for completion in completions])
        for completion in completions:
            self._streams[completion.id] = stream
            self._write({"completion": attrs.asdict(completion)})
        return stream

    def drop(self, completion_id: str, *, cancel: bool) -> None:
        """Forget a completion."""
        if self._streams.pop(completion_id, None) is None:
            return
        if cancel:
            self._write({"cancel": completion_id})
        if not self._streams and self._idle_seconds > 0:
            self._idle_timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._stdin.close)

    async def close(self) -> None:
        """Close its stdin and wait for its exit; kill it after `TERMINATE_SECONDS`."""
        self._stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), TERMINATE_SECONDS)
        except asyncio.TimeoutError:
            self._process.kill()
        await self._reader

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.accepts_requests:  # else the reader fails all streams
            self._stdin.write(encode_line(line))

    async def _read(self) -> None:
        """Distribute replies until the process exits; then fail the remaining streams."""
        try:
            async for line in self._stdout:
                reply = reply_from_json(json.loads(line))
                if stream := self._streams.get(reply.id):
                    stream.put(reply)
        except ValueError:  # an invalid line
            self._process.kill()
        exit_code = await self._process.wait()
        problem = f"The serving process ended {describe_exit(exit_code)}."
        if exit_code == -signal.SIGKILL:
            problem += " Too little memory is the usual reason."
        remedy = f"See its log, {self._log}. The next request starts another process."
        for completion_id, stream in self._streams.items():
            stream.put(Failed(completion_id, 503, "serving_ended", problem, remedy))


class InferenceService:
    """Generates completions in a child process, which is started when needed."""

    def __init__(self, home: Path, engine: str) -> None:
        self._home = home
        self._engine = engine
        self._worker: WorkerProcess | None = None
        self._start_lock = asyncio.Lock()

    async def generate(self, *completions: CompletionRequest) -> ReplyStream:
        """Send requests, to a new process if necessary. Raise `GenerationError`."""
        async with self._start_lock:
            if self._worker is None or not self._worker.accepts_requests:
                self._worker = await self._start()
            return self._worker.send(completions)

    async def close(self) -> None:
        """Stop the serving process."""
        async with self._start_lock:
            if self._worker is not None:
                await self._worker.close()
                self._worker = None

    async def _start(self) -> WorkerProcess:
        log = self._home / "serving.log"
        try:
            with log.open("ab") as stderr:
                process = await start_child("arkor.backend.inference.process", self._home, self._engine, stderr)
        except OSError as error:
            problem = "The serving process cannot be started."
            raise GenerationError(503, "serving_unavailable", problem, remedy=f"{error}.") from error
        return WorkerProcess(process, log, serving_idle_seconds())
