"""Workers as forks of a process that has imported everything; each one can be killed at a repeatable moment.

    python -m tests.fakes.process_tree trl|scripted

A line of JSON on stdin starts a worker, and the line on stdout is its `WorkerExit`. A repeatable moment is the n-th line
of the backend's code that the worker executes, or its n-th file operation.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from attrs import asdict, frozen

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
    """The forking process, as a context manager."""

    def __init__(self, engine: str, **environment: str) -> None:
        self._engine = engine
        command = [sys.executable, "-m", "tests.fakes.process_tree", engine]
        environment = {**os.environ, **ENVIRONMENT, **environment}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def __enter__(self) -> ProcessTree:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()

    def run(self, run: Path, **fault: Any) -> WorkerExit:
        """Run a worker on this run to its end: killed at `line=n`, `touch=n` (of files `below="…"`) or `seconds=s`.

        With `stop_at`, it is cancelled `delay` seconds after its log contains that text; with `politely=True` it only
        gets SIGTERM, as when the machine shuts down. `largest` limits the size of each file that it writes, in bytes.
        """
        assert self._process.stdin
        assert self._process.stdout
        request = {"run": str(run), "home": str(run.parent.parent), "engine": self._engine, **fault}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return WorkerExit(**json.loads(self._process.stdout.readline()))


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


def main() -> None:
    import arkor.backend.workers.worker  # noqa: PLC0415 - so that each fork has it

    if sys.argv[1] == "trl":
        import datasets  # noqa: F401, PLC0415 - as above

        import arkor.backend.training.sft_trainer  # noqa: PLC0415 - as above
        import arkor.backend.training.trl_engine  # noqa: F401, PLC0415 - as above
    for line in sys.stdin:
        print(json.dumps(asdict(spawn(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
