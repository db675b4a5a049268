"""Workers by the dozen: a process that has imported everything forks one for each run that it is given.

    python -m tests.fakes.process_tree trl|scripted

A line of JSON on stdin is a worker to start, the line on stdout says how it ended. It can be made to die by itself, at
a moment that is the same each time: at the n-th line of ours that it executes, or the n-th time that it touches a file.
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


@frozen
class WorkerExit:
    """How a worker ended: its exit code, negative for a signal; and how often it could have died on the way.

    `seconds` is how long it took to stop after it was asked to.
    """

    code: int
    ticks: int = 0
    seconds: float = 0.0


class ProcessTree:
    """The process, from the outside."""

    def __init__(self, engine: str, **environment: str) -> None:
        self._engine = engine
        command = [sys.executable, "-m", "tests.fakes.process_tree", engine]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **ENVIRONMENT, **environment}
        )

    def __enter__(self) -> ProcessTree:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()

    def run(self, run: Path, **fault: Any) -> WorkerExit:
        """A worker on this run, to its end: by `line=n`, `touch=n` (of files `below="…"`), `seconds=s`, or by itself.

        It is cancelled `delay` seconds after its log says `stop_at`, or, with `politely=True`, only told to leave, as
        by a machine that is shut down. It can write no file with more bytes than `largest`.
        """
        assert self._process.stdin
        assert self._process.stdout
        request = {"run": str(run), "home": str(run.parent.parent), "engine": self._engine, **fault}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return WorkerExit(**json.loads(self._process.stdout.readline()))


#: Threads do not survive a fork. Data may come from servers of the tests, models may not come from anywhere.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "ARKOR_ALLOW_PRIVATE_URLS": "1",
}


class Killer:
    """Kills this process at the `at`-th moment of a kind, at once and with nothing tidied up."""

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
    """A child's life."""
    from arkor.backend.runs.paths import RunFolder  # noqa: PLC0415 - what is imported when is the point here
    from arkor.backend.workers.worker import run_worker  # noqa: PLC0415 - as above

    folder = RunFolder(Path(request["run"]))
    output = os.open(folder.worker_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    killer = Killer(request.get("line") or request.get("touch") or 0)
    if "touch" in request:
        killer.watch_file_events(str(folder.path / request.get("below", "")))
    if "largest" in request:
        sys.dont_write_bytecode = True  # a truncated one would stay; Python before 3.13 does not notice
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"],) * 2)
    if "line" in request:
        sys.settrace(killer.on_line)
    code = run_worker(folder, Path(request["home"]), request["engine"])
    sys.settrace(None)
    os.write(report, str(killer.ticks).encode())
    os._exit(code)


def spawn(request: dict[str, Any]) -> WorkerExit:
    """Fork, and wait for how it ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run_child(request, writing)
        finally:
            os._exit(99)
    os.close(writing)
    watch = threading.Thread(target=supervise, args=(child, request, asked_at := [0.0]))
    watch.start()
    ticks = os.read(reading, 100)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ended = time.monotonic()
    asked_at.append(ended)
    watch.join()
    os.close(reading)
    return WorkerExit(code, int(ticks or b"0"), ended - asked_at[0] if asked_at[0] else 0.0)


def supervise(child: int, request: dict[str, Any], asked_at: list[float]) -> None:
    """Send the signals that were asked for; the second entry of `asked_at` says that it is over."""
    began = time.monotonic()
    while len(asked_at) == 1:
        time.sleep(0.005)
        if "seconds" in request and time.monotonic() - began >= request["seconds"]:
            return send(child, signal.SIGKILL)
        if "stop_at" in request and request["stop_at"] in Path(request["run"], "events.jsonl").read_text():
            time.sleep(request.get("delay", 0.2))
            if not request.get("politely"):
                Path(request["run"], "cancelled").touch()
            asked_at[0] = time.monotonic()
            return send(child, signal.SIGTERM)
    return None


def send(child: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it may have been faster
        os.kill(child, number)


def main() -> None:
    import arkor.backend.workers.worker  # noqa: PLC0415 - as above

    if sys.argv[1] == "trl":
        import datasets  # noqa: F401, PLC0415 - as above

        import arkor.backend.training.sft_trainer  # noqa: PLC0415 - as above
        import arkor.backend.training.trl_engine  # noqa: F401, PLC0415 - as above
    for line in sys.stdin:
        worker_exit = spawn(json.loads(line))
        print(json.dumps(asdict(worker_exit)), flush=True)


if __name__ == "__main__":
    main()
