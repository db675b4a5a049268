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

from arkor.backend.runs.checkpoints import RETIREMENT_SECONDS, discharge
from arkor.backend.runs.event_log import LogDamaged, LogWriter, Standing, is_held, read_last, read_standing
from arkor.backend.runs.log_notifier import ring
from arkor.backend.runs.log_queries import read_progress
from arkor.backend.runs.paths import RunFolder, bell_file, run_folder, run_ids
from arkor.backend.store.store import Job, Store, is_disk_trouble
from arkor.backend.workers.exit_report import UNSEEN, cause, end_of, obituary
from arkor.backend.workers.heartbeat import BEAT_SECONDS, Pulse
from arkor.backend.workers.worker import EXIT_LOG_HELD
from arkor.protocol.events import Event, TrainingCancelled, TrainingFailed, TrainingResumed, now
from arkor.protocol.jobs import JobStatus

#: How long a worker has to end by itself after it was told to, in seconds.
GRACE_SECONDS = 4.0

#: How long to wait before another attempt at what the disk did not take, in seconds.
RETRY_SECONDS = 3.0

#: How often in a row a run is resumed without getting any further.
RESUMPTIONS = 2

#: What comes last in the log of a run that waits for a worker; None is nothing at all.
WAITING = (None, "training.resumed")

logger = logging.getLogger("arkor.backend")

Process = subprocess.Popen[bytes]


class AlreadyOver(Exception):
    """The job that was to be cancelled has ended; `str()` is its status."""


@attrs.define
class Charge:
    """A run that somebody here looks after: its worker, if this server started one, and the pulse of it."""

    process: Process | None = None
    pulse: Pulse = attrs.Factory(Pulse)


class Supervisor:
    """The queue and its slots. Methods may be called from any thread."""

    def __init__(self, home: Path, store: Store, engine: str, slots: int = 1) -> None:
        self._home = home
        self._store = store
        self._engine = engine
        self._slots = slots
        self._change = threading.Condition()
        self._charges: dict[str, Charge] = {}
        self._cancelled: set[str] = set()
        self._felt = 0.0
        self._stopping = False

    def start(self) -> None:
        """Serve the queue from here on, first of all the runs that an earlier server left behind."""
        threading.Thread(target=self._serve, name="queue", daemon=True).start()
        self._discharge_later(*run_ids(self._home))

    def stop(self) -> None:
        """Start nothing more; workers go on."""
        with self._change:
            self._stopping = True
            self._change.notify_all()

    def wake(self) -> None:
        """There is a new job."""
        with self._change:
            self._change.notify_all()

    def current(self, job: Job) -> Job:
        """The job as its log has it now."""
        if job.status.terminal:
            return job
        try:
            standing = read_standing(run_folder(self._home, job.id).events)
        except LogDamaged:  # whoever closes the run will say so
            return job
        return attrs.evolve(job, **attrs.asdict(standing, recurse=False))

    def stalled_since(self, job_id: str) -> str | None:
        """When the worker of this run was last awake, if it lives but stands still."""
        charge = self._charges.get(job_id)
        return charge.pulse.stalled_since if charge else None

    def is_training(self) -> bool:
        """Whether any run is at work."""
        return bool(self._charges)

    def cancel(self, job: Job) -> None:
        """End the job: a waiting one at once, a running one within `GRACE_SECONDS` and a moment.

        Raises `AlreadyOver`.
        """
        folder = run_folder(self._home, job.id)
        with self._change:
            status = self.current(job).status
            if status.terminal:
                raise AlreadyOver(status.value)
            self._note_cancellation(job)
            if job.id in self._charges or is_held(folder.events):
                return self._stop(folder)
            self._charges[job.id] = Charge()
        try:
            self._settle(job, folder, "")
        finally:
            self._release(job)

    def _note_cancellation(self, job: Job) -> None:
        """For the worker and the next server; a full disk must not keep a run from being stopped."""
        self._cancelled.add(job.id)
        with contextlib.suppress(OSError):
            run_folder(self._home, job.id).cancelled.touch(mode=0o600)
        try:
            self._store.update_job(job.id, cancel_requested_at=now())
        except DBAPIError as error:
            if not is_disk_trouble(error):
                raise
            logger.warning("That run %s is to be cancelled could not be written down: %s", job.id, error.orig)

    # The queue

    def _serve(self) -> None:
        look = self._left_behind
        while not self._stopping:
            with self._surviving("The queue could not be read"):
                with self._change:
                    for job in look():
                        self._take(job)
                    if look == self._next:
                        self._change.wait(BEAT_SECONDS if self._charges else None)
                    look = self._next
                self._feel_pulses()

    @contextlib.contextmanager
    def _surviving(self, problem: str) -> Iterator[None]:
        """Whatever goes wrong in here (a full disk, as a rule) is told, and attempted again after a pause."""
        try:
            yield
        except (OSError, DBAPIError) as error:
            logger.warning("%s (%s); trying again", problem, error.orig if isinstance(error, DBAPIError) else error)
            time.sleep(RETRY_SECONDS)
        except Exception:
            logger.exception("%s; trying again", problem)
            time.sleep(RETRY_SECONDS)

    def _take(self, job: Job) -> None:
        self._charges[job.id] = Charge()
        threading.Thread(target=self._look_after, args=(job,), name=f"run {job.id}", daemon=True).start()

    def _left_behind(self) -> list[Job]:
        """The runs that are at work, or have died or ended unseen; they are looked after whatever the slots say."""
        return [job for job in self._store.unfinished() if self._waiting_since(job) is None]

    def _next(self) -> list[Job]:
        """The jobs to take now, those first that have waited longest, as many as there are free slots."""
        free = self._slots - len(self._charges)
        if free <= 0 or self._stopping:
            return []
        idle = [job for job in self._store.unfinished() if job.id not in self._charges]
        return sorted(idle, key=lambda job: self._waiting_since(job) or "")[:free]

    def _waiting_since(self, job: Job) -> str | None:
        """Since when the job waits for a worker; None if it does not, whatever it does instead."""
        events = run_folder(self._home, job.id).events
        try:
            last = read_last(events)
        except LogDamaged:
            return None
        if is_held(events) or (last["type"] if last else None) not in WAITING:
            return None
        return str(last["timestamp"]) if last else job.created_at

    def _release(self, job: Job) -> None:
        with self._change:
            del self._charges[job.id]
            self._change.notify_all()

    def _feel_pulses(self) -> None:
        """Look at every heart here when it is time to; tell the server's log, once, of those that stand still."""
        with self._change:
            charges = dict(self._charges)
        if time.monotonic() - self._felt < BEAT_SECONDS:
            return
        self._felt = time.monotonic()
        for job_id, charge in charges.items():
            before = charge.pulse.stalled_since
            charge.pulse.look(run_folder(self._home, job_id).pid)
            since = charge.pulse.stalled_since
            if since and not before:
                logger.warning("The worker of run %s has stood still since %s", job_id, since)
            elif before and not since:
                logger.warning("The worker of run %s goes on", job_id)

    # A run

    def _look_after(self, job: Job) -> None:
        """One run, from wherever it stands until it waits again or has ended."""
        folder = run_folder(self._home, job.id)
        try:
            with self._surviving(f"The end of run {job.id} could not be recorded"):
                self._settle(job, folder, self._work(job, folder))
        finally:
            self._release(job)

    def _work(self, job: Job, folder: RunFolder) -> str:
        """Have a worker work on the run if it waits for one; how that ended."""
        try:
            process = self._begin(job, folder)
            code = end_of(process) if process is not None else EXIT_LOG_HELD
        except (OSError, LogDamaged) as error:
            return f"before it began ({error})"
        return UNSEEN if code == EXIT_LOG_HELD else cause(code)

    def _begin(self, job: Job, folder: RunFolder) -> Process | None:
        """Start a worker if the job waits for one; tell one that runs already what it may have missed."""
        with self._change:
            if self._is_cancelled(job):
                if is_held(folder.events):
                    self._stop(folder)
                return None
            if self._stopping or self._waiting_since(job) is None or not folder.path.is_dir():
                return None
            self._charges[job.id].process = process = self._spawn(folder)
            return process

    def _is_cancelled(self, job: Job) -> bool:
        noted = job.id in self._cancelled or run_folder(self._home, job.id).cancelled.exists()
        return noted or self._store.cancel_requested(job.id)

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

    def _settle(self, job: Job, folder: RunFolder, how: str) -> None:
        """Wait until nobody writes the log, then say in it what becomes of the run, and write that down."""
        try:
            with LogWriter(folder.events, wait=True) as log:
                folder.pid.unlink(missing_ok=True)  # its number may soon be another process's
                if not log.tail.terminal and (event := self._verdict(job, folder, how, log.tail.type)):
                    log.append(event, sync=True)
            standing = read_standing(folder.events)
        except (FileNotFoundError, LogDamaged) as error:
            problem = f"The run's log is gone or damaged ({error})"
            standing = Standing(JobStatus.FAILED, problem, completed_at=now())
        if standing.status.terminal:
            folder.forget_worker()
            self._discharge_later(job.id)
            self._store.update_job(job.id, **{**attrs.asdict(standing, recurse=False), "status": standing.status.value})
            self._cancelled.discard(job.id)
        ring(bell_file(self._home))

    def _discharge_later(self, *ids: str) -> None:
        """Once nobody can want them any more, remove the retired checkpoints of runs that no worker looks after."""
        waiting = [folder for job_id in ids if (folder := run_folder(self._home, job_id)).retired.is_dir()]

        def discharge_all() -> None:
            for folder in waiting:
                discharge(folder)

        if waiting:
            later = threading.Timer(RETIREMENT_SECONDS + 1, discharge_all)
            later.daemon = True
            later.start()

    def _verdict(self, job: Job, folder: RunFolder, how: str, last: str | None) -> Event | None:
        """What is to be said in a log whose worker is dead; nothing if there was none and the job still waits."""
        progress = read_progress(folder)
        if self._is_cancelled(job):
            return TrainingCancelled(job.id, now(), progress.step, progress.artifacts(folder))
        if how == UNSEEN and last in WAITING:
            return None
        if progress.fruitless < RESUMPTIONS:
            step = progress.resumable(folder)
            logger.warning("The worker of run %s ended %s; the run goes on from step %d", job.id, how, step)
            return TrainingResumed(job.id, now(), step, f"the worker ended {how}")
        sentence = obituary(how, RESUMPTIONS + 1, folder.worker_log, job.config)
        return TrainingFailed(job.id, now(), sentence, progress.step, progress.artifacts(folder))

    # Stopping a worker

    def _stop(self, folder: RunFolder) -> None:
        self._signal(folder, signal.SIGTERM)
        backstop = threading.Timer(GRACE_SECONDS, self._signal, (folder, signal.SIGKILL))
        backstop.daemon = True
        backstop.start()

    def _signal(self, folder: RunFolder, number: signal.Signals) -> None:
        """To the worker if it lives; SIGKILL to the processes that it started as well."""
        charge = self._charges.get(folder.id)
        if charge and charge.process is not None and charge.process.poll() is None:
            pid: int | None = charge.process.pid
        else:  # another server's child; its number is good only while it holds the log
            pid = folder.worker_pid() if is_held(folder.events) else None
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number) if number == signal.SIGKILL else os.kill(pid, number)
