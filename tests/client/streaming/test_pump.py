"""The whole event stream against a server with random failures: each event once, in order.

A seed determines a schedule: a log of events, the failures of each connection, and the actions of
the caller. `pytest tests/client/streaming/test_pump.py --schedules 5000` runs more schedules.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arkor import CloudApiError, ReconnectPolicy, Trainer, TrainerAborted
from tests.fakes.run_server import RunServer, send_chunked
from tests.fakes.sse_server import END_FRAME, PING_FRAME, STREAM_HEAD, Step, answer, frame, hang_up

FEW = 150
GARBAGE = (
    b"data: null\n\n",
    b"data: [1,\n\n",
    b"event: training.log\ndata: 42\n\n",
    b"event: training.log\ndata: {}\n\n",
    b": a comment\n\n",
    b"retry: 1\n\n",
    b"event: from.the.future\ndata: {}\n\n",
    PING_FRAME,
)
STATUSES = (401, 403, 404, 408, 410, 426, 429, 500, 502, 503)
FINAL = (401, 403, 410, 426)


class Log:
    """The events of a run as frames, with opaque ids: offsets, words, descending numbers."""

    def __init__(self, rng: random.Random) -> None:
        self.length = rng.randint(1, 40)
        style = rng.choice(["offset", "word", "shuffled"])
        numbers = rng.sample(range(1000), self.length + 1)
        offset = [str(200 * n) for n in range(1, self.length + 2)]
        self.ids = {"offset": offset, "word": [f"é {n}" for n in numbers], "shuffled": [str(n) for n in numbers]}[style]

    def frames_after(self, cursor: str | None) -> list[bytes]:
        start = self.ids.index(cursor) + 1 if cursor in self.ids else 0
        return [self._frame(n) for n in range(start, self.length + 1)]

    def _frame(self, number: int) -> bytes:
        if number == self.length:
            data = f'{{"type":"training.completed","jobId":"j","timestamp":"{number}","artifacts":[]}}'
            return frame(self.ids[number], "training.completed", data)
        data = f'{{"type":"training.log","jobId":"j","timestamp":"{number}","step":{number}}}'
        return frame(self.ids[number], "training.log", data)


def reset(connection: socket.socket, headers: dict[str, str]) -> None:
    """End with an RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def send_in_pieces(data: bytes, rng: random.Random, end: Step | None = None) -> Step:
    """Send the bytes of a stream in random chunks, then end it."""
    cuts = sorted(rng.sample(range(len(data) + 1), min(len(data) + 1, 4)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def step(connection: socket.socket, headers: dict[str, str]) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(STREAM_HEAD)
        for piece in pieces:
            connection.sendall(piece)
        if end:
            end(connection, headers)

    return step


def stall(connection: socket.socket, headers: dict[str, str]) -> None:
    time.sleep(0.02)


def misbehave(log: Log, rng: random.Random, go_away: Callable[[float], None]) -> Step:
    """A connection that fails after `count` events."""
    kinds = "cut mid-frame mid-chunk stall reset gone away status portal garbage over gzip".split()
    kind, count, where = rng.choice(kinds), rng.randint(0, log.length), rng.random()
    gap = [rng.choice(GARBAGE) for _ in range(log.length + 1)]

    def play(connection: socket.socket, headers: dict[str, str]) -> None:
        everything = log.frames_after(None)
        behind = log.frames_after(headers.get("last-event-id"))
        some = b"".join(behind[:count])
        cut_off = some + b"".join(behind[count : count + 1])[: int(200 * where)].rstrip(b"\n")
        known = len(everything) - len(behind)
        too_much = everything[int(known * where) : known + count]
        steps: dict[str, Step] = {
            "cut": send_in_pieces(some, rng),
            "mid-frame": send_in_pieces(cut_off, rng),
            "mid-chunk": send_chunked([*behind[:count], b"id: 1\ndata: {"], finish=False),
            "stall": send_in_pieces(cut_off, rng, stall),
            "reset": send_in_pieces(some, rng, reset),
            "gone": hang_up if where < 0.5 else reset,
            "away": lambda *_: go_away(where / 20),
            "status": answer(STATUSES[count % len(STATUSES)], b"", "Retry-After: 0"),
            "portal": answer(200, b"<html>Sign in to this network</html>", kind="text/html"),
            "garbage": send_in_pieces(b"".join(a + b for a, b in zip(gap, [b"", *behind[:count]], strict=False)), rng),
            "over": send_in_pieces(b"".join(too_much), rng),
            "gzip": send_chunked(behind[:count], coding="gzip"),
        }
        steps[kind](connection, headers)

    return play


def behave(log: Log, rng: random.Random) -> Step:
    """The last connection, from the cursor to the end."""
    chunked = rng.random() < 0.5

    def play(connection: socket.socket, headers: dict[str, str]) -> None:
        behind = log.frames_after(headers.get("last-event-id"))
        step = send_chunked([*behind, END_FRAME]) if chunked else send_in_pieces(b"".join([*behind, END_FRAME]), rng)
        step(connection, headers)

    return play


class Caller:
    """A script whose callbacks sometimes raise and whose waits are interrupted."""

    def __init__(self, rng: random.Random) -> None:
        self.dice = rng
        self.steps: list[int] = []
        self.abort = threading.Event()
        self.callback_errors = rng.choice(["reconnect", "raise", "log"])
        self._tries = 12

    def on_log(self, ctx: Any) -> None:
        self.steps.append(ctx.step)
        chance = self.dice.random()
        self._tries -= 1
        if chance < 0.05 and self._tries > 0:
            self.abort.set()
        elif chance < 0.1 and self._tries > 0:
            raise RuntimeError("by chance")


def play(seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    log, caller = Log(rng), Caller(rng)
    away = lambda seconds: server.go_away(seconds)  # noqa: E731, PLW0108 - the server is there a moment later
    steps = [misbehave(log, rng, away) for _ in range(rng.randint(0, 8))]
    with RunServer(*steps, behave(log, rng)) as server:
        trainer = server.watch(
            folder,
            callbacks=caller,
            callback_errors=caller.callback_errors,
            abort_signal=caller.abort,
            reconnect=ReconnectPolicy(initial_delay=0.0, max_delay=0.0),
        )
        while not watched_to_the_end(trainer, caller):
            caller.abort.clear()
        assert caller.steps == list(range(log.length)), f"seed {seed}"


def watched_to_the_end(trainer: Trainer, caller: Caller) -> bool:
    """Wait once; return False if the schedule interrupted it."""
    try:
        return trainer.wait(timeout=20).job.status == "completed"
    except (TrainerAborted, RuntimeError):
        return False
    except CloudApiError as error:
        assert error.status in FINAL  # noqa: PT017 - any other one is survived
        return False


def seeds(schedules: int | None) -> Iterator[int]:
    yield from range(FEW if schedules is None else schedules)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_each_event_is_delivered_once_and_in_order_whatever_the_schedule(
    pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    for seed in seeds(pytestconfig.getoption("--schedules")):
        play(seed, tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("arkor-")]
