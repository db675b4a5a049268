"""What a seed does to a home while runs are in it: who is killed, and when. Real processes die of real signals."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import requests
import urllib3
from attrs import define, field

from arkor.backend.runs.paths import RunFolder, run_folder, runs_folder
from tests.backend.caller import Caller, Frame, owner
from tests.conftest import Backend, start_backend


@define(eq=False)
class Watcher:
    """Somebody who follows a run from its first event to its end, over the deaths of whoever serves it."""

    home: Path
    job: str
    frames: list[Frame] = field(factory=list)
    over: threading.Event = field(factory=threading.Event)
    thread: threading.Thread = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.thread = threading.Thread(target=self.watch, name=f"watcher of {self.job}", daemon=True)
        self.thread.start()

    def watch(self) -> None:
        while not self.over.is_set():
            with suppress(OSError, ValueError, urllib3.exceptions.HTTPError, AssertionError):
                found = json.loads((self.home / "backend.json").read_text())
                seen = self.frames[-1].id if self.frames else None
                for frame in Caller(found["url"], found["token"]).events(self.job, seen):
                    if frame.event == "end":
                        return
                    if frame.event != "ping":
                        self.frames.append(frame)
            time.sleep(0.05)


@define
class FaultSchedule:
    """One home, its server if there is one just now, and a die whose throws the seed has fixed."""

    home: Path
    rng: random.Random
    server: Backend | None = None
    jobs: list[str] = field(factory=list)
    watchers: list[Watcher] = field(factory=list)
    cancelled: set[str] = field(factory=set)
    log_lines: list[str] = field(factory=list)
    copies: list[Path] = field(factory=list)

    def log(self, what: str) -> None:
        self.log_lines.append(f"{time.time():.3f} {what}")

    def serve(self) -> Caller:
        """The owner's view of a server that is there; one is started if there is none."""
        if self.server is None or self.server.process.poll() is not None:
            self.server = start_backend(self.home, "--engine", "scripted", anew=True)
            self.log(f"server {self.server.process.pid} started")
        return owner(self.server)

    def start_or_rebuild(self) -> None:
        """Start a server on a copy of a home, whose database may be torn, as it was written to while it was copied."""
        try:
            self.serve()
        except AssertionError as refusal:
            if "--rebuild" not in str(refusal):
                raise
            self.log("rebuilt")
            command = [sys.executable, "-m", "arkor.backend", "--home", str(self.home), "--rebuild"]
            subprocess.run(command, check=True, capture_output=True)
            self.serve()

    def submit(self, steps: int, save_steps: int) -> None:
        """A run; should the server die of it, the same one again."""
        key = f"key-{len(self.jobs)}"
        while True:
            with suppress(requests.RequestException):
                self.jobs.append(self.serve().submit(key=key, maxSteps=steps, saveSteps=save_steps))
                self.watchers.append(Watcher(self.home, self.jobs[-1]))
                return

    def step(self) -> None:
        """Wait a moment, then let one thing happen."""
        time.sleep(self.rng.uniform(0, 0.4))
        happenings: list[Callable[[], None]] = [
            self.kill_server,
            self.kill_worker,
            self.kill_worker,
            self.kill_both,
            self.kill_in_a_checkpoint,
            self.kill_recovering_server,
            self.kill_in_a_submission,
            self.stop_worker_for_a_while,
            self.cancel_and_kill,
            self.ask_server_to_leave,
            self.start_a_second_server,
            self.copy_home,
        ]
        self.rng.choice(happenings)()

    # What can happen

    def kill_server(self) -> None:
        if self.server is not None:
            self.log(f"server {self.server.process.pid} killed")
            self.server.process.kill()
            self.server.process.wait()
            self.server = None

    def kill_worker(self) -> None:
        for pid in self.workers():
            self.log(f"worker {pid} killed")
            kill(pid)

    def kill_both(self) -> None:
        first, second = self.rng.sample([self.kill_server, self.kill_worker], 2)
        first()
        second()

    def kill_in_a_checkpoint(self) -> None:
        """As soon as somebody writes one: a folder that is not yet what it is to be."""
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            if any(self.home.glob("runs/*/checkpoints/.*")):
                self.log("in a checkpoint:")
                return self.kill_worker()
        return None

    def kill_recovering_server(self) -> None:
        """A server that is killed while it takes over from the one before."""
        self.kill_server()
        command = [sys.executable, "-m", "arkor.backend", "--home", str(self.home), "--engine", "scripted"]
        with (self.home / "adopter.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.log(f"server {process.pid} started to be killed")
        time.sleep(self.rng.uniform(0.3, 1.6))
        process.kill()
        process.wait()

    def kill_in_a_submission(self) -> None:
        """The caller gets no answer, or one that is as good as none, and asks again with the same key."""
        server = self.serve()
        assert self.server is not None
        victim = self.server.process
        assassin = threading.Timer(self.rng.uniform(0, 0.04), victim.kill)
        self.log(f"server of {server.url} is killed in a submission")
        assassin.start()
        victim = self.server.process
        self.submit(20, 5)
        assassin.join()
        victim.wait()
        victim.wait()

    def stop_worker_for_a_while(self) -> None:
        for pid in self.workers():
            with suppress(ProcessLookupError):
                self.log(f"worker {pid} stopped")
                os.kill(pid, signal.SIGSTOP)
                time.sleep(self.rng.uniform(0, 0.5))
                os.kill(pid, self.rng.choice([signal.SIGCONT, signal.SIGKILL]))

    def cancel_and_kill(self) -> None:
        """What was answered holds, whoever dies then."""
        job = self.rng.choice(self.jobs)
        answer = self.serve().cancel(job)
        self.log(f"run {job} cancelled: {answer.status_code}")
        assert answer.status_code in (202, 409), answer.text
        if answer.status_code == 202:
            self.cancelled.add(job)
        time.sleep(self.rng.choice([0, 0.01, 0.1]))
        self.rng.choice([self.kill_server, self.kill_worker, self.kill_both])()

    def ask_server_to_leave(self) -> None:
        if self.server is not None and self.server.process.poll() is None:
            self.log(f"server {self.server.process.pid} asked to leave")
            self.server.process.send_signal(signal.SIGTERM)
            assert self.server.process.wait(20) == 0
            self.server = None

    def start_a_second_server(self) -> None:
        self.serve()
        command = [sys.executable, "-m", "arkor.backend", "--home", str(self.home), "--engine", "scripted"]
        second = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
        assert (second.returncode, "serves" in second.stderr) == (3, True), second.stderr

    def copy_home(self) -> None:
        """As `cp -r` would, while everything goes on."""
        copy = self.home.with_name(f"copy-{len(self.copies)}")
        if not self.copies:
            self.log("copied")
            command = ["cp", "-r", str(self.home), str(copy)]
            subprocess.run(command, check=False, capture_output=True)  # a file may go away under it
            for stale in ("bell", "backend.json"):
                (copy / stale).unlink(missing_ok=True)
            for pid in copy.glob("runs/*/worker.pid"):
                pid.unlink()
            self.copies.append(copy)

    # How it ends

    def workers(self) -> list[int]:
        """The processes that work on a run of this home."""
        found = []
        for process in psutil.process_iter(["pid", "cmdline"]):
            words = process.info["cmdline"] or []
            if "arkor.backend.workers.worker" in words and str(self.home) in words:
                found.append(process.info["pid"])
        return found

    def folders(self) -> list[RunFolder]:
        return [run_folder(self.home, job) for job in self.jobs]

    def wait_until_finished(self, seconds: float) -> None:
        """Let everything come to its end."""
        caller = self.serve()
        for job in self.jobs:
            caller.until(job, "completed", "cancelled", "failed", seconds=seconds)
        deadline = time.monotonic() + 30
        while caller.call("GET", "/healthz").json()["activeRuns"]:  # until it is written down, too
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for watcher in self.watchers:
            watcher.thread.join(20)
            assert not watcher.thread.is_alive(), f"the watcher of {watcher.job} has not seen its end"

    def clean_up(self) -> None:
        for watcher in self.watchers:
            watcher.over.set()
        if self.server is not None:
            kill(self.server.process.pid)
            self.server.process.wait()
        for pid in self.workers():
            kill(pid)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def forget_fork(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)


def run_count(home: Path) -> int:
    return sum(1 for folder in runs_folder(home).iterdir() if not folder.name.startswith("."))
