"""`wait()` ends at once in every state, and leaves no thread and no socket open."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from arkor import AnonymousCredentials, ReconnectPolicy, Trainer, TrainerAborted
from arkor.client.streaming.sse import FrameTooLarge
from tests.fakes.run_server import RunServer, completed, send_chunked
from tests.fakes.sse_server import END_FRAME, PING_FRAME, STREAM_HEAD, answer, log_frame, send
from tests.leak_check import live_threads, no_leaks, open_sockets

QUICK = ReconnectPolicy(initial_delay=0.01, max_delay=0.05)
SLACK = 0.5  # seconds; 0.1 for 99 of 100 cases, more on a busy machine


def port_of(server: RunServer) -> int:
    return urlsplit(server.url).port or 0


def leave(trainer: Trainer, abort: threading.Event, after: float = 0.2) -> float:
    """Abort a wait after some seconds; return the delay until it raised."""
    set_at: list[float] = []
    timer = threading.Timer(after, lambda: (set_at.append(time.monotonic()), abort.set()))
    timer.start()
    with pytest.raises(TrainerAborted):
        trainer.wait()
    heard_at = time.monotonic()
    timer.join()
    return heard_at - set_at[0]


def silent(until: threading.Event) -> Callable[[socket.socket, dict[str, str]], None]:
    return lambda connection, headers: until.wait(30) and None


def endless(connection: socket.socket, headers: dict[str, str]) -> None:
    connection.sendall(STREAM_HEAD)
    number = 0
    while True:
        number += 100
        connection.sendall(b"".join(log_frame(number + i) for i in range(100)))


@pytest.mark.parametrize(
    "state",
    ["headers", "idle", "mid-frame", "mid-chunk", "backing off", "full queue", "submitting", "asking at the end"],
)
def test_an_abort_is_heard_in_every_state(state: str, tmp_path: Path) -> None:
    held, abort = threading.Event(), threading.Event()
    step = {
        "headers": silent(held),
        "idle": send(log_frame(1), until=held),
        "mid-frame": send(log_frame(1), b"id: 2\ndata: {", until=held),
        "mid-chunk": lambda c, h: (c.sendall(STREAM_HEAD.replace(b"Connection: close", b"Transfer-Encoding: chunked") + b"ff\r\nid"), held.wait(30)),
        "backing off": answer(503),
        "full queue": endless,
        "submitting": answer(503),
        "asking at the end": send(END_FRAME),
    }[state]  # fmt: skip
    slow = {"on_log": lambda ctx: time.sleep(0.001)} if state == "full queue" else None
    with RunServer(step) as server, no_leaks(port_of(server)):  # type: ignore[arg-type]
        trainer = server.watch(tmp_path, abort_signal=abort, reconnect=ReconnectPolicy(60), callbacks=slow)
        if state == "submitting":
            server.special["GET /v1/jobs/j"] = silent(held)
        elif state == "asking at the end":
            trainer.start()
            server.special["GET /v1/jobs/j"] = silent(held)
        assert leave(trainer, abort) < SLACK
        assert live_threads() == []
        held.set()


@contextmanager
def full_listener() -> Iterator[int]:
    """A port that accepts no connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        crowd = []
        for _ in range(4):
            caller = socket.socket()
            caller.setblocking(False)
            with suppress(BlockingIOError):
                caller.connect(("127.0.0.1", port))
            crowd.append(caller)
        yield port
        for caller in crowd:
            caller.close()


def attached(url: str, folder: Path, **settings: Any) -> Trainer:
    identity = AnonymousCredentials("secret-token", "anon", url, "o")
    return Trainer.attach("j", base_url=url, credentials=identity, project_dir=folder, progress=False, **settings)


def test_an_abort_is_heard_while_connecting(tmp_path: Path) -> None:
    abort = threading.Event()
    with full_listener() as port:
        before = len(open_sockets(port))
        assert leave(attached(f"http://127.0.0.1:{port}", tmp_path, abort_signal=abort), abort) < SLACK
        time.sleep(0.1)
        assert len(open_sockets(port)) == before
    assert live_threads() == []


def test_an_abort_is_heard_while_shaking_hands(tmp_path: Path) -> None:
    held, abort = threading.Event(), threading.Event()
    with RunServer() as server, no_leaks(port_of(server)):
        server.special[" "] = silent(held)
        url = server.url.replace("http://", "https://")
        assert leave(attached(url, tmp_path, abort_signal=abort), abort) < SLACK
        held.set()


def test_an_abort_is_heard_while_a_name_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver cannot be interrupted; its thread ends later and opens no connection."""
    answered, abort, look_up = threading.Event(), threading.Event(), socket.getaddrinfo

    def slowly(host: Any, *rest: Any, **options: Any) -> Any:
        if host == "slow.example":
            answered.wait(30)
            host = "127.0.0.1"
        return look_up(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    with RunServer(send(END_FRAME)) as server:
        url = server.url.replace("127.0.0.1", "slow.example")
        assert leave(attached(url, tmp_path, abort_signal=abort), abort) < SLACK
        with no_leaks(port_of(server)):
            answered.set()
        assert server.calls == []


def test_an_abort_is_heard_between_two_callbacks(tmp_path: Path) -> None:
    abort, seen = threading.Event(), list[int]()

    def on_log(ctx: Any) -> None:
        seen.append(ctx.step)
        if ctx.step == 2:
            abort.set()

    with RunServer(send(*map(log_frame, (1, 2, 3)), END_FRAME)) as server, no_leaks(port_of(server)):
        trainer = server.watch(tmp_path, abort_signal=abort, callbacks={"on_log": on_log})
        with pytest.raises(TrainerAborted):
            trainer.wait()
        assert seen == [1, 2]


# Other ways out of wait()


def test_it_goes_on_where_it_was_left(tmp_path: Path) -> None:
    seen: list[int] = []
    held = threading.Event()
    steps = [send(log_frame(1), until=held), send(log_frame(2), completed(3), END_FRAME)]
    with RunServer(*steps) as server, no_leaks(port_of(server)):
        trainer = server.watch(tmp_path, callbacks={"on_log": lambda ctx: seen.append(ctx.step)})
        with pytest.raises(TimeoutError, match="the run itself continues"):
            trainer.wait(timeout=3)  # the first event arrives well within it
        held.set()
        assert trainer.wait().job.status == "completed"
        assert seen == [1, 2]
        assert server.requests[1]["last-event-id"] == "1"


@pytest.mark.slow
def test_a_thousand_waits_leave_nothing_behind(tmp_path: Path) -> None:
    """End by completion, abort, timeout, a raising callback, and exhausted attempts in turn."""
    policy = ReconnectPolicy(initial_delay=0.0, max_delay=0.0, max_attempts=1)

    def fail(ctx: Any) -> None:
        raise RuntimeError("on purpose")

    def step(connection: socket.socket, headers: dict[str, str]) -> None:
        script[0](connection, headers)

    def once(door: int) -> None:
        held, abort = threading.Event(), threading.Event()
        script[0] = [
            send(log_frame(1), completed(2), END_FRAME),
            send(log_frame(1), until=held),
            send(log_frame(1), until=held),
            send(log_frame(1), completed(2), END_FRAME),
            answer(503),
        ][door]  # type: ignore[assignment]
        callbacks = {"on_log": fail if door == 3 else (lambda ctx: abort.set()) if door == 1 else (lambda ctx: None)}
        trainer = server.watch(
            tmp_path, abort_signal=abort, callbacks=callbacks, callback_errors="raise", reconnect=policy
        )
        with suppress(TrainerAborted, TimeoutError, RuntimeError, Exception if door == 4 else RuntimeError):
            trainer.wait(timeout=0.02 if door == 2 else 20)
        held.set()

    script: list[Any] = [None]
    with RunServer(step) as server, no_leaks(port_of(server), 2.0):
        counts = []
        for number in range(1000):
            once(number % 5)
            if number in (199, 999):
                gc.collect()
                counts.append((len(gc.get_objects()), psutil.Process().num_fds()))
        (objects, files), (objects_later, files_later) = counts
        assert files_later <= files + 5  # threads of the test server
        assert objects_later < objects + 800 * 2


@pytest.mark.parametrize("state", ["idle", "backing off", "connecting"])
def test_ctrl_c_ends_a_script_at_once(state: str, tmp_path: Path) -> None:
    held = threading.Event()
    step = answer(503) if state == "backing off" else send(log_frame(1), until=held)
    script = """
import sys, signal, threading
from arkor import AnonymousCredentials, ReconnectPolicy, Trainer
signal.signal(signal.SIGINT, signal.default_int_handler)
url, folder = sys.argv[1:]
identity = AnonymousCredentials("t", "a", url, "o")
trainer = Trainer.attach("j", base_url=url, credentials=identity, project_dir=folder, progress=False,
                         reconnect=ReconnectPolicy(60))
print("waiting", flush=True)
try:
    trainer.wait()
except KeyboardInterrupt:
    print([t.name for t in threading.enumerate()], flush=True)
"""
    with RunServer(step) as server, full_listener() as nobody:  # type: ignore[arg-type]
        url = f"http://127.0.0.1:{nobody}" if state == "connecting" else server.url
        child = subprocess.Popen(
            [sys.executable, "-c", script, url, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        time.sleep(0.4)
        began = time.monotonic()
        child.send_signal(2)
        out, errors = child.communicate(timeout=20)
        assert time.monotonic() - began < 10  # a connection or a back-off is given up after 60 s
        assert (out, child.returncode) == ("['MainThread']\n", 0)
        assert "Traceback" not in errors
        held.set()


# Silence, slowness, the end


def test_silence_after_pings_is_noticed_and_the_stream_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = threading.Event()

    def fall_silent(connection: socket.socket, headers: dict[str, str]) -> None:
        connection.sendall(STREAM_HEAD + log_frame(1))
        for _ in range(3):
            time.sleep(0.1)
            connection.sendall(PING_FRAME)
        held.wait(30)

    with RunServer(fall_silent, send(completed(2), END_FRAME)) as server, no_leaks(port_of(server)):
        assert server.watch(tmp_path, reconnect=QUICK).wait(timeout=10).job.status == "completed"
        held.set()
        assert server.requests[1]["last-event-id"] == "1"
    output = [record.getMessage() for record in caplog.records if record.name == "arkor"]
    assert len(output) == 1
    assert output[0].startswith("the event stream was silent for 0.8 s; reconnecting in 0.0")


def test_a_slow_callback_loses_nothing_even_if_the_server_drops_its_reader(tmp_path: Path) -> None:
    seen: list[int] = []

    def impatient(connection: socket.socket, headers: dict[str, str]) -> None:
        """Sends 50,000 events, and drops a client that reads nothing for a while."""
        connection.settimeout(0.3)
        after = int(headers.get("last-event-id", 0))
        connection.sendall(STREAM_HEAD)
        with suppress(TimeoutError):
            for n in range(after + 1, 50_001, 100):
                connection.sendall(b"".join(log_frame(i) for i in range(n, min(n + 100, 50_001))))
            connection.sendall(completed(50_001) + END_FRAME)

    def on_log(ctx: Any) -> None:
        seen.append(ctx.step)
        if ctx.step in (10, 20_000):
            time.sleep(1)

    with RunServer(impatient) as server, no_leaks(port_of(server)):
        result = server.watch(tmp_path, callbacks={"on_log": on_log}, reconnect=QUICK).wait(timeout=60)
        assert result.job.status == "completed"
        assert seen == list(range(1, 50_001))
        assert len(server.requests) > 1


def give_up(trainer: Trainer) -> None:
    with pytest.raises(TrainerAborted):
        trainer.wait()


def test_the_queue_is_bounded(tmp_path: Path) -> None:
    """A callback sleeps before a million events: the reader stops reading."""
    sent: list[int] = []
    release = threading.Event()

    def flood(connection: socket.socket, headers: dict[str, str]) -> None:
        connection.sendall(STREAM_HEAD)
        for n in range(1, 1_000_000, 1000):
            connection.sendall(b"".join(log_frame(i) for i in range(n, n + 1000)))
            sent.append(n)

    abort = threading.Event()
    with RunServer(flood) as server, no_leaks(port_of(server)):
        callbacks = {"on_log": lambda ctx: release.wait(30)}
        trainer = server.watch(tmp_path, callbacks=callbacks, abort_signal=abort)
        watcher = threading.Thread(target=give_up, args=(trainer,))
        watcher.start()
        time.sleep(1)
        stuck_at = len(sent)
        time.sleep(0.5)
        assert len(sent) == stuck_at < 200  # thousands of events: what fits into the sockets and 1 MiB
        abort.set()
        release.set()
        watcher.join()


def test_an_end_without_a_terminal_event_asks_how_the_run_stands(tmp_path: Path) -> None:
    with RunServer(send(log_frame(1), END_FRAME)) as server:
        trainer = server.watch(tmp_path, reconnect=QUICK)
        trainer.start()
        server.job = {**server.job, "status": "cancelled"}
        server.special["GET /v1/jobs/j"] = lambda c, h: (server.special.clear(), answer(500)(c, h))  # type: ignore[assignment, func-returns-value]
        assert trainer.wait(timeout=20).job.status == "cancelled"


@pytest.mark.parametrize("status", [200, 202, 204])
def test_a_cancel_that_is_accepted_after_the_end(tmp_path: Path, status: int) -> None:
    """The managed cloud answers like this; `wait()` still returns how the run ended."""
    accepted: list[bool] = []
    with RunServer(send(log_frame(1), completed(2))) as server:
        server.job = {**server.job, "status": "completed"}
        server.special["POST /v1/jobs/j/cancel"] = answer(status, b"" if status == 204 else b"{}")
        trainer = server.watch(tmp_path, callbacks={"on_log": lambda ctx: accepted.append(ctx.cancel())})
        assert trainer.wait(timeout=20).job.status == "completed"
        trainer.cancel()
    assert accepted == [True]
    assert server.calls.count("POST /v1/jobs/j/cancel") == 2


# The framing of HTTP


@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
def test_chunks_plain_and_compressed(coding: str, tmp_path: Path) -> None:
    seen: list[int] = []
    frames = [*map(log_frame, range(1, 200)), completed(200), END_FRAME]
    with RunServer(send_chunked(frames, coding)) as server:
        server.watch(tmp_path, callbacks={"on_log": lambda ctx: seen.append(ctx.step)}).wait(timeout=20)
    assert seen == list(range(1, 200))


@pytest.mark.parametrize("coding", ["", "gzip"])
def test_an_event_is_handed_on_as_soon_as_it_is_there(coding: str, tmp_path: Path) -> None:
    """The server sends the next event only after the callback of the one before."""
    handed_on, gave_up = threading.Semaphore(0), list[int]()

    def dialogue() -> Iterator[bytes]:
        for number in range(1, 20):
            yield log_frame(number)
            if not handed_on.acquire(timeout=30):
                gave_up.append(number)
        yield completed(20) + END_FRAME

    with RunServer(send_chunked(dialogue(), coding)) as server:
        server.watch(tmp_path, callbacks={"on_log": lambda ctx: handed_on.release()}).wait(timeout=60)
    assert not gave_up


def test_a_redirect_to_another_origin_gets_no_token(tmp_path: Path) -> None:
    with RunServer(send(completed(1), END_FRAME)) as other:
        away = answer(302, b"", f"Location: {other.url}/v1/jobs/j/events/stream")
        with RunServer(away, send(completed(1), END_FRAME)) as server:
            assert server.watch(tmp_path, reconnect=QUICK).wait(timeout=20).job.status == "completed"
        assert other.requests == []


def test_a_frame_too_large_is_a_clear_error(tmp_path: Path) -> None:
    with RunServer(send(b"data: " + b"x" * (17 * 1024 * 1024))) as server, no_leaks(port_of(server)):
        with pytest.raises(FrameTooLarge, match=r"the event stream sent a frame of 1.,...,... bytes"):
            server.watch(tmp_path).wait(timeout=20)
