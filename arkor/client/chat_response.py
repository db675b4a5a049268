"""The response to a chat completion, as a stream of text or as a whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import requests
from attrs import define, field

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

#: The most answers that a streamed response may contain.
_MAX_CHOICES = 16


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
        self._deadline = deadline_for(abort_signal)
        self._streamed = response.headers.get("Content-Type", "").startswith("text/event-stream")
        self._completion: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {0: _Choice()}
        self._metadata: dict[str, str] = {}
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
        first = self._choices[0]
        calls = [str(call.get("function", {}).get("name")) for call in first.message.get("tool_calls") or ()]
        called = f"calls {', '.join(calls)}; " if calls else ""
        ended = f"ended: {first.finish_reason}" if first.finish_reason else "not read to its end; text() does that"
        return str(first.message.get("content") or ""), called + ended

    def close(self) -> None:
        """Close the connection; the backend stops generating."""
        close_connection(self.raw)

    def text(self) -> str:
        """Return the whole text, including parts that were iterated already."""
        return str(self.message["content"] or "")

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message in OpenAI's format; waits for the end."""
        return self.messages[0]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The message of each of the `n` answers; waits for the end."""
        self._read_to_end()
        return [choice.message for _, choice in sorted(self._choices.items())]

    @property
    def logprobs(self) -> list[dict[str, Any]]:
        """The tokens with their log-probabilities in OpenAI's format, if the request asked for
        them; waits for the end.
        """
        self._read_to_end()
        return self._choices[0].logprobs

    @property
    def metadata(self) -> dict[str, str]:
        """`notes` on parameters that have no effect on this model; waits for the end."""
        self._read_to_end()
        return self._metadata

    @property
    def finish_reason(self) -> str | None:
        """`"stop"`, `"length"` (cut off at `max_tokens`) or `"tool_calls"`; waits for the end."""
        self._read_to_end()
        return self._choices[0].finish_reason

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
        for position, choice in enumerate(self._completion["choices"]):
            self._choices[position] = _Choice(choice["message"], choice.get("finish_reason"), _logprobs(choice))
        self._metadata = _metadata(self._completion)
        if text := self._choices[0].message.get("content"):
            yield text

    def _read_stream(self) -> Iterator[str]:
        try:
            for frame in frames(read_chunks(self.raw, self._deadline)):
                if frame.data.strip() == "[DONE]":
                    return
                chunk = _parse_chunk(frame.data, self.raw)
                self._metadata |= _metadata(chunk)
                for part in _choices(chunk):
                    index = part.get("index")
                    index = index if type(index) is int and 0 <= index < _MAX_CHOICES else 0
                    text = self._choices.setdefault(index, _Choice()).add(part)
                    if text and index == 0:
                        yield text
        finally:
            self.close()
        if not all(choice.finish_reason for choice in self._choices.values()):
            raise BackendUnavailable("the backend closed the connection before the end of its response; ask again")


@define
class _Choice:
    """One answer, as far as it was read."""

    message: dict[str, Any] = field(factory=lambda: {"role": "assistant", "content": ""})
    finish_reason: str | None = None
    logprobs: list[dict[str, Any]] = field(factory=list)

    def add(self, part: dict[str, Any]) -> str:
        """Add the choice of a chunk; return its text."""
        self.finish_reason = part.get("finish_reason") or self.finish_reason
        self.logprobs += _logprobs(part)
        delta = part.get("delta")
        if not isinstance(delta, dict):
            return ""
        text = delta.get("content")
        for call in delta.get("tool_calls") or ():
            _add_tool_call(self.message.setdefault("tool_calls", []), call)
        if not isinstance(text, str):
            return ""
        self.message["content"] += text
        return text


def _parse_chunk(data: str, response: requests.Response) -> dict[str, Any]:
    """Return a chunk of a stream; raise `CloudApiError` if it contains an error."""
    chunk = parse_object(data)
    if chunk.get("error"):
        raise stream_error(chunk, response)
    return chunk


def _choices(chunk: dict[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _logprobs(choice: dict[str, Any]) -> list[dict[str, Any]]:
    found = choice.get("logprobs")
    content = found.get("content") if isinstance(found, dict) else None
    return content if isinstance(content, list) else []


def _metadata(value: dict[str, Any]) -> dict[str, str]:
    found = value.get("metadata")
    return {str(name): str(text) for name, text in found.items()} if isinstance(found, dict) else {}


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
        messages = [choice["message"] for choice in completion["choices"]]
    except (ValueError, RecursionError, LookupError, TypeError):
        messages = []
    if not messages or not all(isinstance(message, dict) for message in messages):
        raise CloudApiError(response.status_code, "bad_answer", "the backend's response is not a chat completion")
    return completion  # type: ignore[no-any-return] # it has a message, so it is an object
