"""Throughput and latency of the event stream, compared with a plain `requests` + `sseclient-py` +
JSON loop.

    python -m tests.benchmarks.stream [--rounds N] [--events N] [--logged N] [--watchers N] [--idle SECONDS]

Prints one Markdown table of medians. Both read from the server of `plain_stream.py` in alternating
rounds; the lower half is measured with a real backend and its log. Nothing is trained. Takes about
two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from urllib.parse import urlencode, urlsplit

import psutil
import requests
from attrs import frozen
from sseclient import SSEClient

from arkor import AnonymousCredentials, Trainer
from arkor.backend.runs.event_log import LogWriter
from arkor.backend.runs.log_notifier import notify
from arkor.backend.runs.paths import notifier_file, run_folder
from arkor.protocol.events import TrainingCompleted, TrainingLog, now
from tests.backend.caller import LOCAL, owner
from tests.benchmarks import plain_stream
from tests.benchmarks.processes import child
from tests.conftest import Backend, start_backend, stop_backend

LIVE_EVENTS = 20


@frozen
class Source:
    """The stream of a job on a server."""

    url: str
    job: str
    token: str = "token"

    @property
    def stream_url(self) -> str:
        return f"{self.url}/v1/jobs/{self.job}/events/stream?{urlencode(LOCAL)}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


#: Reads a stream to its end and passes the step of every log event to a callable.
Reader = Callable[[Source, Callable[[int], object]], None]


def bare(source: Source, on_step: Callable[[int], object]) -> None:
    with requests.get(source.stream_url, headers=source.headers, stream=True, timeout=60) as response:
        for event in SSEClient(response).events():
            if event.event == "end":
                return
            data = json.loads(event.data)
            if event.event == "training.log":
                on_step(data["step"])


def arkor(source: Source, on_step: Callable[[int], object], timeout: float | None = None) -> None:
    with tempfile.TemporaryDirectory() as project:
        trainer = Trainer.attach(
            source.job,
            callbacks={"on_log": lambda log: on_step(log.step)},
            progress=False,
            base_url=source.url,
            credentials=AnonymousCredentials(source.token, "id", source.url, LOCAL["orgSlug"]),
            project_dir=_project(Path(project)),
        )
        trainer.wait(timeout)


def _project(folder: Path) -> Path:
    """Create a folder with a project state, so that no project is created."""
    state = {"orgSlug": LOCAL["orgSlug"], "projectSlug": LOCAL["projectSlug"], "projectId": "p"}
    (folder / ".arkor").mkdir()
    (folder / ".arkor" / "state.json").write_text(json.dumps(state))
    return folder


# Measuring


def rate(read: Reader, source: Source, events: int) -> float:
    """Return the events per second, from the request to the end."""
    count = 0

    def on_step(_: int) -> None:
        nonlocal count
        count += 1

    began = time.perf_counter()
    read(source, on_step)
    seconds = time.perf_counter() - began
    assert count == events, f"{count} events of {events}"
    return events / seconds


def lags(read: Reader, source: Source) -> list[float]:
    """Return the sorted milliseconds from writing an event to its callback."""
    found: list[float] = []
    read(source, lambda stamp: found.append((time.monotonic_ns() - stamp) / 1e6))
    return sorted(found)


def idle_share(source: Source, seconds: float) -> float:
    """Return the percentage of a core that `wait()` uses while it receives pings only."""
    marks: list[tuple[float, float]] = []
    with suppress(TimeoutError):
        arkor(source, lambda _: marks.append((time.perf_counter(), time.process_time())), timeout=seconds)
    began, spent = marks[0]
    return 100 * (time.process_time() - spent) / (time.perf_counter() - began)


def raw_rate(source: Source, events: int) -> float:
    """Return the events per second of a reader that only counts bytes."""
    with _opened(source) as stream:
        began, count = time.perf_counter(), 0
        while data := stream.recv(1 << 20):
            count += len(data)
        assert count > 150 * events
        return events / (time.perf_counter() - began)


def seconds_to_now(source: Source) -> float:
    """Return the seconds until a stream with `since=now` has sent its position."""
    began = time.perf_counter()
    with _opened(source, since="now") as stream:
        data = b""
        while b"\nid: " not in data:
            data += stream.recv(65536)
    return time.perf_counter() - began


@contextmanager
def _opened(source: Source, **query: str) -> Iterator[socket.socket]:
    """Open a socket and request the stream."""
    to = urlsplit(source.stream_url)
    with socket.create_connection((to.hostname, to.port)) as stream:
        lines = [
            f"GET {to.path}?{to.query}&{urlencode(query)} HTTP/1.1",
            f"Host: {to.netloc}",
            f"Authorization: Bearer {source.token}",
            "Connection: close",
        ]
        stream.sendall("\r\n".join([*lines, "", ""]).encode())
        yield stream


# The backend and its logs


@contextmanager
def embedded(home: Path, watchers: int) -> Iterator[Backend]:
    """A backend whose only slot is occupied, so that the benchmark writes the logs of further runs."""
    os.environ["ARKOR_SCRIPTED_STEP_SECONDS"] = "3600"
    os.environ["ARKOR_MAX_STREAMS"] = str(2 * watchers)
    backend = start_backend(home, "--engine", "scripted", anew=True)
    try:
        caller = owner(backend)
        caller.until(caller.submit(), "running")
        yield backend
    finally:
        stop_backend(home)
        backend.process.wait()


def waiting_run(backend: Backend) -> tuple[Source, Path]:
    """Create a run without a worker; return it with its log."""
    job = owner(backend).submit()
    return Source(backend.url, job, backend.token), run_folder(backend.home, job).events


def write_history(log: Path, events: int) -> None:
    with LogWriter(log) as writer:
        for step in range(events):
            writer.append(TrainingLog(log.parent.name, now(), step, 1.234567, None, 0.0001, 0.5))


def close_history(log: Path) -> None:
    with LogWriter(log) as writer:
        writer.append(TrainingCompleted(log.parent.name, now()))


def worker_lags(backend: Backend, events: int = 200) -> list[float]:
    """Return the sorted milliseconds from a worker's writing an event to its callback."""
    source, log = waiting_run(backend)

    def work() -> None:
        with LogWriter(log) as writer:
            for _ in range(events):
                time.sleep(0.005)
                writer.append(TrainingLog(source.job, now(), time.monotonic_ns(), 1.5))
                notify(notifier_file(backend.home))
        close_history(log)
        notify(notifier_file(backend.home))

    worker = threading.Timer(0.3, work)  # after the client has connected
    worker.start()
    found = lags(arkor, source)
    worker.join()
    return found


def crowd_lags(backend: Backend, watchers: int) -> list[float]:
    """Milliseconds until all of the watchers of a live run have an event, for each of some."""
    source, log = waiting_run(backend)
    arguments = (source.stream_url, source.token, str(watchers), str(LIVE_EVENTS))
    with LogWriter(log) as writer, child("tests.benchmarks.crowd", *arguments) as crowd:
        assert crowd.read()
        for _ in range(LIVE_EVENTS):
            time.sleep(0.1)
            writer.append(TrainingLog(source.job, now(), time.monotonic_ns(), 1.5))
            notify(notifier_file(backend.home))
        return [1000 * seconds for seconds in crowd.read()]


def crowd_share(backend: Backend, watchers: int, seconds: float) -> float:
    """Per cent of a core that the server needs for the watchers of a silent run."""
    source, _ = waiting_run(backend)
    server = psutil.Process(backend.process.pid)
    with child("tests.benchmarks.crowd", source.stream_url, source.token, str(watchers), "1") as crowd:
        assert crowd.read()
        before = sum(server.cpu_times()[:2])
        time.sleep(seconds)
        share = 100 * (sum(server.cpu_times()[:2]) - before) / seconds
        crowd.process.kill()
    return share


# The table


def line(what: str, ours: str, bare_loop: str, goal: str) -> None:
    print(f"| {what} | {ours} | {bare_loop} | {goal} |", flush=True)


def throughput(url: str, rounds: int, events: int) -> None:
    for job, what in (("frames", "a frame to a chunk"), ("blocks", "chunks of 16 KiB")):
        pairs = [[rate(read, Source(url, job), events) for read in (bare, arkor)] for _ in range(rounds)]
        theirs, ours = (median(column) for column in zip(*pairs, strict=True))
        ratio = median(mine / other for other, mine in pairs)
        line(f"{events:,} events, {what}", f"{ours:,.0f}/s ({ratio:.2f} ×)", f"{theirs:,.0f}/s", "1.0 × the bare loop")


def latency(url: str, rounds: int) -> None:
    found: dict[Reader, list[list[float]]] = {bare: [], arkor: []}
    for _ in range(rounds):
        for read, lists in found.items():
            lists.append(lags(read, Source(url, "trickle")))
    theirs, ours = (
        [
            median(column[at] for column in lists)
            for at in (plain_stream.TRICKLED // 2, plain_stream.TRICKLED * 99 // 100)
        ]
        for lists in found.values()
    )
    for name, mine, other, goal in zip(("median", "99th percentile"), ours, theirs, ("0.3", "3"), strict=True):
        line(f"from write to callback, {name}", f"{mine:.2f} ms", f"{other:.2f} ms", f"{goal} ms")


def of_the_embedded(backend: Backend, options: argparse.Namespace) -> None:
    rounds, logged, watchers = options.rounds, options.logged, options.watchers
    source, log = waiting_run(backend)
    write_history(log, logged)
    since_now = 1000 * median(seconds_to_now(source) for _ in range(5 * rounds))
    close_history(log)
    raw = median(raw_rate(source, logged) for _ in range(rounds))
    through = {read: median(rate(read, source, logged) for _ in range(rounds)) for read in (bare, arkor)}
    line(f"backend: {logged:,} events replayed to a socket", f"{raw:,.0f}/s", "", "60,000/s")
    line("backend: the same through `wait()`", f"{through[arkor]:,.0f}/s", f"{through[bare]:,.0f}/s", "")
    line(f"backend: `since=now`, {logged:,} events before", f"{since_now:.1f} ms", "", "100 ms")
    live = median(median(worker_lags(backend)) for _ in range(rounds))
    line("backend: from a worker's write to callback, median", f"{live:.2f} ms", "", "")
    lists = [crowd_lags(backend, watchers) for _ in range(rounds)]
    middle, worst = median(median(lags) for lags in lists), max(max(lags) for lags in lists)
    line(f"backend: until {watchers} watchers have an event, median", f"{middle:.1f} ms", "", "")
    line(f"backend: until {watchers} watchers have an event, worst", f"{worst:.1f} ms", "", "250 ms")
    share = crowd_share(backend, watchers, options.idle / 2)
    line(f"backend: CPU for {watchers} watchers of a silent run", f"{share:.1f} %", "", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--logged", type=int, default=100_000)
    parser.add_argument("--watchers", type=int, default=200)
    parser.add_argument("--idle", type=float, default=10.0)
    options = parser.parse_args()
    line("", "arkor", "bare loop", "goal")
    line("---", "---", "---", "---")
    with tempfile.TemporaryDirectory() as home:
        os.environ["ARKOR_HOME"] = home
        with plain_stream.serving(options.events) as url:
            throughput(url, options.rounds, options.events)
            latency(url, options.rounds)
            line("idle `wait()`, of a core", f"{idle_share(Source(url, 'idle'), options.idle):.2f} %", "", "0.5 %")
        with embedded(Path(home) / "backend", options.watchers) as backend:
            of_the_embedded(backend, options)


if __name__ == "__main__":
    main()
