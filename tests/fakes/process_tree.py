"""Workers as forks of a process that has imported everything; each one can be killed at a repeatable moment.

Such a moment is the n-th line of the backend's code that the worker executes, or its n-th file operation.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from attrs import frozen

SOURCE_ROOT = str(Path(__file__).parent.parent.parent / "arkor" / "backend")
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")

#: Threads do not survive a fork. Data may come from the tests' servers, models only from disk.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "ARKOR_ALLOW_PRIVATE_URLS": "1",
}


@frozen
class WorkerExit:
    """The exit code of a worker (negative for a signal), the moments that it counted, seconds from signal to end."""

    code: int
    ticks: int = 0
    seconds: float = 0.0


class ProcessTree:
    """The forking process, as a context manager; `engine` is "trl" or "scripted"."""

    def __init__(self, engine: str, **environment: str) -> None:
        self._engine = engine
        spawning = multiprocessing.get_context("spawn")
        self._requests, theirs = spawning.Pipe()
        arguments = (theirs, engine, {**ENVIRONMENT, **environment})
        self._process = spawning.Process(target=serve, args=arguments)
        self._process.start()
        theirs.close()

    def __enter__(self) -> ProcessTree:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._requests.close()
        self._process.join()

    def run(self, run: Path, **fault: Any) -> WorkerExit:
        """Run a worker on this run to its end: killed at `line=n`, `touch=n` (of files `below="…"`) or `seconds=s`.

        With `stop_at`, it is cancelled `delay` seconds after its log contains that text; with `politely=True` it only
        gets SIGTERM, as when the machine shuts down. `largest` limits the size of each file that it writes, in bytes.
        """
        self._requests.send({"run": str(run), "home": str(run.parent.parent), "engine": self._engine, **fault})
        worker_exit: WorkerExit = self._requests.recv()
        return worker_exit


class Killer:
    """Kill this process with SIGKILL at the `at`-th moment of a kind; 0 only counts."""

    def __init__(self, at: int) -> None:
        self.ticks = 0
        self._at = at

    def tick(self) -> None:
        self.ticks += 1
        if self.ticks == self._at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            return self.on_line if frame.f_code.co_filename.startswith(SOURCE_ROOT) else None
        if event == "line":
            self.tick()
        return self.on_line

    def watch_file_events(self, below: str) -> None:
        def hook(event: str, arguments: Any) -> None:
            ours = event in FILE_EVENTS and threading.current_thread() is threading.main_thread()
            if ours and any(isinstance(name, (str, Path)) and str(name).startswith(below) for name in arguments[:2]):
                self.tick()

        sys.addaudithook(hook)


def run_child(request: dict[str, Any], report: int) -> None:
    """Run the worker in this fork, and write the number of moments to the file descriptor `report`."""
    from arkor.backend.runs.paths import RunFolder  # noqa: PLC0415 - imported before the fork
    from arkor.backend.workers.worker import run_worker  # noqa: PLC0415 - as above

    folder = RunFolder(Path(request["run"]))
    output = os.open(folder.worker_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    killer = Killer(request.get("line") or request.get("touch") or 0)
    if "touch" in request:
        killer.watch_file_events(str(folder.path / request.get("below", "")))
    if "largest" in request:
        sys.dont_write_bytecode = True  # a truncated .pyc would stay; Python before 3.13 does not notice
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"],) * 2)
    if "line" in request:
        sys.settrace(killer.on_line)
    code = run_worker(folder, Path(request["home"]), request["engine"])
    sys.settrace(None)
    os.write(report, str(killer.ticks).encode())
    os._exit(code)


def spawn(request: dict[str, Any]) -> WorkerExit:
    """Fork a worker, send it the signals of the request, and wait for its end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run_child(request, writing)
        finally:
            os._exit(99)
    os.close(writing)
    signalled_at: list[float] = []
    ended = threading.Event()
    watch = threading.Thread(target=send_signals, args=(child, request, signalled_at, ended))
    watch.start()
    ticks = os.read(reading, 100)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - signalled_at[0] if signalled_at else 0.0
    ended.set()
    watch.join()
    os.close(reading)
    return WorkerExit(code, int(ticks or b"0"), seconds)


def send_signals(child: int, request: dict[str, Any], signalled_at: list[float], ended: threading.Event) -> None:
    began = time.monotonic()
    while not ended.wait(0.005):
        if "seconds" in request and time.monotonic() - began >= request["seconds"]:
            number = signal.SIGKILL
            break
        if "stop_at" in request and request["stop_at"] in Path(request["run"], "events.jsonl").read_text():
            time.sleep(request.get("delay", 0.2))
            if not request.get("politely"):
                Path(request["run"], "cancelled").touch()
            signalled_at.append(time.monotonic())
            number = signal.SIGTERM
            break
    else:
        return
    with suppress(ProcessLookupError):  # the worker may have ended
        os.kill(child, number)


def serve(requests: Connection, engine: str, environment: dict[str, str]) -> None:
    """Import what the engine needs, then fork a worker for each request."""
    os.environ.update(environment)  # before torch is imported
    modules = ["arkor.backend.workers.worker"]
    if engine == "trl":
        modules += ["datasets", "arkor.backend.training.sft_trainer", "arkor.backend.training.trl_engine"]
    for module in modules:
        import_module(module)
    with suppress(EOFError):
        while True:
            requests.send(spawn(requests.recv()))
