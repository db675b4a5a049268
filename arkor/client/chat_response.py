"""The answer of a chat completion: text as it comes, or all of it at once.

The chunks are OpenAI's. How a request is sent is in `http/client.py`, what it asks in `arkor.protocol.chat`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from types import TracebackType
from typing import Any

import requests
from urllib3.exceptions import HTTPError

from arkor.client.http.deadline import Deadline
from arkor.client.http.errors import error_in_stream, unavailable_error
from arkor.client.response_format import parse_instance
from arkor.client.streaming.sse import frames
from arkor.errors import ArkorError, BackendUnavailable, CloudApiError, TrainerAborted
from arkor.results.html_cards import text_card

_CHUNK_BYTES = 64 * 1024


def deadline_for(abort_signal: threading.Event | None) -> Deadline | None:
    """How long an answer is waited for; None: as long as it takes."""
    return None if abort_signal is None else Deadline(abort_signal, timeout_note="the answer was not waited for")


class ChatResponse:
    """One answer of a model. Iterate it for text as it comes, or take `text()`; it closes itself when exhausted.

    `raw` is the `requests.Response`. Raises `CloudApiError` where the backend reports an error in mid-answer,
    `BackendUnavailable` where the answer breaks off, `TrainerAborted` once the abort signal is set.
    """

    def __init__(
        self, response: requests.Response, abort_signal: threading.Event | None = None, response_class: Any = None
    ) -> None:
        self.raw = response
        self._response_class = response_class
        self._finish_reason: str | None = None
        self._deadline = deadline_for(abort_signal)
        self._streamed = response.headers.get("Content-Type", "").startswith("text/event-stream")
        self._completion: dict[str, Any] | None = None
        self._message: dict[str, Any] = {"role": "assistant", "content": ""}
        self._deltas = self._stream() if self._streamed else self._whole()

    def __iter__(self) -> Iterator[str]:
        """The parts of the text that have not been handed out yet."""
        return self._deltas

    def __enter__(self) -> ChatResponse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        text, note = self._status()
        return f"ChatResponse({text if len(text) <= 60 else f'{text[:60]}…'!r}, {note})"

    def _repr_html_(self) -> str:
        return text_card(*self._status())

    def _status(self) -> tuple[str, str]:
        """What has been read of the answer, and whether that is all; reads nothing itself."""
        calls = [str(call.get("function", {}).get("name")) for call in self._message.get("tool_calls") or ()]
        called = f"calls {', '.join(calls)}; " if calls else ""
        ended = f"ended: {self._finish_reason}" if self._finish_reason else "not read to its end; text() does that"
        return str(self._message.get("content") or ""), called + ended

    def close(self) -> None:
        """Hang up; the backend stops to generate."""
        close_connection(self.raw)

    def text(self) -> str:
        """The whole text, what was already iterated included."""
        return str(self.message["content"] or "")

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message as OpenAI has it, ready to be put into the next request; waits for the end."""
        for _ in self._deltas:
            pass
        return self._message

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ends: `"stop"`, `"length"` (cut off at `max_tokens`) or `"tool_calls"`; waits for the end."""
        for _ in self._deltas:
            pass
        return self._finish_reason

    @property
    def parsed(self) -> Any:
        """The answer as an instance of the class that was the `response_format`; without one, its JSON as plain data.

        Waits for the end. Raises `ArkorError` for an answer that was cut off, or is not of that form.
        """
        if self.finish_reason == "length":
            raise ArkorError("the answer was cut off before its end; ask again with a larger max_tokens")
        return parse_instance(Any if self._response_class is None else self._response_class, self.text())

    def json(self) -> dict[str, Any]:
        """The chat-completion object, of a request with `stream=False`; raises `ArkorError` otherwise."""
        if self._streamed:
            raise ArkorError("json() is for requests with stream=False; iterate the answer, or take its text()")
        for _ in self._deltas:
            pass
        return self._completion or {}

    # Reading

    def _whole(self) -> Iterator[str]:
        content = self._read(lambda: self.raw.content)
        self.close()
        self._completion = _completion(self.raw, content)
        choice = self._completion["choices"][0]
        self._message, self._finish_reason = choice["message"], choice.get("finish_reason")
        if text := self._message.get("content"):
            yield text

    def _stream(self) -> Iterator[str]:
        try:
            for frame in frames(self._chunks()):
                if frame.data.strip() == "[DONE]":
                    return
                for choice in _choices(frame.data, self.raw):
                    self._finish_reason = choice.get("finish_reason") or self._finish_reason
                    if text := self._add_delta(choice.get("delta")):
                        yield text
        finally:
            self.close()
        if not self._finish_reason:
            raise BackendUnavailable("the backend broke off its answer before the end; ask again")

    def _chunks(self) -> Iterator[bytes]:
        while chunk := self._read(lambda: self.raw.raw.read1(_CHUNK_BYTES, decode_content=True)):
            yield chunk

    def _read(self, read: Callable[[], bytes]) -> bytes:
        try:
            return self._deadline.call(read) if self._deadline else read()
        except TrainerAborted:
            self.close()
            raise
        except (OSError, HTTPException, HTTPError) as error:  # those of requests are OSErrors
            raise unavailable_error(_origin(self.raw), error) from error

    def _add_delta(self, delta: Any) -> str:
        """Add a delta to the message; returns its text."""
        if not isinstance(delta, dict):
            return ""
        text = delta.get("content")
        for call in delta.get("tool_calls") or ():
            _add_tool_call(self._message.setdefault("tool_calls", []), call)
        if not isinstance(text, str):
            return ""
        self._message["content"] += text
        return text


def _choices(data: str, response: requests.Response) -> list[dict[str, Any]]:
    """The choices of a chunk; a frame that is none is skipped. Raises `CloudApiError` for one with an error."""
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        return []
    if error := error_in_stream(chunk, response):
        raise error
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _add_tool_call(calls: list[dict[str, Any]], delta: Any) -> None:
    """Tool calls come in pieces: `index` says of which call, the arguments are appended."""
    if not isinstance(delta, dict):
        return
    index = delta.get("index", len(calls))
    while type(index) is int and len(calls) <= index < 128:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    if type(index) is not int or not 0 <= index < len(calls):
        return
    call, function = calls[index], delta.get("function") or {}
    call.update({key: delta[key] for key in ("id", "type") if delta.get(key)})
    for key in ("name", "arguments"):
        call["function"][key] += function.get(key) or ""


def _completion(response: requests.Response, content: bytes) -> dict[str, Any]:
    try:
        completion = json.loads(content)
        message = completion["choices"][0]["message"]
    except (ValueError, RecursionError, LookupError, TypeError):
        message = None
    if not isinstance(message, dict):
        problem = "the backend answered with something that is no chat completion"
        raise CloudApiError(response.status_code, "bad_answer", problem)
    return completion  # type: ignore[no-any-return] # it has a message, so it is an object


def _origin(response: requests.Response) -> str:
    return response.url.split("/v1/", 1)[0]


def close_connection(response: requests.Response) -> None:
    """Wake a reader that is blocked in a read, which closing alone would wait for; then close."""
    with suppress(RuntimeError, OSError, ValueError, AttributeError):  # it had already ended
        response.raw.shutdown()
    response.close()
