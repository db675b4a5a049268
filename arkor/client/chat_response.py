"""The response to a chat completion, as a stream of text or as a whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import requests

from arkor.client.http.deadline import Deadline
from arkor.client.http.decoding import parse_object, read_chunks, read_with
from arkor.client.http.errors import stream_error
from arkor.client.http.session import close_connection
from arkor.client.response_format import parse_instance
from arkor.client.streaming.sse import frames
from arkor.errors import ArkorError, BackendUnavailable, CloudApiError
from arkor.formatting import shorten
from arkor.results.html_cards import text_card

#: The most tool calls that a streamed message may contain.
_MAX_TOOL_CALLS = 128


def deadline_for(abort_signal: threading.Event | None) -> Deadline | None:
    """Return the deadline of a chat completion; None if nothing can abort it."""
    return None if abort_signal is None else Deadline(abort_signal, timeout_note="the response was abandoned")


class ChatResponse:
    """A model's response: iterate it for text as it arrives, or call `text()`.

    `raw` is the `requests.Response`. Reading raises `CloudApiError` for an error of the backend,
    `BackendUnavailable` if the response is incomplete, `TrainerAborted` once the abort signal is
    set.
    """

    def __init__(
        self, response: requests.Response, abort_signal: threading.Event | None = None, response_class: Any = None
    ) -> None:
        self.raw = response
        self._response_class = response_class
        self._finish_reason: str | None = None
        self._deadline = deadline_for(abort_signal)
        self._streamed = response.headers.get("Content-Type", "").startswith("text/event-stream")
        self._completion: dict[str, Any] = {}
        self._message: dict[str, Any] = {"role": "assistant", "content": ""}
        self._deltas = self._read_stream() if self._streamed else self._read_completion()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the parts of the text that were not returned yet."""
        return self._deltas

    def __enter__(self) -> ChatResponse:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        text, note = self._status()
        return f"ChatResponse({shorten(text, 61)!r}, {note})"

    def _repr_html_(self) -> str:
        return text_card(*self._status())

    def _status(self) -> tuple[str, str]:
        """Return the text that was read so far and a note on its state; read nothing."""
        calls = [str(call.get("function", {}).get("name")) for call in self._message.get("tool_calls") or ()]
        called = f"calls {', '.join(calls)}; " if calls else ""
        ended = f"ended: {self._finish_reason}" if self._finish_reason else "not read to its end; text() does that"
        return str(self._message.get("content") or ""), called + ended

    def close(self) -> None:
        """Close the connection; the backend stops generating."""
        close_connection(self.raw)

    def text(self) -> str:
        """Return the whole text, including parts that were iterated already."""
        return str(self.message["content"] or "")

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message in OpenAI's format; waits for the end."""
        self._read_to_end()
        return self._message

    @property
    def finish_reason(self) -> str | None:
        """`"stop"`, `"length"` (cut off at `max_tokens`) or `"tool_calls"`; waits for the end."""
        self._read_to_end()
        return self._finish_reason

    @property
    def parsed(self) -> Any:
        """The text as an instance of the `response_format` class, else its JSON as plain data.

        Waits for the end. Raises `ArkorError` if the text was cut off or does not fit.
        """
        if self.finish_reason == "length":
            raise ArkorError("the response was cut off", remedy="ask again with a larger max_tokens")
        return parse_instance(Any if self._response_class is None else self._response_class, self.text())

    def json(self) -> dict[str, Any]:
        """Return the chat-completion object; raise `ArkorError` for a streamed response."""
        if self._streamed:
            raise ArkorError("json() needs a request with stream=False", remedy="iterate the response, or use text()")
        self._read_to_end()
        return self._completion

    def _read_to_end(self) -> None:
        for _ in self._deltas:
            pass

    def _read_completion(self) -> Iterator[str]:
        try:
            content = read_with(lambda: self.raw.content, self.raw, self._deadline)
        finally:
            self.close()
        self._completion = _parse_completion(self.raw, content)
        choice = self._completion["choices"][0]
        self._message, self._finish_reason = choice["message"], choice.get("finish_reason")
        if text := self._message.get("content"):
            yield text

    def _read_stream(self) -> Iterator[str]:
        try:
            for frame in frames(read_chunks(self.raw, self._deadline)):
                if frame.data.strip() == "[DONE]":
                    return
                for choice in _parse_choices(frame.data, self.raw):
                    self._finish_reason = choice.get("finish_reason") or self._finish_reason
                    if text := self._add_delta(choice.get("delta")):
                        yield text
        finally:
            self.close()
        if not self._finish_reason:
            raise BackendUnavailable("the backend closed the connection before the end of its response; ask again")

    def _add_delta(self, delta: Any) -> str:
        if not isinstance(delta, dict):
            return ""
        text = delta.get("content")
        for call in delta.get("tool_calls") or ():
            _add_tool_call(self._message.setdefault("tool_calls", []), call)
        if not isinstance(text, str):
            return ""
        self._message["content"] += text
        return text


def _parse_choices(data: str, response: requests.Response) -> list[dict[str, Any]]:
    """Return the choices of a chunk, if any; raise `CloudApiError` if it contains an error."""
    chunk = parse_object(data)
    if chunk.get("error"):
        raise stream_error(chunk, response)
    choices = chunk.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _add_tool_call(calls: list[dict[str, Any]], delta: Any) -> None:
    """Add a part of a tool call to call number `index`; its arguments are appended."""
    if not isinstance(delta, dict):
        return
    index = delta.get("index", len(calls))
    while type(index) is int and len(calls) <= index < _MAX_TOOL_CALLS:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    if type(index) is not int or not 0 <= index < len(calls):
        return
    call, function = calls[index], delta.get("function") or {}
    call.update({key: delta[key] for key in ("id", "type") if delta.get(key)})
    for key in ("name", "arguments"):
        call["function"][key] += function.get(key) or ""


def _parse_completion(response: requests.Response, content: bytes) -> dict[str, Any]:
    try:
        completion = json.loads(content)
        message = completion["choices"][0]["message"]
    except (ValueError, RecursionError, LookupError, TypeError):
        message = None
    if not isinstance(message, dict):
        raise CloudApiError(response.status_code, "bad_answer", "the backend's response is not a chat completion")
    return completion  # type: ignore[no-any-return] # it has a message, so it is an object
