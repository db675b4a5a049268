"""Gives every job a worker as slots allow, and sees every run to its end.

A run's log is locked by its worker for as long as that lives. So one waits for a worker by waiting for the lock: for
one that this server started and for one that it found running at its start alike. Whoever holds the lock of a log
without a terminal event knows that the worker is dead, and says in it what becomes of the run: it waits for another
worker (`training.resumed`), behind the jobs that wait already, or it has ended.
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
from collections.abc import Iterator
from pathlib import Path

import attrs
from sqlalchemy.exc import DBAPIError

from arkor.backend.runs.checkpoints import RETIREMENT_SECONDS, remove_expired
from arkor.backend.runs.event_log import LogCorrupted, LogStatus, LogWriter, is_locked, read_last, read_status
from arkor.backend.runs.log_notifier import notify
from arkor.backend.runs.log_queries import read_log_progress
from arkor.backend.runs.paths import RunFolder, notifier_file, run_folder, run_ids
from arkor.backend.store.store import JobRecord, Store, is_disk_error
from arkor.backend.workers.exit_report import UNOBSERVED, crash_message, describe_exit, wait_for_exit
from arkor.backend.workers.heartbeat import HEARTBEAT_SECONDS, HeartbeatMonitor
from arkor.backend.workers.worker import EXIT_LOG_HELD
from arkor.protocol.events import Event, TrainingCancelled, TrainingFailedEvent, TrainingResumed, now
from arkor.protocol.jobs import JobStatus

#: How long a worker has to end by itself after it was told to, in seconds.
GRACE_SECONDS = 4.0

#: How long to wait before another attempt at what the disk did not take, in seconds.
RETRY_SECONDS = 3.0

#: How often in a row a run is resumed without getting any further.
MAX_RESUMPTIONS = 2

#: What comes last in the log of a run that waits for a worker; None is nothing at all.
WAITING_TYPES = (None, "training.resumed")

logger = logging.getLogger("arkor.backend")

Process = subprocess.Popen[bytes]


class JobFinished(Exception):
    """The job that was to be cancelled has ended; `str()` is its status."""


@attrs.define
class ActiveRun:
    """A run that somebody here looks after: its worker, if this server started one, and the pulse of it."""

    process: Process | None = None
    heartbeat: HeartbeatMonitor = attrs.Factory(HeartbeatMonitor)


class Supervisor:
    """The queue and its slots. Methods may be called from any thread."""

    def __init__(self, home: Path, store: Store, engine: str, slots: int = 1) -> None:
        self._home = home
        self._store = store
        self._engine = engine
        self._slots = slots
        self._changed = threading.Condition()
        self._active: dict[str, ActiveRun] = {}
        self._cancelled: set[str] = set()
        self._heartbeats_checked_at = 0.0
        self._stopping = False

    def start(self) -> None:
        """Serve the queue from here on, first of all the runs that an earlier server left behind."""
        threading.Thread(target=self._serve, name="queue", daemon=True).start()
        self._release_later(*run_ids(self._home))

    def stop(self) -> None:
        """Start nothing more; workers go on."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def wake(self) -> None:
        """There is a new job."""
        with self._changed:
            self._changed.notify_all()

    def current(self, job: JobRecord) -> JobRecord:
        """The job as its log has it now."""
        if job.status.terminal:
            return job
        try:
            status = read_status(run_folder(self._home, job.id).events)
        except LogCorrupted:  # whoever closes the run will say so
            return job
        return attrs.evolve(job, **attrs.asdict(status, recurse=False))

    def stalled_since(self, job_id: str) -> str | None:
        """When the worker of this run was last awake, if it lives but stands still."""
        active = self._active.get(job_id)
        return active.heartbeat.stalled_since if active else None

    def is_training(self) -> bool:
        """Whether any run is at work."""
        return bool(self._active)

    def cancel(self, job: JobRecord) -> None:
        """End the job: a waiting one at once, a running one within `GRACE_SECONDS` and a moment.

        Raises `JobFinished`.
        """
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
        """For the worker and the next server; a full disk must not keep a run from being stopped."""
        self._cancelled.add(job.id)
        with contextlib.suppress(OSError):
            run_folder(self._home, job.id).cancelled.touch(mode=0o600)
        try:
            self._store.update_job(job.id, cancel_requested_at=now())
        except DBAPIError as error:
            if not is_disk_error(error):
                raise
            logger.warning("That run %s is to be cancelled could not be written down: %s", job.id, error.orig)

    # The queue

    def _serve(self) -> None:
        select_jobs = self._abandoned
        while not self._stopping:
            with self._retrying("The queue could not be read"):
                with self._changed:
                    for job in select_jobs():
                        self._adopt(job)
                    if select_jobs == self._next_jobs:
                        self._changed.wait(HEARTBEAT_SECONDS if self._active else None)
                    select_jobs = self._next_jobs
                self._check_heartbeats()

    @contextlib.contextmanager
    def _retrying(self, problem: str) -> Iterator[None]:
        """Whatever goes wrong in here (a full disk, as a rule) is told, and attempted again after a pause."""
        try:
            yield
        except (OSError, DBAPIError) as error:
            logger.warning("%s (%s); trying again", problem, error.orig if isinstance(error, DBAPIError) else error)
            time.sleep(RETRY_SECONDS)
        except Exception:
            logger.exception("%s; trying again", problem)
            time.sleep(RETRY_SECONDS)

    def _adopt(self, job: JobRecord) -> None:
        self._active[job.id] = ActiveRun()
        threading.Thread(target=self._supervise, args=(job,), name=f"run {job.id}", daemon=True).start()

    def _abandoned(self) -> list[JobRecord]:
        """The runs that are at work, or have died or ended unseen; they are looked after whatever the slots say."""
        return [job for job in self._store.unfinished() if self._waiting_since(job) is None]

    def _next_jobs(self) -> list[JobRecord]:
        """The jobs to take now, those first that have waited longest, as many as there are free slots."""
        free = self._slots - len(self._active)
        if free <= 0 or self._stopping:
            return []
        idle = [job for job in self._store.unfinished() if job.id not in self._active]
        return sorted(idle, key=lambda job: self._waiting_since(job) or "")[:free]

    def _waiting_since(self, job: JobRecord) -> str | None:
        """Since when the job waits for a worker; None if it does not, whatever it does instead."""
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
        """Look at every heart here when it is time to; tell the server's log, once, of those that stand still."""
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
                logger.warning("The worker of run %s has stood still since %s", job_id, since)
            elif before and not since:
                logger.warning("The worker of run %s goes on", job_id)

    # A run

    def _supervise(self, job: JobRecord) -> None:
        """One run, from wherever it stands until it waits again or has ended."""
        folder = run_folder(self._home, job.id)
        try:
            with self._retrying(f"The end of run {job.id} could not be recorded"):
                self._finalize(job, folder, self._run_worker(job, folder))
        finally:
            self._release(job)

    def _run_worker(self, job: JobRecord, folder: RunFolder) -> str:
        """Have a worker work on the run if it waits for one; how that ended."""
        try:
            process = self._start_worker(job, folder)
            code = wait_for_exit(process) if process is not None else EXIT_LOG_HELD
        except (OSError, LogCorrupted) as error:
            return f"before it began ({error})"
        return UNOBSERVED if code == EXIT_LOG_HELD else describe_exit(code)

    def _start_worker(self, job: JobRecord, folder: RunFolder) -> Process | None:
        """Start a worker if the job waits for one; tell one that runs already what it may have missed."""
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
        """Wait until nobody writes the log, then say in it what becomes of the run, and write that down."""
        try:
            with LogWriter(folder.events, wait=True) as log:
                folder.pid.unlink(missing_ok=True)  # its number may soon be another process's
                if not log.tail.terminal and (event := self._outcome(job, folder, cause, log.tail.type)):
                    log.append(event, sync=True)
            status = read_status(folder.events)
        except (FileNotFoundError, LogCorrupted) as error:
            problem = f"The run's log is gone or damaged ({error})"
            status = LogStatus(JobStatus.FAILED, problem, completed_at=now())
        if status.status.terminal:
            folder.clear_worker_files()
            self._release_later(job.id)
            self._store.update_job(job.id, **{**attrs.asdict(status, recurse=False), "status": status.status.value})
            self._cancelled.discard(job.id)
        notify(notifier_file(self._home))

    def _release_later(self, *ids: str) -> None:
        """Once nobody can want them any more, remove the retired checkpoints of runs that no worker looks after."""
        waiting = [folder for job_id in ids if (folder := run_folder(self._home, job_id)).retired.is_dir()]

        def release_all() -> None:
            for folder in waiting:
                remove_expired(folder)

        if waiting:
            timer = threading.Timer(RETIREMENT_SECONDS + 1, release_all)
            timer.daemon = True
            timer.start()

    def _outcome(self, job: JobRecord, folder: RunFolder, cause: str, last: str | None) -> Event | None:
        """What is to be said in a log whose worker is dead; nothing if there was none and the job still waits."""
        progress = read_log_progress(folder)
        if self._is_cancelled(job):
            return TrainingCancelled(job.id, now(), progress.step, progress.artifacts(folder))
        if cause == UNOBSERVED and last in WAITING_TYPES:
            return None
        if progress.stalled_resumptions < MAX_RESUMPTIONS:
            step = progress.resume_step(folder)
            logger.warning("The worker of run %s ended %s; the run goes on from step %d", job.id, cause, step)
            return TrainingResumed(job.id, now(), step, f"the worker ended {cause}")
        sentence = crash_message(cause, MAX_RESUMPTIONS + 1, folder.worker_log, job.config)
        return TrainingFailedEvent(job.id, now(), sentence, progress.step, progress.artifacts(folder))

    # Stopping a worker

    def _stop(self, folder: RunFolder) -> None:
        self._signal(folder, signal.SIGTERM)
        backstop = threading.Timer(GRACE_SECONDS, self._signal, (folder, signal.SIGKILL))
        backstop.daemon = True
        backstop.start()

    def _signal(self, folder: RunFolder, number: signal.Signals) -> None:
        """To the worker if it lives; SIGKILL to the processes that it started as well."""
        active = self._active.get(folder.id)
        if active and active.process is not None and active.process.poll() is None:
            pid: int | None = active.process.pid
        else:  # another server's child; its number is good only while it holds the log
            pid = folder.worker_pid() if is_locked(folder.events) else None
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number) if number == signal.SIGKILL else os.kill(pid, number)
