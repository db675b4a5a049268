"""The body of a request: read within limits of size and time, decoded as strict JSON, checked against a schema."""

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
from arkor.backend.http.schema import Schema, check
from arkor.formatting import quote

JSON_LIMIT = 1024 * 1024

#: A body must bring at least this many bytes a second, averaged over this many seconds of waiting for it.
MIN_BODY_RATE, BODY_SECONDS = 512, 20.0

_CHUNK_BYTES = 1024 * 1024


async def read_object(request: Request, schema: Schema, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """Return the body, a JSON object that matches the schema. Raises a 400, 408, 413 or 415."""
    too_large = ApiError(413, f"The body is larger than {limit} bytes.", "too_large")
    if _content_length(request) > limit:
        raise too_large
    body = bytearray()
    async for chunk in _body_chunks(request):
        body += chunk
        if len(body) > limit:
            raise too_large
    value = _parse(bytes(body))
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", "invalid_json")
    check(schema, value)
    return value


async def save_body(request: Request, file: Path, limit: int, inspect: Callable[[bytes], object] | None = None) -> int:
    """Write the body to a file, pass each chunk to `inspect`, return the size in bytes. Raises a 408, 413 or 415."""
    too_large = ApiError(413, f"The file is larger than {limit // 1024**3} GiB.", "too_large")
    if _content_length(request) > limit:
        raise too_large
    size = 0

    def write_chunk(chunk: bytes) -> None:
        if inspect is not None:
            inspect(chunk)
        target.write(chunk)

    with file.open("wb", buffering=0) as target:
        pending = bytearray()
        async for chunk in _body_chunks(request):
            pending += chunk
            size += len(chunk)
            if size > limit:
                raise too_large
            if len(pending) >= _CHUNK_BYTES:
                await run_in_threadpool(write_chunk, bytes(pending))
                pending.clear()
        await run_in_threadpool(write_chunk, bytes(pending))
    return size


async def _body_chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raises a 415 if it is compressed, a 408 if it arrives below `MIN_BODY_RATE`.

    Only the time spent waiting for the client counts, not the time that the reader of the chunks takes.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise ApiError(415, f"The body is compressed ({quote(encoding)}); send it uncompressed.", "compressed")
    stream, clock = request.stream(), asyncio.get_running_loop().time
    received, timeout = 0, BODY_SECONDS
    while True:
        began = clock()
        try:
            chunk = await asyncio.wait_for(anext(stream), timeout)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            problem = "The body arrived too slowly; send it again."
            raise ApiError(408, problem, "too_slow", headers={"Connection": "close"}) from None
        received, timeout = received + len(chunk), timeout - (clock() - began)
        if received >= MIN_BODY_RATE * BODY_SECONDS:
            received, timeout = 0, BODY_SECONDS
        yield chunk


def _content_length(request: Request) -> int:
    """Return the declared size of the body in bytes, 0 if none is declared."""
    return int(request.headers.get("content-length") or 0)


# Strict JSON


def _parse(body: bytes) -> Any:
    """Decode UTF-8 JSON that any reader understands the same way: no NaN, no duplicate keys, no unpaired surrogates."""
    try:
        value = json.loads(
            body.decode("utf-8"),
            parse_float=_parse_number,
            parse_constant=_reject_constant,
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


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
