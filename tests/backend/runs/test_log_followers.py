"""Following logs: a real server over real sockets, logs written here, readers of every kind."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psutil
import pytest
from attrs import field, frozen

from arkor.backend.runs.event_log import LogWriter
from arkor.backend.runs.log_notifier import notify
from arkor.backend.runs.paths import address_file, notifier_file, run_folder
from arkor.protocol.codec import dumps
from arkor.protocol.events import TrainingCompleted, TrainingLog, TrainingPreparing, encode_event
from tests.backend.caller import LOCAL, owner
from tests.conftest import Backend, start_backend, stop_backend

pytestmark = pytest.mark.slow  # real servers, real logs

TIME = "2026-01-02T03:04:05.678Z"


@pytest.fixture(scope="module")
def busy_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A backend whose one slot is taken for ever: nobody else writes the logs of the runs that are submitted here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "3600")
        backend = start_backend(tmp_path_factory.mktemp("busy") / "home", "--engine", "scripted")
    caller = owner(backend)
    caller.until(caller.submit(), "running")
    yield backend
    stop_backend(backend.home)
    backend.process.wait()


@pytest.fixture(scope="module")
def unpolled_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The same, but it never polls: an event that a watcher sees was notified."""
    home = tmp_path_factory.mktemp("unpolled") / "home"
    home.mkdir()
    command = [sys.executable, "-m", "tests.backend.without_polling", "--home", str(home), "--engine", "scripted"]
    environment = {**os.environ, "ARKOR_SCRIPTED_STEP_SECONDS": "3600"}
    with (home / "test-backend.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment
        )
    deadline = time.monotonic() + 60
    while not address_file(home).exists():
        assert time.monotonic() < deadline, (home / "test-backend.log").read_text()
        time.sleep(0.01)
    found = json.loads(address_file(home).read_text())
    backend = Backend(found["url"], found["token"], home, process)
    caller = owner(backend)
    caller.until(caller.submit(), "running")
    yield backend
    stop_backend(home)
    process.wait()


@frozen
class Run:
    """A run that waits for its turn, and a log that is ours to write."""

    backend: Backend
    id: str
    log: Path

    def write(self, first: int, last: int, message: str | None = None) -> int:
        """The log events of these steps, as a worker writes them; the last one's id."""
        with LogWriter(self.log) as log:
            for step in range(first, last + 1):
                log.append(
                    TrainingPreparing(self.id, TIME, message) if message else TrainingLog(self.id, TIME, step, 1.5)
                )
                notify(notifier_file(self.backend.home))
            return log.tail.id

    def finish(self) -> None:
        with LogWriter(self.log) as log:
            log.append(TrainingCompleted(self.id, TIME))
        notify(notifier_file(self.backend.home))

    def write_raw(self, data: bytes) -> None:
        with self.log.open("ab") as file:
            file.write(data)
        notify(notifier_file(self.backend.home))

    def watch(self, last_event_id: str | None = None, **query: str) -> Watcher:
        to = urlsplit(self.backend.url)
        connection = socket.create_connection((to.hostname, to.port), timeout=60)
        lines = [
            f"GET /v1/jobs/{self.id}/events/stream?{urlencode({**LOCAL, **query})} HTTP/1.1",
            f"Host: {to.netloc}",
            f"Authorization: Bearer {self.backend.token}",
            "Connection: close",
            *([f"Last-Event-ID: {last_event_id}"] if last_event_id is not None else []),
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return Watcher(connection)


@pytest.fixture
def run(busy_backend: Backend) -> Run:
    job = owner(busy_backend).submit()
    return Run(busy_backend, job, run_folder(busy_backend.home, job).events)


@pytest.fixture
def unpolled_run(unpolled_backend: Backend) -> Run:
    job = owner(unpolled_backend).submit()
    return Run(unpolled_backend, job, run_folder(unpolled_backend.home, job).events)


@frozen
class Watcher:
    """One connection; keeps the body as it came, without its HTTP chunks."""

    connection: socket.socket
    raw: bytearray = field(factory=bytearray)

    def close(self) -> None:
        self.connection.close()

    def begin(self) -> None:
        """Wait for what comes first, and take no more."""
        self.raw.extend(self.connection.recv(65536))

    def read(self, until: Callable[[bytes], bool] | None = None) -> bytes:
        """The body once `until` says so of it, else once the server has closed."""
        while until is None or not until(self.body()):
            data = self.connection.recv(1 << 20)
            if not data:
                assert until is None, self.body()[-300:]
                break
            self.raw.extend(data)
        return self.body()

    def body(self) -> bytes:
        head, _, rest = bytes(self.raw).partition(b"\r\n\r\n")
        assert not head or b" 200 " in head.split(b"\r\n")[0], head
        chunks = []
        while match := re.match(rb"([0-9a-f]+)\r\n", rest):
            size = int(match[1], 16)
            chunks.append(rest[match.end() : match.end() + size])
            rest = rest[match.end() + size + 2 :]
        return b"".join(chunks)


def frames_of(log: bytes, after: int = 0) -> bytes:
    """What a stream of the log must look like: its events behind the id, as they stand there."""
    frames, end = [], 0
    for line in log.split(b"\n")[:-1]:
        end += len(line) + 1
        if end > after:
            frames.append(b"id: %d\nevent: %s\ndata: %s\n\n" % (end, json.loads(line)["type"].encode(), line))
    return b"".join(frames)


END = b"event: end\ndata: {}\n\n"


def ended(body: bytes) -> bool:
    return body.endswith(END)


def steps(body: bytes) -> list[int]:
    return [int(step) for step in re.findall(rb'"step":(\d+)[,}]', body)]


# What comes


def test_a_long_replay_is_the_log(run: Run) -> None:
    run.write(1, 3000)
    run.write(0, 0, "ü" * 150_000)  # longer than a piece
    run.write(3001, 3010)
    run.finish()
    with closing(run.watch()) as watcher:
        assert watcher.read() == frames_of(run.log.read_bytes()) + END


def test_a_replay_goes_on_behind_an_id(run: Run) -> None:
    middle = run.write(1, 700)
    run.write(701, 1500)
    run.finish()
    log = run.log.read_bytes()
    for after in (middle, middle + 1, len(log) - 1):
        with closing(run.watch(str(after))) as watcher:
            behind = after if after == middle else log.index(b"\n", after - 1) + 1
            assert watcher.read() == frames_of(log, behind) + END


def test_from_now_on(run: Run) -> None:
    end = run.write(1, 1000)
    with closing(run.watch(since="now")) as watcher:
        assert watcher.read(lambda body: body.endswith(b"\n\n")) == b"id: %d\n\n" % end
        run.write(1001, 1002)
        run.finish()
        assert watcher.read(ended) == b"id: %d\n\n" % end + frames_of(run.log.read_bytes(), end) + END


def test_an_id_goes_before_since(run: Run) -> None:
    end = run.write(1, 5)
    run.write(6, 6)
    with closing(run.watch(str(end), since="now")) as watcher:
        assert steps(watcher.read(lambda body: body.endswith(b"\n\n"))) == [6]


def test_a_log_that_grows_while_it_is_replayed(run: Run) -> None:
    run.write(1, 2000)

    def grow() -> None:
        for step in range(2001, 4001, 20):
            run.write(step, step + 19)
        run.finish()

    growing = threading.Thread(target=grow)
    with closing(run.watch()) as early, closing(run.watch()) as late:
        early.read(lambda body: len(body) > 10_000)
        growing.start()
        assert early.read() == late.read() == frames_of(run.log.read_bytes()) + END
    growing.join()


def test_a_torn_line_is_never_sent(run: Run) -> None:
    end = run.write(1, 3)
    line = dumps(encode_event(TrainingLog(run.id, TIME, 4, 1.5))).encode() + b"\n"
    with closing(run.watch()) as watcher:
        before = watcher.read(lambda body: steps(body) == [1, 2, 3])
        for cut in (1, len(line) // 2, len(line) - 1):
            run.write_raw(line[:cut])
            time.sleep(0.1)
            assert select.select([watcher.connection], [], [], 0)[0] == []
            os.truncate(run.log, end)  # as the next writer does
        run.write_raw(line[:50])
        run.write_raw(line[50:])
        assert watcher.read(lambda body: 4 in steps(body)) == before + frames_of(run.log.read_bytes(), end)


def test_what_is_no_event_is_passed_over(run: Run) -> None:
    run.write(1, 2)
    run.write_raw(b"somebody was here\n\n{}\n[1]\n")
    run.write_raw(b'{"type":"training.log","message":"\xff\xfe"}\n{"type":"training.log","step":\n')
    run.write_raw(b"x" * 200_000 + b"\n")  # more than one piece of it
    end = run.write(3, 3)
    with closing(run.watch()) as watcher:
        assert steps(watcher.read(lambda body: b"id: %d\n" % end in body)) == [1, 2, 3]
        assert watcher.body().count(b"event: ") == 3
        run.write_raw(b"garbage at the end\n")
        run.write(4, 4)
        run.finish()
        assert steps(watcher.read(ended)) == [1, 2, 3, 4]


def test_a_log_that_is_removed_is_at_its_end(run: Run) -> None:
    run.write(1, 2)
    with closing(run.watch()) as watcher:
        watcher.read(lambda body: steps(body) == [1, 2])
        run.log.unlink()
        assert ended(watcher.read())


# Many, slow and gone


def test_fifty_watchers_see_everything(run: Run) -> None:
    run.write(1, 2000)
    with ExitStack() as stack, ThreadPoolExecutor(50) as threads:
        early = [stack.enter_context(closing(run.watch())) for _ in range(30)]
        bodies = [threads.submit(watcher.read) for watcher in early]
        run.write(2001, 2500)
        late = [stack.enter_context(closing(run.watch())) for _ in range(20)]
        bodies += [threads.submit(watcher.read) for watcher in late]
        run.write(2501, 3000)
        run.finish()
        expected = frames_of(run.log.read_bytes()) + END
        assert all(body.result() == expected for body in bodies)


def test_an_event_reaches_all_without_a_poll(unpolled_run: Run) -> None:
    with ExitStack() as stack:
        watchers = [stack.enter_context(closing(unpolled_run.watch(since="now"))) for _ in range(50)]
        for watcher in watchers:
            watcher.read(lambda body: body.startswith(b"id: 0\n\n"))
        for step in range(1, 11):
            unpolled_run.write(step, step)
            for watcher in watchers:
                watcher.read(lambda body: steps(body)[-1:] == [step])  # noqa: B023 - read at once


def test_who_goes_away_leaves_nothing_behind(run: Run) -> None:
    """Not a file, not a task, neither while the run is silent nor in the middle of a replay."""
    run.write(1, 50_000)
    server = psutil.Process(run.backend.process.pid)
    with ExitStack() as stack:  # the database's files, which stay open, are opened when many call at once
        for watcher in [stack.enter_context(closing(run.watch(since="now"))) for _ in range(40)]:
            watcher.begin()
    deadline = time.monotonic() + 30
    while len(server.net_connections()) > 1:  # it listens
        assert time.monotonic() < deadline
        time.sleep(0.02)
    _rest(server)
    before, threads = server.num_fds(), server.num_threads()
    with ExitStack() as stack:
        silent = [stack.enter_context(closing(run.watch(since="now"))) for _ in range(20)]
        stuck = [stack.enter_context(closing(run.watch())) for _ in range(20)]
        for watcher in silent + stuck:
            watcher.begin()
        assert server.num_fds() >= before + 40
    deadline = time.monotonic() + 30
    while server.num_fds() > before:
        assert time.monotonic() < deadline, server.open_files() + server.net_connections()
        time.sleep(0.02)
    assert server.num_threads() <= max(threads, 44) + 8  # those of the pool, forty at most, stay
    assert _rest(server) < 0.2, "somebody is still being served"


def _rest(server: psutil.Process, seconds: float = 0.5) -> float:
    """The share of a core that the server needs while nobody calls."""
    before = sum(server.cpu_times()[:2])
    time.sleep(seconds)
    return (sum(server.cpu_times()[:2]) - before) / seconds


def test_readers_that_stop_reading_do_not_delay_others(unpolled_run: Run) -> None:
    run = unpolled_run
    run.write(0, 0, "x" * 1000)
    for _ in range(4):
        run.write_raw(run.log.read_bytes() * 15)  # 50 MB, more than the sockets hold
    server = psutil.Process(run.backend.process.pid)
    before = server.memory_info().rss
    with ExitStack() as stack:
        stuck = [stack.enter_context(closing(run.watch())) for _ in range(30)]
        for watcher in stuck:
            watcher.begin()
        with closing(run.watch(since="now")) as live:
            live.read(lambda body: body.startswith(b"id: "))
            for step in range(1, 11):
                time.sleep(0.05)
                run.write(step, step)
                live.read(lambda body: steps(body)[-1:] == [step])  # noqa: B023 - read at once
        assert server.memory_info().rss - before < 60_000_000


def test_a_long_event_is_not_held_for_every_reader(run: Run) -> None:
    run.write(0, 0, "x" * 20_000_000)
    server = psutil.Process(run.backend.process.pid)
    before = server.memory_info().rss
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(closing(run.watch())).begin()
        time.sleep(0.5)
        assert server.memory_info().rss - before < 150_000_000
        with closing(run.watch()) as watcher:
            while len(watcher.raw) < 20_000_000:
                watcher.begin()


def test_the_server_leaves_whoever_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "3600")
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    owner(backend).submit()
    job = owner(backend).submit()
    run = Run(backend, job, run_folder(backend.home, job).events)
    run.write(1, 60_000)
    with ExitStack() as stack:
        silent = [stack.enter_context(closing(run.watch(since="now"))) for _ in range(10)]
        stuck = [stack.enter_context(closing(run.watch())) for _ in range(10)]
        for watcher in silent + stuck:
            watcher.begin()
        backend.process.terminate()
        assert backend.process.wait(60) == 0
        for watcher in silent:
            assert re.fullmatch(rb"id: \d+\n\n", watcher.read())
    assert (backend.home / "test-backend.log").read_text() == ""


def test_polling_replaces_a_lost_notification(run: Run) -> None:
    with closing(run.watch()) as watcher, LogWriter(run.log) as log:
        time.sleep(0.1)
        log.append(TrainingLog(run.id, TIME, 1, 1.5))  # without a notification
        watcher.read(lambda body: steps(body) == [1])
