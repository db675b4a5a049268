"""The body of a request: limits of size and time, strict JSON, the check against a schema."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from arkor.backend.http.errors import ApiError
from arkor.backend.http.schema import Schema, check, reject_nul
from arkor.formatting import quote
from arkor.protocol.codec import reject_constant

JSON_LIMIT = 1024 * 1024

#: A body must bring at least this many bytes a second, averaged over this many seconds of waiting
#: for it.
MIN_BODY_RATE, BODY_SECONDS = 512, 20.0

_CHUNK_BYTES = 1024 * 1024


async def read_object(request: Request, schema: Schema, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Return the body, a JSON object that matches the schema, without NUL characters.

    Raises a 400, 408, 413 or 415.
    """
    body = b"".join([chunk async for chunk in _body_chunks(request, limit, f"The body is larger than {limit} bytes.")])
    value = _parse(body)
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", "invalid_json")
    if b"\\u0000" in body:  # a NUL itself is not valid JSON
        reject_nul(value)
    check(schema, value)
    return value


async def save_body(request: Request, file: Path, limit: int, inspect: Callable[[bytes], object] | None = None) -> int:
    """Write the body to a file and return its size; `inspect` gets each chunk. Raises an error."""

    def write_chunk(chunk: bytes) -> None:
        if inspect is not None:
            inspect(chunk)
        target.write(chunk)

    size, pending = 0, bytearray()
    with file.open("wb", buffering=0) as target:
        async for chunk in _body_chunks(request, limit, f"The file is larger than {limit // 1024**3} GiB."):
            pending += chunk
            size += len(chunk)
            if len(pending) >= _CHUNK_BYTES:
                await run_in_threadpool(write_chunk, bytes(pending))
                pending.clear()
        await run_in_threadpool(write_chunk, bytes(pending))
    return size


async def _body_chunks(request: Request, limit: int, too_large: str) -> AsyncIterator[bytes]:
    """Yield the body as it arrives.

    Raises a 413 if it has more than `limit` bytes, a 415 if it is compressed, and a 408 below
    `MIN_BODY_RATE`, for which only the time spent waiting for the client counts, not the time that
    the reader of the chunks takes.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise ApiError(415, f"The body is compressed ({quote(encoding)}); send it uncompressed.", "compressed")
    rejection = ApiError(413, too_large, "too_large")
    if int(request.headers.get("content-length") or 0) > limit:
        raise rejection
    stream, now = request.stream(), asyncio.get_running_loop().time
    size, received, timeout = 0, 0, BODY_SECONDS
    while True:
        began = now()
        try:
            chunk = await asyncio.wait_for(anext(stream), timeout)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            problem = "The body arrived too slowly; send it again."
            raise ApiError(408, problem, "too_slow", headers={"Connection": "close"}) from None
        size, received, timeout = size + len(chunk), received + len(chunk), timeout - (now() - began)
        if size > limit:
            raise rejection
        if received >= MIN_BODY_RATE * BODY_SECONDS:
            received, timeout = 0, BODY_SECONDS
        yield chunk


# Strict JSON


def _parse(body: bytes) -> Any:
    """Decode JSON, rejecting NaN, duplicate keys and unpaired surrogates."""
    try:
        value = json.loads(
            body.decode("utf-8"),
            parse_float=_parse_number,
            parse_constant=reject_constant,
            object_pairs_hook=_reject_duplicate_keys,
        )
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # raises for an unpaired surrogate
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.", "invalid_json") from None
    return value


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of duplicate keys some readers take the first value and others the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        duplicate, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the field {quote(duplicate)} occurs twice")
    return found


def _parse_number(text: str) -> float:
    """Return a whole number as an int: in JSON, 10.0 equals 10."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {quote(text)} is out of range")
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
