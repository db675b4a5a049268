"""Start a worker for each job in turn, and record how each run ends.

The log of a run is locked by its worker while it is alive. The supervisor waits for a worker by
waiting for the lock, both for its own child processes and for workers that an earlier server
started. When it gets the lock of a log without a terminal event, the worker is dead: the supervisor
then appends `training.resumed`, which queues the run after the jobs that are already waiting, or a
terminal event.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from sqlalchemy.exc import DBAPIError

from arkor.backend.compute.child_process import describe_exit
from arkor.backend.engine.hyperparameters import DEFAULTS
from arkor.backend.runs.checkpoints import RETIREMENT_SECONDS, remove_expired, resume_step
from arkor.backend.runs.event_log import LogCorrupted, LogStatus, LogWriter, read_last, read_status
from arkor.backend.runs.log_notifier import notify
from arkor.backend.runs.log_queries import present_artifacts, read_log_progress
from arkor.backend.runs.paths import RunFolder, notifier_file, run_folder, run_ids
from arkor.backend.store.store import JobRecord, Store, database_problem
from arkor.backend.workers.signals import HEARTBEAT_SECONDS, HeartbeatMonitor
from arkor.backend.workers.worker import EXIT_LOG_HELD
from arkor.files import is_locked
from arkor.protocol.events import Event, TrainingCancelled, TrainingFailedEvent, TrainingResumed, now
from arkor.protocol.jobs import JobStatus

#: Seconds between SIGTERM and SIGKILL.
GRACE_SECONDS = 4.0

#: Seconds between attempts when the disk or the database fails.
RETRY_SECONDS = 3.0

#: How often a run is resumed without reaching a new step.
MAX_RESUMPTIONS = 2

#: The last event in the log of a run that waits for a worker; None for an empty log.
WAITING_TYPES = (None, "training.resumed")

#: The exit of a worker that this server did not start.
UNOBSERVED = "unseen by any server"

#: Parts of a worker's output that show that memory was the cause, in lower case.
_OOM_MARKERS = ("out of memory", "memoryerror", "cannot allocate memory", "bad_alloc", "oom-kill")

logger = logging.getLogger("arkor.backend")

Process = subprocess.Popen[bytes]


class JobFinished(Exception):
    """The job to cancel has already ended; `str()` is its status."""


@attrs.define
class ActiveRun:
    """A run that this server supervises; `process` is its worker, if it started it."""

    process: Process | None = None
    heartbeat: HeartbeatMonitor = attrs.Factory(HeartbeatMonitor)


class Supervisor:
    """The job queue; one run trains at a time. Methods may be called from any thread."""

    def __init__(self, home: Path, store: Store, engine: str) -> None:
        self._home = home
        self._store = store
        self._engine = engine
        self._changed = threading.Condition()
        self._active: dict[str, ActiveRun] = {}
        self._cancelled: set[str] = set()
        self._heartbeats_checked_at = 0.0
        self._stopping = False

    def start(self) -> None:
        """Start serving the queue, beginning with the runs that an earlier server left."""
        threading.Thread(target=self._serve, name="queue", daemon=True).start()
        self._release_later(*run_ids(self._home))

    def stop(self) -> None:
        """Start no further workers; running workers are not stopped."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def current(self, job: JobRecord) -> JobRecord:
        """Return the job with its current status from the log."""
        if job.status.terminal:
            return job
        try:
            status = read_status(run_folder(self._home, job.id).events)
        except LogCorrupted:  # reported when the run is finalized
            return job
        return attrs.evolve(job, **attrs.asdict(status, recurse=False))

    def stalled_since(self, job_id: str) -> str | None:
        """Return the time of the last heartbeat of this run, if its worker is alive but stalled."""
        active = self._active.get(job_id)
        return active.heartbeat.stalled_since if active else None

    def is_training(self) -> bool:
        return bool(self._active)

    def cancel(self, job: JobRecord) -> None:
        """End a job within about `GRACE_SECONDS`, at once if it waits. Raise `JobFinished`."""
        folder = run_folder(self._home, job.id)
        with self._changed:
            status = self.current(job).status
            if status.terminal:
                raise JobFinished(status.value)
            self._record_cancellation(job)
            if job.id in self._active or is_locked(folder.events):
                return self._stop(folder)
            self._active[job.id] = ActiveRun()
        try:
            self._finalize(job, folder, "")
        finally:
            self._release(job)

    def _record_cancellation(self, job: JobRecord) -> None:
        """Record the request for the worker and the next server, if the disk permits."""
        self._cancelled.add(job.id)
        with contextlib.suppress(OSError):
            run_folder(self._home, job.id).cancelled.touch(mode=0o600)
        try:
            self._store.update_job(job.id, cancel_requested_at=now())
        except DBAPIError as error:
            if database_problem(error) != "disk":
                raise
            logger.warning("The cancellation of run %s could not be recorded: %s", job.id, error.orig)

    # The queue

    def _serve(self) -> None:
        select_jobs = self._abandoned
        while not self._stopping:
            with self._retrying("The queue could not be read"):
                with self._changed:
                    for job in select_jobs():
                        self._active[job.id] = ActiveRun()
                        name = f"run {job.id}"
                        threading.Thread(target=self._supervise, args=(job,), name=name, daemon=True).start()
                    if select_jobs == self._next_jobs:
                        self._changed.wait(HEARTBEAT_SECONDS if self._active else None)
                    select_jobs = self._next_jobs
                self._check_heartbeats()

    @contextlib.contextmanager
    def _retrying(self, problem: str) -> Iterator[None]:
        """Log any error in the block, usually a full disk, and pause before the next attempt."""
        try:
            yield
        except (OSError, DBAPIError) as error:
            logger.warning("%s (%s); trying again", problem, error.orig if isinstance(error, DBAPIError) else error)
            time.sleep(RETRY_SECONDS)
        except Exception:
            logger.exception("%s; trying again", problem)
            time.sleep(RETRY_SECONDS)

    def _abandoned(self) -> list[JobRecord]:
        """Return the unfinished runs that do not wait for a worker; they are adopted at once."""
        return [job for job in self._store.unfinished() if self._waiting_since(job) is None]

    def _next_jobs(self) -> list[JobRecord]:
        """Return the job to start now, the one that waits the longest, unless a run is active."""
        if self._active or self._stopping:
            return []
        return sorted(self._store.unfinished(), key=lambda job: self._waiting_since(job) or "")[:1]

    def _waiting_since(self, job: JobRecord) -> str | None:
        """Return the time since which the job waits for a worker, or None if it does not wait."""
        events = run_folder(self._home, job.id).events
        try:
            last = read_last(events)
        except LogCorrupted:
            return None
        if is_locked(events) or (last["type"] if last else None) not in WAITING_TYPES:
            return None
        return str(last["timestamp"]) if last else job.created_at

    def _release(self, job: JobRecord) -> None:
        with self._changed:
            del self._active[job.id]
            self._changed.notify_all()

    def _check_heartbeats(self) -> None:
        """Check the heartbeats if it is time to, and log each change of a worker's state."""
        with self._changed:
            active_runs = dict(self._active)
        if time.monotonic() - self._heartbeats_checked_at < HEARTBEAT_SECONDS:
            return
        self._heartbeats_checked_at = time.monotonic()
        for job_id, active in active_runs.items():
            before = active.heartbeat.stalled_since
            active.heartbeat.check(run_folder(self._home, job_id).pid)
            since = active.heartbeat.stalled_since
            if since and not before:
                logger.warning("The worker of run %s has stalled since %s", job_id, since)
            elif before and not since:
                logger.warning("The worker of run %s continues", job_id)

    # A run

    def _supervise(self, job: JobRecord) -> None:
        """Supervise a run until it waits for another worker or has ended."""
        folder = run_folder(self._home, job.id)
        try:
            with self._retrying(f"The end of run {job.id} could not be recorded"):
                self._finalize(job, folder, self._run_worker(job, folder))
        finally:
            self._release(job)

    def _run_worker(self, job: JobRecord, folder: RunFolder) -> str:
        """Start a worker if the run waits for one, wait for its exit and describe it."""
        try:
            process = self._start_worker(job, folder)
            code = wait_for_exit(process) if process is not None else EXIT_LOG_HELD
        except (OSError, LogCorrupted) as error:
            return f"before it began ({error})"
        return UNOBSERVED if code == EXIT_LOG_HELD else describe_exit(code)

    def _start_worker(self, job: JobRecord, folder: RunFolder) -> Process | None:
        """Start a worker if the job waits for one; stop it if the run was cancelled."""
        with self._changed:
            if self._is_cancelled(job):
                if is_locked(folder.events):
                    self._stop(folder)
                return None
            if self._stopping or self._waiting_since(job) is None or not folder.path.is_dir():
                return None
            self._active[job.id].process = process = self._spawn(folder)
            return process

    def _is_cancelled(self, job: JobRecord) -> bool:
        marked = job.id in self._cancelled or run_folder(self._home, job.id).cancelled.exists()
        return marked or self._store.cancel_requested(job.id)

    def _spawn(self, folder: RunFolder) -> Process:
        module = [sys.executable, "-u", "-m", "arkor.backend.workers.worker"]
        command = [*module, str(folder.path), "--home", str(self._home), "--engine", self._engine]
        with folder.worker_log.open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - our own module, no shell
                command,
                cwd=folder.path,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _finalize(self, job: JobRecord, folder: RunFolder, cause: str) -> None:
        """Wait for the lock of the log, append the event that follows, and store the status."""
        try:
            with LogWriter(folder.events, wait=True) as log:
                folder.pid.unlink(missing_ok=True)  # another process may get the same id
                if not log.tail.terminal and (event := self._outcome(job, folder, cause, log.tail.type)):
                    log.append(event, sync=True)
            status = read_status(folder.events)
        except (FileNotFoundError, LogCorrupted) as error:
            problem = f"The run's log is missing or damaged ({error})"
            status = LogStatus(JobStatus.FAILED, problem, completed_at=now())
        if status.status.terminal:
            folder.clear_worker_files()
            self._release_later(job.id)
            self._store.update_job(job.id, **{**attrs.asdict(status, recurse=False), "status": status.status.value})
            self._cancelled.discard(job.id)
        notify(notifier_file(self._home))

    def _release_later(self, *ids: str) -> None:
        """Remove the retired checkpoints of runs without a worker once no client can need them."""
        for job_id in ids:
            if (folder := run_folder(self._home, job_id)).retired.is_dir():
                _call_later(RETIREMENT_SECONDS + 1, remove_expired, folder)

    def _outcome(self, job: JobRecord, folder: RunFolder, cause: str, last: str | None) -> Event | None:
        """Return the event to append after a worker has died; None if the job still waits."""
        progress = read_log_progress(folder)
        artifacts = present_artifacts(folder, progress.saved)
        if self._is_cancelled(job):
            return TrainingCancelled(job.id, now(), progress.step, artifacts)
        if cause == UNOBSERVED and last in WAITING_TYPES:
            return None
        if progress.stalled_resumptions < MAX_RESUMPTIONS:
            step = resume_step(folder, progress.saved) or 0
            logger.warning("The worker of run %s ended %s; the run resumes from step %d", job.id, cause, step)
            return TrainingResumed(job.id, now(), step, f"the worker ended {cause}")
        problem = crash_message(cause, MAX_RESUMPTIONS + 1, folder.worker_log, job.config)
        return TrainingFailedEvent(job.id, now(), problem, progress.step, artifacts)

    # Stopping a worker

    def _stop(self, folder: RunFolder) -> None:
        self._signal(folder, signal.SIGTERM)
        _call_later(GRACE_SECONDS, self._signal, folder, signal.SIGKILL)

    def _signal(self, folder: RunFolder, number: signal.Signals) -> None:
        """Signal the worker if it is alive; SIGKILL also goes to the processes that it started."""
        active = self._active.get(folder.id)
        if active and active.process is not None and active.process.poll() is None:
            pid: int | None = active.process.pid
        else:  # the child of another server; its process id is valid only while the log is locked
            pid = folder.worker_pid() if is_locked(folder.events) else None
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number) if number == signal.SIGKILL else os.kill(pid, number)


def _call_later(seconds: float, function: Callable[..., None], *arguments: Any) -> None:
    timer = threading.Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()


# How a worker ended


def wait_for_exit(worker: Process) -> int:
    """Wait for a worker, kill its session, which may hold the log's lock; return the exit code."""
    with contextlib.suppress(AttributeError, ChildProcessError, ProcessLookupError, PermissionError):
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # the id stays reserved while it is a zombie
        os.killpg(worker.pid, signal.SIGKILL)
    return worker.wait()


def crash_message(cause: str, crashes: int, worker_log: Path, config: Mapping[str, Any]) -> str:
    """Return the error of a run that is given up after `crashes`, the last by `cause`."""
    tail = stderr_tail(worker_log)
    repetition = "" if crashes == 1 else f" {crashes} times in a row without reaching a new step, the last time"
    oom = "SIGKILL" in cause or any(marker in tail.lower() for marker in _OOM_MARKERS)
    remedy = oom_remedy(config) if oom else ""
    return f"The worker ended{repetition} {cause} and reported no error. {remedy}{tail}"


def oom_remedy(config: Mapping[str, Any]) -> str:
    """Suggest the smallest change of a configuration (in wire format) that needs less memory."""
    batch = config.get("batchSize") or DEFAULTS["batch_size"]
    length = config.get("maxLength") or DEFAULTS["max_length"]
    if batch > 1:
        setting = f"batch_size={batch // 2} (it was {batch})"
    elif length > 128:
        setting = f"max_length={length // 2} (it was {length})"
    else:
        setting = "a smaller model"
    return f"The usual reason is too little memory; the smallest change that needs less is {setting}. "


def stderr_tail(worker_log: Path, lines: int = 5, max_length: int = 1000) -> str:
    """Return a sentence with the last lines of the worker's output."""
    try:
        with worker_log.open("rb") as file:
            file.seek(max(worker_log.stat().st_size - 8192, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "It left no log."
    tail = "\n".join(text.strip().splitlines()[-lines:])[-max_length:]
    return f"Its log, {worker_log}, ends with:\n{tail}" if tail else f"Its log, {worker_log}, is empty."
