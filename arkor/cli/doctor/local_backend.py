"""Checks of `arkor doctor` on the backend of this machine: its process, its locks, its log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from arkor.client.local_backend import BackendInfo, fetch_health, is_alive, is_compatible, read_backend_info
from arkor.errors import BackendUnavailable
from arkor.files import is_locked
from arkor.protocol.diagnostics import Diagnostic, ok, problem, warning
from arkor.settings import VERSION

HEALTH_TIMEOUT = 5.0

#: How much of `backend.log` is searched for errors, and how old they may be.
LOG_TAIL_BYTES = 256 * 1024
RECENT_ERRORS = timedelta(days=1)

_LOG_LINE = re.compile(r"(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (?P<level>[A-Z]+) \S+ ?(?P<text>.*)")
_TOKEN = re.compile(r"arkor_[\w-]{16,}|(?<=Bearer )\S+")
_REWRITTEN = "no action needed: the next backend rewrites the file"


def lock_holder(lock: Path) -> int | None:
    """Return the process that holds a lock: 0 if it is unknown, None if the lock is free.

    Reads `/proc/locks` where it exists, because a trial lock could make a starting backend fail.
    """
    if not lock.exists():
        return None
    locks, inode = Path("/proc/locks"), lock.stat().st_ino
    if not locks.exists():
        return 0 if is_locked(lock) else None
    held = (line.split() for line in locks.read_text().splitlines())
    pids = (int(words[4]) for words in held if words[1] == "FLOCK" and words[5].endswith(f":{inode}"))
    return next((max(pid, 0) for pid in pids), None)


def check_local_backend(home: Path) -> Iterator[Diagnostic]:
    """Check that a running backend responds and is compatible; report the last error in its log."""
    try:
        info = read_backend_info(home)
    except BackendUnavailable as error:
        yield problem("process", error.problem, error.remedy)
        return
    yield _check_process(home, info)
    if (starter := lock_holder(home / "start.lock")) is not None:
        sentence = f"{_process_name(starter)} is starting a backend"
        yield warning("process", sentence, "check again in a minute; if it is still starting, end that process")
    yield from check_log(home / "backend.log")


def _check_process(home: Path, info: BackendInfo | None) -> Diagnostic:
    try:
        health = fetch_health(info, HEALTH_TIMEOUT) if info else None
    except TimeoutError:
        health = None
    if info and health:
        runs = f"{health.active_runs} active run{'' if health.active_runs == 1 else 's'}"
        sentence = f"process {info.pid} responds at {info.url} (arkor {health.version}, {runs})"
        try:
            compatible = is_compatible(info, health)
        except BackendUnavailable as error:
            return problem("process", f"{sentence}; it is incompatible with this arkor ({VERSION})", error.remedy)
        return ok("process", sentence if compatible else f"{sentence}; it is older and is replaced at the next call")
    if (server := lock_holder(home / "backend.lock")) is not None:
        remedy = f"it may be starting or overloaded: check again, then {f'kill {server}' if server else 'end it'}"
        return problem("process", f"{_process_name(server)} serves this home, but does not respond", remedy)
    if info:
        state = "whose id now belongs to another process" if is_alive(info.pid) else "which has ended"
        return warning("process", f"backend.json names process {info.pid}, {state}", _REWRITTEN)
    if (home / "backend.json").exists():
        return warning("process", f"{home / 'backend.json'} is invalid", _REWRITTEN)
    return ok("process", "not running; it is started when needed")


def _process_name(pid: int) -> str:
    return f"process {pid}" if pid else "another process"


def check_log(log: Path) -> Iterator[Diagnostic]:
    """Report the last error in the backend's log if it is recent, without the tokens in it."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - LOG_TAIL_BYTES, 0))
            lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return
    except OSError as error:
        yield warning("log", f"{log} cannot be read ({error.strerror})", f"chmod u+r {log}")
        return
    if lines and lines[-1].startswith("The backend "):  # the reason why it did not start
        last = lines[-1]
    else:
        matches = filter(None, map(_LOG_LINE.match, reversed(lines)))
        found = next((match for match in matches if match["level"] in ("ERROR", "CRITICAL")), None)
        if found is None or datetime.now() - datetime.fromisoformat(found["time"]) > RECENT_ERRORS:
            return
        last = f"{found['time']}: {found['text']}"
    yield warning("log", _TOKEN.sub("…", last)[:400], f"see {log}")
