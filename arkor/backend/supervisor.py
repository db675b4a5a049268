"""Gives every job a worker, one at a time on each slot, and sees every run to its end.

A run's log is locked by its worker for as long as that lives. So a slot waits for a worker by waiting for the lock:
one that this server started and one that it found running at its start alike. Whoever holds the lock of a log without
a terminal event knows that the worker is dead, and may write what became of the run.
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
from pathlib import Path

import attrs

from arkor.backend.bell import ring
from arkor.backend.home import RunFolder, bell_file, run_folder
from arkor.backend.log import LogDamaged, LogWriter, Standing, is_held, read_saved, read_standing
from arkor.backend.store import Job, Store
from arkor.events import Event, TrainingCancelled, TrainingFailed, now
from arkor.jobs import JobStatus

#: How long a worker has to end by itself after it was told to, in seconds.
GRACE_SECONDS = 4.0

#: How long to wait before another attempt to write down how a run ended.
RETRY_SECONDS = 3.0

logger = logging.getLogger("arkor.backend")

Process = subprocess.Popen[bytes]


class AlreadyOver(Exception):
    """The job that was to be cancelled has ended; `str()` is its status."""


class Supervisor:
    """The queue and its slots. Methods may be called from any thread."""

    def __init__(self, home: Path, store: Store, engine: str, slots: int = 1) -> None:
        self._home = home
        self._store = store
        self._engine = engine
        self._slots = slots
        self._change = threading.Condition()
        self._claimed: dict[str, Process | None] = {}
        self._stopping = False

    def start(self) -> None:
        """Serve the queue from here on, first of all the runs that an earlier server left behind."""
        for number in range(self._slots):
            threading.Thread(target=self._serve_slot, name=f"slot-{number}", daemon=True).start()

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
        except LogDamaged:  # the slot that closes the run will say so
            return job
        return attrs.evolve(job, **attrs.asdict(standing, recurse=False))

    def cancel(self, job: Job) -> None:
        """End the job: a queued one at once, a running one within `GRACE_SECONDS` and a moment.

        Raises `AlreadyOver`.
        """
        folder = run_folder(self._home, job.id)
        with self._change:
            status = self.current(job).status
            if status.terminal:
                raise AlreadyOver(status.value)
            self._store.update_job(job.id, cancel_requested_at=now())
            if job.id in self._claimed or is_held(folder.events):
                return self._stop(folder)
            self._claimed[job.id] = None
        try:
            self._close(job, folder, "")
        finally:
            self._release(job)

    # A slot

    def _serve_slot(self) -> None:
        while True:
            with self._change:
                while not self._stopping and (job := self._next()) is None:
                    self._change.wait()
                if self._stopping or job is None:
                    return
                self._claimed[job.id] = None
            try:
                self._see_through(job)
            except Exception:
                # A full disk, as a rule. The job is still first in the queue, so this is where it goes on.
                logger.exception("The end of run %s could not be recorded; trying again", job.id)
                time.sleep(RETRY_SECONDS)
            finally:
                self._release(job)

    def _next(self) -> Job | None:
        """The first job in the order of submission that no slot has; one that is being worked on before all others."""
        free = [job for job in self._store.unfinished() if job.id not in self._claimed]
        living = (job for job in free if is_held(run_folder(self._home, job.id).events))
        return next(living, free[0] if free else None)

    def _release(self, job: Job) -> None:
        with self._change:
            del self._claimed[job.id]
            self._change.notify_all()

    def _see_through(self, job: Job) -> None:
        """One run, from wherever it stands to its end."""
        folder = run_folder(self._home, job.id)
        how = "while no server was watching"
        try:
            process = self._begin(job, folder)
            if process is not None:
                how = _how_it_ended(process.wait())
        except (OSError, LogDamaged) as error:
            how = f"before it began ({error})"
        self._close(job, folder, how)

    def _begin(self, job: Job, folder: RunFolder) -> Process | None:
        """Start a worker if the job waits for one; tell one that runs already what it may have missed."""
        with self._change:
            if is_held(folder.events):
                if self._store.cancel_requested(job.id):
                    self._stop(folder)
                return None
            if read_standing(folder.events).status != JobStatus.QUEUED or self._store.cancel_requested(job.id):
                return None
            self._claimed[job.id] = process = self._spawn(folder)
            return process

    def _spawn(self, folder: RunFolder) -> Process:
        module = [sys.executable, "-u", "-m", "arkor.backend.worker"]
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

    def _close(self, job: Job, folder: RunFolder, how: str) -> None:
        """Wait until nobody writes the log, give it an end if it has none, and write that down."""
        try:
            with LogWriter(folder.events, wait=True) as log:
                if not log.tail.terminal:
                    log.append(self._obituary(job, folder, how), sync=True)
            standing = read_standing(folder.events)
        except (FileNotFoundError, LogDamaged) as error:
            problem = f"The run's log is gone or damaged ({error})"
            standing = Standing(JobStatus.FAILED, problem, completed_at=now())
        self._store.update_job(job.id, **{**attrs.asdict(standing, recurse=False), "status": standing.status.value})
        ring(bell_file(self._home))
        folder.forget_worker()

    def _obituary(self, job: Job, folder: RunFolder, how: str) -> Event:
        artifacts, step = read_saved(folder.events)
        if self._store.cancel_requested(job.id):
            return TrainingCancelled(job.id, now(), step, tuple(artifacts))
        sentence = f"The worker ended {how}, without saying why. {_last_words(folder.worker_log)}"
        return TrainingFailed(job.id, now(), sentence, step, tuple(artifacts))

    # Stopping a worker

    def _stop(self, folder: RunFolder) -> None:
        self._signal(folder, signal.SIGTERM)
        backstop = threading.Timer(GRACE_SECONDS, self._signal, (folder, signal.SIGKILL))
        backstop.daemon = True
        backstop.start()

    def _signal(self, folder: RunFolder, number: signal.Signals) -> None:
        """To the worker if it lives; SIGKILL to the processes that it started as well."""
        process = self._claimed.get(folder.id)
        if process is not None and process.poll() is None:
            pid: int | None = process.pid
        else:  # another server's child; its number is good only while it holds the log
            pid = folder.worker_pid() if is_held(folder.events) else None
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number) if number == signal.SIGKILL else os.kill(pid, number)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    name = signal.Signals(-code).name
    hint = " (too little memory is the usual reason)" if -code == signal.SIGKILL else ""
    return f"by the signal {name}{hint}"


def _last_words(worker_log: Path, lines: int = 5, longest: int = 1000) -> str:
    try:
        text = worker_log.read_bytes()[-8192:].decode("utf-8", "replace")
    except OSError:
        return "It left no log."
    words = "\n".join(text.strip().splitlines()[-lines:])[-longest:]
    return f"Its log, {worker_log}, ends with:\n{words}" if words else f"Its log, {worker_log}, is empty."
