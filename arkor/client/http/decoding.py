"""Read responses: chunks, JSON objects, and the classes of the protocol in them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException
from typing import Any, TypeVar

import requests
from urllib3.exceptions import HTTPError

from arkor.client.http.deadline import Deadline
from arkor.client.http.errors import invalid_response_error, unavailable_error
from arkor.errors import CloudApiError
from arkor.protocol.codec import from_wire

T = TypeVar("T")

#: The most seconds and bytes that the body of a response may take.
RESPONSE_SECONDS = 120.0
MAX_RESPONSE_BYTES = 512 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024


def read_chunks(response: requests.Response, deadline: Deadline | None) -> Iterator[bytes]:
    """Yield what arrives of a response, as soon as it does. Raise as `read_with` does."""
    while chunk := read_with(lambda: response.raw.read1(_CHUNK_BYTES, decode_content=True), response, deadline):
        yield chunk


def read_with(read: Callable[[], T], response: requests.Response, deadline: Deadline | None) -> T:
    """Return the result of `read`; raise `BackendUnavailable` if the connection fails."""
    try:
        return deadline.call(read) if deadline else read()
    except (OSError, HTTPException, HTTPError) as error:  # the errors of requests are OSErrors
        raise unavailable_error(response.url.split("/v1/", 1)[0], error) from error


def json_object(response: requests.Response) -> dict[str, Any]:
    """Read and close a response; return its JSON object, empty without a body, or raise."""
    chunks, size, deadline = [], 0, time.monotonic() + RESPONSE_SECONDS
    with response:
        while chunk := response.raw.read1(1024 * 1024, decode_content=True):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_RESPONSE_BYTES:
                raise invalid_response_error(response, f"sent a response of more than {MAX_RESPONSE_BYTES} bytes")
            if time.monotonic() > deadline:
                raise requests.ReadTimeout("the response was not complete in time")
    content = b"".join(chunks)
    if not content.strip():
        return {}
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        media_type = response.headers.get("Content-Type") or "no content type"
        raise invalid_response_error(response, f"sent a response that is not JSON ({media_type})") from None
    if not isinstance(data, dict):
        raise invalid_response_error(response, "sent JSON that is not an object")
    return data


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Return a JSON object; empty if the text is not one."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def decode_one(cls: type[T], response: Mapping[str, Any], key: str) -> T:
    """Return `response[key]` as an instance of `cls`; unknown fields are kept in its `extra`."""
    return decode(cls, response.get(key), key)


def decode_list(cls: type[T], response: Mapping[str, Any], key: str) -> list[T]:
    items = response.get(key)
    if not isinstance(items, list):
        raise _invalid_response(key)
    return [decode(cls, item, key) for item in items]


def decode(cls: type[T], data: Any, name: str) -> T:
    try:
        return from_wire(cls, data)
    except (TypeError, AttributeError):
        raise _invalid_response(name) from None


def _invalid_response(name: str) -> CloudApiError:
    message = f"the backend's response has no usable {name!r}; check that this is the address of an Arkor backend"
    return CloudApiError(200, "bad_answer", message)
