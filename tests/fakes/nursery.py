"""Workers by the dozen: a process that has imported everything forks one for each run that it is given.

    python -m tests.fakes.nursery trl|scripted

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

OURS = str(Path(__file__).parent.parent.parent / "arkor" / "backend")
TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")


@frozen
class Death:
    """How a worker ended: its exit code, negative for a signal; and how often it could have died on the way.

    `seconds` is how long it took to stop after it was asked to.
    """

    code: int
    moments: int = 0
    seconds: float = 0.0


class Nursery:
    """The process, from the outside."""

    def __init__(self, engine: str, **environment: str) -> None:
        self._engine = engine
        command = [sys.executable, "-m", "tests.fakes.nursery", engine]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **ALONE, **environment}
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()

    def work(self, run: Path, **death: Any) -> Death:
        """A worker on this run, to its end: by `line=n`, `touch=n` (of files `below="…"`), `seconds=s`, or by itself.

        It is cancelled `delay` seconds after its log says `stop_at`, or, with `politely=True`, only told to leave, as
        by a machine that is shut down. It can write no file with more bytes than `largest`.
        """
        assert self._process.stdin
        assert self._process.stdout
        request = {"run": str(run), "home": str(run.parent.parent), "engine": self._engine, **death}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Death(**json.loads(self._process.stdout.readline()))


#: Threads do not survive a fork. Data may come from servers of the tests, models may not come from anywhere.
ALONE = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "ARKOR_ALLOW_PRIVATE_URLS": "1",
}


class Reaper:
    """Kills this process at the `at`-th moment of a kind, at once and with nothing tidied up."""

    def __init__(self, at: int) -> None:
        self.moments = 0
        self._at = at

    def count(self) -> None:
        self.moments += 1
        if self.moments == self._at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            return self.on_line if frame.f_code.co_filename.startswith(OURS) else None
        if event == "line":
            self.count()
        return self.on_line

    def watch_touches(self, below: str) -> None:
        def hook(event: str, arguments: Any) -> None:
            ours = event in TOUCHES and threading.current_thread() is threading.main_thread()
            if ours and any(isinstance(name, (str, Path)) and str(name).startswith(below) for name in arguments[:2]):
                self.count()

        sys.addaudithook(hook)


def live(request: dict[str, Any], report: int) -> None:
    """A child's life."""
    from arkor.backend.runs.paths import RunFolder  # noqa: PLC0415 - what is imported when is the point here
    from arkor.backend.workers.worker import play  # noqa: PLC0415 - as above

    folder = RunFolder(Path(request["run"]))
    output = os.open(folder.worker_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    reaper = Reaper(request.get("line") or request.get("touch") or 0)
    if "touch" in request:
        reaper.watch_touches(str(folder.path / request.get("below", "")))
    if "largest" in request:
        sys.dont_write_bytecode = True  # a truncated one would stay; Python before 3.13 does not notice
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"],) * 2)
    if "line" in request:
        sys.settrace(reaper.on_line)
    code = play(folder, Path(request["home"]), request["engine"])
    sys.settrace(None)
    os.write(report, str(reaper.moments).encode())
    os._exit(code)


def bear(request: dict[str, Any]) -> Death:
    """Fork, and wait for how it ends."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            live(request, writing)
        finally:
            os._exit(99)
    os.close(writing)
    watch = threading.Thread(target=watch_over, args=(child, request, asked := [0.0]))
    watch.start()
    moments = os.read(reading, 100)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    ended = time.monotonic()
    asked.append(ended)
    watch.join()
    os.close(reading)
    return Death(code, int(moments or b"0"), ended - asked[0] if asked[0] else 0.0)


def watch_over(child: int, request: dict[str, Any], asked: list[float]) -> None:
    """Send the signals that were asked for; the second entry of `asked` says that it is over."""
    began = time.monotonic()
    while len(asked) == 1:
        time.sleep(0.005)
        if "seconds" in request and time.monotonic() - began >= request["seconds"]:
            return send(child, signal.SIGKILL)
        if "stop_at" in request and request["stop_at"] in Path(request["run"], "events.jsonl").read_text():
            time.sleep(request.get("delay", 0.2))
            if not request.get("politely"):
                Path(request["run"], "cancelled").touch()
            asked[0] = time.monotonic()
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
        death = bear(json.loads(line))
        print(json.dumps(asdict(death)), flush=True)


if __name__ == "__main__":
    main()
