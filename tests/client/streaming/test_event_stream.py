"""The event stream against a scripted server on a real socket: order, exactly once, failures,
aborts.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from contextlib import closing
from typing import Any

import pytest
import requests
from hypothesis import example, given, settings
from hypothesis import strategies as st

from arkor.client.http.auth import Auth
from arkor.client.http.client import HttpClient
from arkor.client.http.deadline import Deadline
from arkor.client.streaming.connection import StreamEnd, StreamFault, _decode, _json
from arkor.client.streaming.event_stream import EventStream
from arkor.client.streaming.reconnect_policy import ReconnectPolicy
from arkor.client.streaming.sse import Frame
from arkor.errors import CloudApiError, StreamLost, TrainerAborted
from arkor.protocol.events import TrainingLog, decode_event
from tests.fakes.sse_server import END_FRAME, PING_FRAME, ScriptedServer, answer, frame, hang_up, log_frame, send

FAST = ReconnectPolicy(initial_delay=0.001, max_delay=0.01)


def open_stream(server: ScriptedServer, policy: ReconnectPolicy = FAST, cursor: str | None = None) -> EventStream:
    http = HttpClient(Auth(server.url))

    def opener(after: str | None) -> requests.Response:
        headers = {} if after is None else {"Last-Event-ID": after.encode()}
        return http.open("GET", "/", raw_headers=headers)

    return EventStream(opener, policy, cursor)


def steps_until_end(stream: EventStream, deadline: Deadline | None = None) -> list[int]:
    steps = []
    with closing(stream.events(deadline or Deadline())) as events:
        for event in events:
            if isinstance(event, StreamEnd):
                return steps
            assert isinstance(event, TrainingLog)
            steps.append(event.step)
    raise AssertionError("no end")


def test_events_are_in_order_and_move_the_cursor() -> None:
    with ScriptedServer(send(*(log_frame(n) for n in (1, 2, 3)), END_FRAME)) as server:
        stream = open_stream(server)
        assert steps_until_end(stream) == [1, 2, 3]
        assert stream.cursor == "3"


def test_a_clean_end_resumes_after_the_last_event() -> None:
    with ScriptedServer(send(log_frame(1), log_frame(2)), send(log_frame(3), END_FRAME)) as server:
        assert steps_until_end(open_stream(server)) == [1, 2, 3]
        assert [request.get("last-event-id") for request in server.requests] == [None, "2"]


def test_an_incomplete_frame_is_requested_again() -> None:
    with ScriptedServer(send(log_frame(1), log_frame(2)[:-1]), send(log_frame(2), END_FRAME)) as server:
        assert steps_until_end(open_stream(server)) == [1, 2]
        assert server.requests[1]["last-event-id"] == "1"


def test_a_server_that_replays_too_much_is_tolerated() -> None:
    everything = [log_frame(n) for n in range(1, 6)]
    with ScriptedServer(send(*everything[:3]), send(*everything, END_FRAME)) as server:
        assert steps_until_end(open_stream(server)) == [1, 2, 3, 4, 5]


def test_non_numeric_ids_are_not_dispatched_twice() -> None:
    def named(n: int) -> bytes:
        return log_frame(n).replace(f"id: {n}".encode(), f"id: é {n}-x".encode())

    with ScriptedServer(send(named(1), named(2)), send(named(1), named(2), named(3), END_FRAME)) as server:
        stream = open_stream(server)
        assert steps_until_end(stream) == [1, 2, 3]
        assert stream.cursor == "é 3-x"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(hang_up, id="hang-up"),
        pytest.param(answer(503), id="503"),
        pytest.param(answer(404), id="404"),
        pytest.param(answer(200, b"<html>sign in</html>", kind="text/html"), id="captive portal"),
        pytest.param(answer(204), id="204"),
        pytest.param(send(), id="immediate end"),
        pytest.param(send(PING_FRAME), id="only pings"),
        pytest.param(send(b"data: {nonsense\n\ndata: null\n\ndata: 42\n\n"), id="garbage"),
    ],
)
def test_failures_are_counted_and_survived(fault: object, caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedServer(fault, fault, send(log_frame(1), END_FRAME)) as server:  # type: ignore[arg-type]
        with caplog.at_level(logging.INFO, "arkor"):
            assert steps_until_end(open_stream(server, ReconnectPolicy(0.001, 0.01, max_attempts=2))) == [1]
        output = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(output) == 2
        assert all("reconnecting in" in line for line in output)
        assert not any(record.exc_info for record in caplog.records)
    with ScriptedServer(fault) as server:  # type: ignore[arg-type]
        with pytest.raises(StreamLost, match="failed 3 times in a row") as lost:
            steps_until_end(open_stream(server, ReconnectPolicy(0.001, 0.01, max_attempts=2)))
        assert lost.value.__cause__ is not None


@pytest.mark.parametrize("status", [401, 403, 410, 426])
def test_final_statuses_end_the_stream_at_once(status: int) -> None:
    with ScriptedServer(answer(status)) as server:
        with pytest.raises(CloudApiError):
            steps_until_end(open_stream(server))
        assert len(server.requests) == 1


def test_progress_resets_the_count_of_failures() -> None:
    two_faults_then_one = [answer(503), answer(503), send(log_frame(1)), answer(503), answer(503), send(END_FRAME)]
    with ScriptedServer(*two_faults_then_one) as server:
        assert steps_until_end(open_stream(server, ReconnectPolicy(0.001, 0.01, max_attempts=2))) == [1]


def test_malformed_frames_are_skipped_and_move_the_cursor() -> None:
    odd = [
        frame(1, "training.log", "null"),
        frame(2, "training.log", "[]"),
        frame(3, "training.log", "[" * 200_000),
        frame(4, "training.log", '{"type":"training.log","step":' + "9" * 5000 + "}"),
        frame(5, "training.log", '{"type":"training.log","loss":1}'),
        frame(6, "from.the.future", '{"type":"from.the.future"}'),
        b"id: 7\n\n",
        b"retry: 0\n\nretry: 99999999999999999999999999\nid: 8\n\n",
    ]
    with ScriptedServer(send(*odd), send(log_frame(9), END_FRAME)) as server:
        assert steps_until_end(open_stream(server)) == [9]
        assert server.requests[1]["last-event-id"] == "8"


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
TREES = st.recursive(LEAVES, lambda trees: st.lists(trees) | st.dictionaries(st.text(st.characters()), trees))


@given(TREES, st.booleans())
def test_json_is_parsed_like_the_standard_library(tree: object, escaped: bool) -> None:
    text = json.dumps(tree, ensure_ascii=escaped)
    assert repr(_json(text)) == repr(json.loads(text))


NUMBERS = st.none() | st.booleans() | st.integers() | st.integers(-(10**400), 10**400) | st.floats() | st.just("3")
LOGS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["training.log", "training.failed", "future", None, 3]),
        "jobId": st.text(st.characters(), max_size=3) | st.none() | st.just(7),
        "timestamp": st.text(max_size=3) | st.none(),
        "step": st.integers(-1, 2**70) | NUMBERS,
        **dict.fromkeys(["loss", "evalLoss", "learningRate", "epoch", "samplesPerSecond"], NUMBERS),
        "nonFinite": st.none()
        | st.dictionaries(st.sampled_from(["loss", "epoch"]), st.sampled_from(["nan", "-inf", "no"])),
        "later": TREES,
    },
)


@settings(max_examples=500, deadline=None)
@given(LOGS, st.booleans(), st.sampled_from(["training.log", "training.failed", "future"]))
@example(
    {"type": "training.log", "jobId": "j", "timestamp": "t", "step": 3, "loss": 1, "evalLoss": 0.5},
    False,
    "training.log",
)
@example({"type": "training.log", "jobId": "j", "timestamp": "t", "step": 3.0, "loss": 10**400}, False, "training.log")
def test_logs_are_decoded_like_other_events(log: dict[str, Any], escaped: bool, kind: str) -> None:
    text = json.dumps(log, ensure_ascii=escaped)
    found = _decode(Frame("7", kind, text))
    try:
        expected = decode_event({"type": kind, **json.loads(text)})
    except ValueError:
        assert (found.event, found.progress) == (None, False)
    else:
        assert (repr(found.event), found.progress) == (repr(expected), True)


def test_an_abort_within_a_block_of_frames_loses_and_repeats_nothing() -> None:
    abort, everything = threading.Event(), [log_frame(n) for n in range(1, 9)]
    with ScriptedServer(send(b"".join(everything)), send(*everything[2:], END_FRAME)) as server:
        stream, steps = open_stream(server), []
        with pytest.raises(TrainerAborted), closing(stream.events(Deadline.after(abort, None))) as events:
            for event in events:
                steps.append(event.step)  # type: ignore[union-attr]
                if len(steps) == 3:
                    abort.set()
        assert (steps, stream.cursor) == ([1, 2, 3], "3")
        assert steps_until_end(stream) == [4, 5, 6, 7, 8]
        assert server.requests[1]["last-event-id"] == "3"


def test_an_event_is_delivered_before_the_end_of_its_http_chunk() -> None:
    """Frames are delivered in batches, but never kept while the connection is silent."""
    released, event = threading.Event(), log_frame(1)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

    def step(connection: socket.socket, _: dict[str, str]) -> None:
        connection.sendall(head + b"%x\r\n%s" % (len(event), event))
        released.wait(30)

    with ScriptedServer(step) as server, closing(open_stream(server).events(Deadline.after(None, 10))) as events:
        assert next(events).step == 1  # type: ignore[union-attr]
        released.set()


def test_non_finite_numbers_are_kept() -> None:
    data = '{"type":"training.log","jobId":"j","timestamp":"t","step":1,"loss":NaN,"evalLoss":1e999,"epoch":null,"learningRate":null,"nonFinite":{"learningRate":"-inf"}}'
    with ScriptedServer(send(frame(1, "training.log", data), END_FRAME)) as server:
        with closing(open_stream(server).events(Deadline())) as events:
            event = next(events)
    assert isinstance(event, TrainingLog)
    assert event.loss is not None
    assert event.loss != event.loss
    assert (event.eval_loss, event.learning_rate, event.epoch) == (float("inf"), float("-inf"), None)


def test_reconnect_resumes_after_the_last_event() -> None:
    with ScriptedServer(send(log_frame(1), log_frame(2)), send(log_frame(2), END_FRAME)) as server:
        stream = open_stream(server)
        with closing(stream.events(Deadline())) as events:
            assert next(events).step == 1  # type: ignore[union-attr]
            stream.reconnect(StreamFault("the callback raised"))
            assert next(events).step == 2  # type: ignore[union-attr]
        assert server.requests[1]["last-event-id"] == "1"


def waits_for_headers(until: threading.Event) -> object:
    return lambda connection, headers: until.wait(30)


@pytest.mark.parametrize("state", ["reading", "mid-frame", "waiting for headers", "backing off"])
def test_an_abort_ends_the_wait_within_0_1_s(state: str) -> None:
    released = threading.Event()
    step = {
        "reading": send(log_frame(1), until=released),
        "mid-frame": send(log_frame(1), b"data: half", until=released),
        "waiting for headers": waits_for_headers(released),
        "backing off": answer(503),
    }[state]
    policy = ReconnectPolicy(initial_delay=60)
    abort = threading.Event()
    with ScriptedServer(step) as server:  # type: ignore[arg-type]
        set_at: list[float] = []
        timer = threading.Timer(0.3, lambda: (set_at.append(time.monotonic()), abort.set()))
        timer.start()
        with pytest.raises(TrainerAborted):
            steps_until_end(open_stream(server, policy), Deadline.after(abort, None))
        assert time.monotonic() - set_at[0] < 5  # 0.1 s on an idle machine
        released.set()


def test_a_timeout_is_a_timeout_error_and_the_next_wait_resumes() -> None:
    released = threading.Event()
    with ScriptedServer(send(log_frame(1), until=released), send(log_frame(2), END_FRAME)) as server:
        stream = open_stream(server)
        with pytest.raises(TimeoutError):
            steps_until_end(stream, Deadline.after(None, 0.2))
        released.set()
        assert steps_until_end(stream) == [2]


def test_no_reader_thread_is_left() -> None:
    released = threading.Event()
    with ScriptedServer(send(log_frame(1), until=released)) as server:
        for _ in range(20):
            stream = open_stream(server)
            with closing(stream.events(Deadline())) as events:
                next(events)
        names = [thread.name for thread in threading.enumerate()]
        released.set()
    assert "arkor-events" not in names


@given(
    log=st.integers(1, 30),
    script=st.lists(st.sampled_from(["cut", "mid", "drop", "error", "pings", "over"]), max_size=8),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_each_event_is_delivered_once_whatever_the_server_does(
    log: int, script: list[str], data: st.DataObject
) -> None:
    """A server with a log and a schedule of failures, which ends."""
    schedule = [(kind, data.draw(st.integers(0, log))) for kind in script]

    def step(connection: object, headers: dict[str, str]) -> None:
        kind, count = schedule.pop(0) if schedule else ("well", log)
        after = int(headers.get("last-event-id") or 0)
        if kind == "over":
            after = max(0, after - count)
        frames = [log_frame(n) for n in range(after + 1, log + 1)]
        played = {
            "cut": frames[:count],
            "mid": [*frames[:count], b"".join(frames[count : count + 1])[:-1]],
            "pings": [PING_FRAME],
            "over": frames[:count],
            "well": [*frames, END_FRAME],
        }
        if kind == "drop":
            return
        (answer(500) if kind == "error" else send(*played[kind]))(connection, headers)  # type: ignore[arg-type]

    with ScriptedServer(step) as server:  # type: ignore[arg-type]
        assert steps_until_end(open_stream(server, ReconnectPolicy(0.0, 0.0))) == list(range(1, log + 1))


@pytest.mark.parametrize("failures", range(1, 12))
def test_delays_double_up_to_the_cap(failures: int) -> None:
    policy = ReconnectPolicy()
    delays = [policy.delay(failures) for _ in range(200)]
    exponential = min(2.0 ** (failures - 1), 60.0)
    assert min(delays) >= 0.75 * exponential
    assert max(delays) <= min(60.0, 1.25 * exponential)


def logged_delays(caplog: pytest.LogCaptureFixture) -> list[float]:
    found = [re.search(r"reconnecting in ([0-9.]+) s", record.getMessage()) for record in caplog.records]
    return [float(match[1]) for match in found if match]


@pytest.mark.parametrize(("payload", "output"), [("Retry-After: 0.2", 0.2), ("Retry-After: 3600", 0.3)])
def test_a_retry_after_is_honoured_up_to_the_cap(payload: str, output: float, caplog: pytest.LogCaptureFixture) -> None:
    policy = ReconnectPolicy(initial_delay=0.0, max_delay=0.3)
    with (
        ScriptedServer(answer(429, b"", payload), send(log_frame(1), END_FRAME)) as server,
        caplog.at_level("INFO", "arkor"),
    ):
        assert steps_until_end(open_stream(server, policy)) == [1]
    assert logged_delays(caplog) == [output]


@pytest.mark.parametrize(
    ("wish", "least", "most"),
    [("200", 0.1, 0.3), ("0", 0.0, 0.2), ("99999999999999999999999999", 0.3, 0.4), ("000000000000200", 0.1, 0.3)],
)
def test_the_retry_field_sets_the_base_delay(
    wish: str, least: float, most: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A delay of 0 would become a hot loop, so there is a minimum."""
    policy = ReconnectPolicy(initial_delay=10.0, max_delay=0.4)
    steps = [send(f"retry: {wish}\n\n".encode(), log_frame(1)), send(log_frame(2), END_FRAME)]
    with ScriptedServer(*steps) as server, caplog.at_level("INFO", "arkor"):
        began = time.monotonic()
        assert steps_until_end(open_stream(server, policy)) == [1, 2]
        assert time.monotonic() - began > 0.07
    (output,) = logged_delays(caplog)
    assert least <= output <= most


def test_an_unreachable_server_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with ScriptedServer() as gone:
        pass
    with pytest.raises(StreamLost, match="failed 2 times in a row"):
        steps_until_end(open_stream(gone, ReconnectPolicy(0.01, 0.01, max_attempts=1)))
    assert len(logged_delays(caplog)) == 1
