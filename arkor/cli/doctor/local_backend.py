"""The backend of this machine as `arkor doctor` sees it from outside: its process, its locks, what its log says.

It is neither started nor asked to leave; that is `client/local_backend.py`'s.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from arkor.client.local_backend import BackendInfo, Health, fetch_health, is_alive, is_compatible, read_backend_info
from arkor.errors import BackendUnavailable
from arkor.protocol.diagnostics import OK, PROBLEM, WARNING, Diagnostic
from arkor.settings import VERSION

#: Seconds for it to answer.
HEALTH_TIMEOUT = 5.0

#: How far back in `backend.log` an error is looked for: in bytes, and in time.
LOG_TAIL_BYTES = 256 * 1024
RECENT_ERRORS = timedelta(days=1)

_LOG_LINE = re.compile(r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (?P<level>[A-Z]+) \S+ ?(?P<text>.*)")
_TOKEN = re.compile(r"arkor_[\w-]{16,}|(?<=Bearer )\S+")


def is_serving(home: Path) -> bool:
    """Whether a backend is at work on this home."""
    return lock_holder(home / "backend.lock") is not None


def lock_holder(lock: Path) -> int | None:
    """The process that holds a lock; 0 for one that cannot be told, None for nobody."""
    try:
        inode = lock.stat().st_ino
    except OSError:
        return None
    try:
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return _is_locked(lock)
    pids = [int(words[4]) for words in held if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode)]
    return max(pids[0], 0) if pids else None


def _is_locked(lock: Path) -> int | None:
    """Where the system does not list locks: take it for an instant."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    except OSError:
        return None
    return None


def check_local_backend(home: Path) -> Iterator[Diagnostic]:
    """Whether a backend runs on this home, answers, and may be used; who holds its locks; its last error."""
    try:
        info = read_backend_info(home)
    except BackendUnavailable as error:
        sentence, _, remedy = str(error).partition("; ")
        yield Diagnostic("process", PROBLEM, sentence, remedy)
        return
    yield _check_process(home, info)
    if (starter := lock_holder(home / "start.lock")) is not None:
        sentence = f"{_process_name(starter)} is just starting a backend"
        yield Diagnostic("process", WARNING, sentence, "look again in a minute; if it still does, end that process")
    yield from check_log(home / "backend.log")


def _check_process(home: Path, info: BackendInfo | None) -> Diagnostic:
    server = lock_holder(home / "backend.lock")
    if info is not None:
        try:
            health = fetch_health(info, HEALTH_TIMEOUT)
        except TimeoutError:
            health = None
        if health is not None:
            return _check_health(info, health)
    if server is not None:
        sentence = f"{_process_name(server)} serves this home, but does not answer"
        end = f"kill {server}" if server else "end it"
        return Diagnostic("process", PROBLEM, sentence, f"it may be starting or overloaded: look again; then {end}")
    if info is not None:
        leftover_note = "another process has that number now" if is_alive(info.pid) else "that process has ended"
        sentence = f"backend.json speaks of process {info.pid}, but {leftover_note}"
        return Diagnostic("process", WARNING, sentence, "nothing needs to be done: the next backend writes it anew")
    if (home / "backend.json").exists():
        remedy = "nothing needs to be done: the next backend writes it anew"
        return Diagnostic("process", WARNING, f"{home / 'backend.json'} makes no sense", remedy)
    return Diagnostic("process", OK, "none is running; it is started when it is needed")


def _process_name(pid: int) -> str:
    return f"process {pid}" if pid else "another process"


def _check_health(info: BackendInfo, health: Health) -> Diagnostic:
    runs = "no run" if health.active_runs == 0 else f"{health.active_runs} run{'s' if health.active_runs > 1 else ''}"
    sentence = f"process {info.pid} answers at {info.url} (arkor {health.version}), with {runs} to do"
    try:
        compatible = is_compatible(info, health)
    except BackendUnavailable as error:
        _, _, remedy = str(error).partition("; ")
        return Diagnostic("process", PROBLEM, f"{sentence}; this arkor is {VERSION}, and they do not match", remedy)
    return Diagnostic(
        "process", OK, sentence if compatible else f"{sentence}; it is older, and replaced at the next call"
    )


# Its log


def check_log(log: Path) -> Iterator[Diagnostic]:
    """The last error of late in the backend's log, if there is one."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - LOG_TAIL_BYTES, 0))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        yield Diagnostic("log", WARNING, f"{log} cannot be read ({error.strerror})", f"chmod u+r {log}")
        return
    if last := _last_error(lines):
        yield Diagnostic("log", WARNING, _TOKEN.sub("…", last)[:400], f"more of it in {log}")


def _last_error(lines: list[str]) -> str | None:
    """The last line of level ERROR, if it is of late; or why the backend could not start, if that came last."""
    lines = [line for line in lines if line.strip()]
    if lines and lines[-1].startswith("The backend "):
        return lines[-1]
    for line in reversed(lines):
        found = _LOG_LINE.match(line)
        if found and found["level"] in ("ERROR", "CRITICAL"):
            late = datetime.now() - datetime.fromisoformat(found["time"]) < RECENT_ERRORS
            return f"{found['time']}: {found['text']}" if late else None
    return None
