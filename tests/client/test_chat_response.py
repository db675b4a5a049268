"""Responses to chat completions, streamed and whole."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from arkor.client.chat_response import ChatResponse
from arkor.client.http.auth import Auth
from arkor.client.http.client import HttpClient
from arkor.client.http.deadline import Deadline
from arkor.errors import ArkorError, BackendUnavailable, CloudApiError, TrainerAborted
from tests.fakes.sse_server import STREAM_HEAD, ScriptedServer, Step, answer, send

DONE = b"data: [DONE]\n\n"


def chunk(text: str | None = None, **choice: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    return b"data: " + json.dumps({"choices": [{"delta": delta, **choice}]}).encode() + b"\n\n"


def ask(url: str, abort_signal: threading.Event | None = None) -> ChatResponse:
    """Send a request without a body, which the scripted server would not read."""
    return ChatResponse(HttpClient(Auth(url)).open("GET", "/", timeout=(5.0, 5.0)), abort_signal)


# Streamed


def test_the_deltas_in_order() -> None:
    with ScriptedServer(send(chunk("Hel"), chunk("lo"), chunk(None, finish_reason="stop"), DONE)) as server:
        response = ask(server.url)
        assert list(response) == ["Hel", "lo"]
        assert response.text() == "Hello"
        assert response.message == {"role": "assistant", "content": "Hello"}
        assert list(response) == []
        assert response.raw.raw.closed


def test_text_includes_what_was_iterated() -> None:
    with ScriptedServer(send(chunk("Hel"), chunk("lo"), DONE)) as server:
        assert ask(server.url).text() == "Hello"
        response = ask(server.url)
        assert next(iter(response)) == "Hel"
        assert response.text() == "Hello"


def test_each_delta_arrives_when_it_is_sent() -> None:
    sent: queue.Queue[float] = queue.Queue()

    def slowly(connection: socket.socket, headers: dict[str, str]) -> None:
        connection.sendall(STREAM_HEAD)
        for letter in "abcd":
            time.sleep(0.05)
            sent.put(time.monotonic())
            connection.sendall(chunk(letter))
        connection.sendall(DONE)

    with ScriptedServer(slowly) as server:
        delays = [time.monotonic() - sent.get() for _ in ask(server.url)]
    assert len(delays) == 4
    assert min(delays) < 0.04


def test_other_frames_are_skipped() -> None:
    odd = [
        b": comment",
        b"data: {",
        b"data: null",
        b"data: []",
        b"data: {}",
        b'data: {"choices": [null, {"delta": 1}]}',
    ]
    with ScriptedServer(send(b"\n\n".join([*odd, b""]), chunk("a"), DONE)) as server:
        assert ask(server.url).text() == "a"


def test_tool_calls_are_assembled() -> None:
    pieces = [
        {"index": 0, "id": "c-1", "type": "function", "function": {"name": "look", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
        {"index": 1, "id": "c-2", "function": {"name": "see", "arguments": "{}"}},
    ]
    frames = [b"data: " + json.dumps({"choices": [{"delta": {"tool_calls": [p]}}]}).encode() + b"\n\n" for p in pieces]
    with ScriptedServer(send(*frames, DONE)) as server:
        message = ask(server.url).message
    assert message["tool_calls"] == [
        {"id": "c-1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}},
        {"id": "c-2", "type": "function", "function": {"name": "see", "arguments": "{}"}},
    ]


def test_several_answers_with_logprobs_and_a_note() -> None:
    def part(index: int, text: str) -> bytes:
        logprobs = {"content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
        choice = {"index": index, "delta": {"content": text}, "logprobs": logprobs}
        return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

    notes = (
        b'data: {"choices": [{"index": 1, "delta": {}, "finish_reason": "length"}], "metadata": {"notes": "N."}}\n\n'
    )
    ends = chunk(None, index=0, finish_reason="stop"), notes
    with ScriptedServer(send(part(1, "x"), part(0, "a"), part(1, "y"), part(0, "b"), *ends, DONE)) as server:
        response = ask(server.url)
        assert list(response) == ["a", "b"]
        assert [message["content"] for message in response.messages] == ["ab", "xy"]
        assert response.finish_reason == "stop"
        assert [token["token"] for token in response.logprobs] == ["a", "b"]
        assert response.metadata == {"notes": "N."}


@pytest.mark.parametrize(
    ("frame", "status", "code", "sentence"),
    [
        (b'data: {"error": "It fell over.", "code": "fell", "status": 503}\n\n', 503, "fell", "It fell over."),
        (b'event: error\ndata: {"error": {"message": "No memory.", "code": "oom"}}\n\n', 500, "oom", "No memory."),
    ],
)
def test_an_error_in_the_stream(frame: bytes, status: int, code: str, sentence: str) -> None:
    with ScriptedServer(send(chunk("Hel"), frame)) as server:
        response = ask(server.url)
        assert next(iter(response)) == "Hel"
        with pytest.raises(CloudApiError, match=sentence) as caught:
            response.text()
    assert (caught.value.status, caught.value.code) == (status, code)


@pytest.mark.parametrize("tail", [b"", b'data: {"choices": [{"delta": {"content": "lo"}}]}'])
def test_an_incomplete_stream_is_an_error(tail: bytes) -> None:
    with ScriptedServer(send(chunk("Hel"), tail)) as server:
        response = ask(server.url)
        assert next(iter(response)) == "Hel"
        with pytest.raises(BackendUnavailable, match="closed the connection"):
            response.text()


def test_a_finished_response_may_end_without_done() -> None:
    with ScriptedServer(send(chunk("a", finish_reason="stop"))) as server:
        assert ask(server.url).text() == "a"


def test_an_incomplete_chunked_response() -> None:
    def cut(connection: socket.socket, headers: dict[str, str]) -> None:
        head = STREAM_HEAD.replace(b"Connection: close", b"Transfer-Encoding: chunked")
        body = chunk("Hel")
        connection.sendall(head + f"{len(body):x}\r\n".encode() + body + b"\r\nff\r\ndata")

    with ScriptedServer(cut) as server, pytest.raises(BackendUnavailable, match=server.url):
        ask(server.url).text()


def test_json_of_a_streamed_response_is_an_error() -> None:
    with ScriptedServer(send(chunk("a"), DONE)) as server, ask(server.url) as response:
        with pytest.raises(ArkorError, match="stream=False"):
            response.json()
        assert response.text() == "a"


def test_leaving_the_block_closes_the_connection() -> None:
    gone = threading.Event()

    def until_gone(connection: socket.socket, headers: dict[str, str]) -> None:
        connection.sendall(STREAM_HEAD + chunk("a"))
        while connection.recv(4096):
            pass
        gone.set()

    with ScriptedServer(until_gone) as server:
        with ask(server.url) as response:
            assert next(iter(response)) == "a"
        assert gone.wait(30)


# Whole

COMPLETION = {"id": "c", "choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}


def test_a_whole_completion() -> None:
    with ScriptedServer(answer(200, json.dumps(COMPLETION).encode())) as server:
        response = ask(server.url)
        assert response.json() == COMPLETION
        assert response.text() == "Hello"
        assert response.message == COMPLETION["choices"][0]["message"]
        assert list(ask(server.url)) == ["Hello"]


def test_a_message_without_text() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": []}
    with ScriptedServer(answer(200, json.dumps({"choices": [{"message": message}]}).encode())) as server:
        response = ask(server.url)
        assert response.text() == ""
        assert response.message == message


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"<html>", b'{"choices": []}', b'{"choices": [{"message": 1}]}'])
def test_a_success_that_is_not_a_completion(body: bytes) -> None:
    with ScriptedServer(answer(200, body)) as server, pytest.raises(CloudApiError, match="not a chat completion"):
        ask(server.url).text()


# The abort signal


def abort_after(seconds: float) -> threading.Event:
    signal = threading.Event()
    threading.Timer(seconds, signal.set).start()
    return signal


def timed(call: Callable[[], Any]) -> float:
    began = time.monotonic()
    with pytest.raises(TrainerAborted):
        call()
    return time.monotonic() - began


def test_an_abort_ends_a_silent_stream() -> None:
    release = threading.Event()
    with ScriptedServer(send(chunk("a"), until=release)) as server:
        response = ask(server.url, abort_after(0.2))
        assert timed(lambda: list(response)) < 5
        assert response.raw.raw.closed
        release.set()


def test_an_abort_ends_a_response_that_does_not_start() -> None:
    release = threading.Event()

    def silent(connection: socket.socket, headers: dict[str, str]) -> None:
        release.wait(20)

    with ScriptedServer(silent) as server:
        assert timed(lambda: Deadline(abort_after(0.2)).call(lambda: ask(server.url))) < 5
        release.set()


def test_an_abort_ends_a_busy_stream() -> None:
    def talk(connection: socket.socket, headers: dict[str, str]) -> None:
        connection.sendall(STREAM_HEAD)
        while True:
            connection.sendall(chunk("a"))
            time.sleep(0.001)

    steps: list[Step] = [talk]
    with ScriptedServer(*steps) as server:
        response = ask(server.url, abort_after(0.2))
        assert timed(lambda: list(response)) < 5


def test_an_unset_signal_changes_nothing() -> None:
    with ScriptedServer(send(chunk("Hel"), chunk("lo"), DONE)) as server:
        assert ask(server.url, threading.Event()).text() == "Hello"


def test_a_late_result_is_discarded() -> None:
    go, discarded, signal = threading.Event(), threading.Event(), threading.Event()
    signal.set()
    with pytest.raises(TrainerAborted):
        Deadline(signal).call(lambda: go.wait(5), lambda _: discarded.set())
    go.set()
    assert discarded.wait(30)


def test_an_exception_of_the_call_is_raised() -> None:
    def fail() -> None:
        raise queue.Empty

    with pytest.raises(queue.Empty):
        Deadline().call(fail)


def test_repr_reads_nothing() -> None:
    held = threading.Event()
    with ScriptedServer(send(chunk("<b>Hel"), until=held)) as server, ask(server.url) as response:
        assert repr(response) == "ChatResponse('', not read to its end; text() does that)"
        assert next(iter(response)) == "<b>Hel"
        assert repr(response) == "ChatResponse('<b>Hel', not read to its end; text() does that)"
        assert ">&lt;b&gt;Hel<" in response._repr_html_()
        held.set()


def test_repr_of_a_complete_response() -> None:
    with ScriptedServer(send(chunk("Hello " * 20), chunk(None, finish_reason="length"), DONE)) as server:
        with ask(server.url) as response:
            response.text()
    assert repr(response) == f"ChatResponse({'Hello ' * 10 + '…'!r}, ended: length)"
    with ScriptedServer(answer(200, json.dumps(COMPLETION).encode())) as server, ask(server.url) as response:
        assert "not read" in repr(response)
        response.text()
        assert "not read" not in repr(response)
