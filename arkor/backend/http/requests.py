"""What every route needs: who calls, in which scope, the body, and how to say no.

A route finds the shared things on `request.app.state`: `home` (a Path), `store`, `supervisor`, `lookout`, `inference`,
`operator_token` (str or None) and `open_to_own` (whether one's own processes may sign in without a token).
"""

from __future__ import annotations

import asyncio
import difflib
import hmac
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from arkor.backend.http.openapi import Problem
from arkor.backend.store.store import OWNER_ID, JobRecord, OrgRecord, ProjectRecord, Store, UserRecord
from arkor.protocol.codec import to_wire

JSON_LIMIT = 1024 * 1024

#: What a person calls a thing of theirs, as `require_text` takes it.
NAME = {"type": "string", "maxLength": 200, "pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$"}
#: A body brings at least so many bytes a second, over so many seconds of waiting for it.
MIN_BODY_RATE, BODY_SECONDS = 512, 20.0

_CHUNK_BYTES = 1024 * 1024


class ApiError(Exception):
    """An answer that is an error: an HTTP status, a sentence for a person, a word for a machine; more headers."""

    def __init__(
        self, status: int, sentence: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, sentence, code)
        self.status = status
        self.sentence = sentence
        self.code = code
        self.headers = headers


def api_error(status: int, sentence: str, code: str | None, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as all are on the wire."""
    return JSONResponse(to_wire(Problem(sentence, code)), status, headers)


@frozen
class CallScope:
    """Whose call it is, and in which project."""

    user: UserRecord
    org: OrgRecord
    project: ProjectRecord


def invalid_field(field: str, problem: str) -> ApiError:
    """A 400 that names the field by its name on the wire."""
    return ApiError(400, f"{field}: {problem}", "invalid_request")


# Who calls


async def require_user(request: Request) -> UserRecord:
    """The user whose bearer token this is, else a 401."""
    token = bearer_token(request)
    user = await run_in_threadpool(authenticate, request, token) if token else None
    if user is None:
        raise unauthorized("This needs a valid token: Authorization: Bearer <token>.", "unauthorized")
    return user


def bearer_token(request: Request) -> str | None:
    """The token of the request, if it has a single one."""
    given = request.headers.getlist("authorization")
    kind, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return token.strip() or None if kind.lower() == "bearer" else None


def authenticate(request: Request, token: str) -> UserRecord | None:
    """Whose token it is; the operator's own is the owner's for as long as this server runs, and is kept nowhere."""
    operator: str | None = request.app.state.operator_token
    if operator and hmac.compare_digest(operator.encode(), token.encode("utf-8", "replace")):
        return UserRecord(OWNER_ID, None)
    return _store(request).user(token)


def unauthorized(sentence: str, code: str) -> ApiError:
    """A 401."""
    return ApiError(401, sentence, code, {"WWW-Authenticate": "Bearer"})


async def require_org(request: Request) -> tuple[UserRecord, OrgRecord]:
    """The user and the org of the query, else a 401, 400 or 403."""
    user = await require_user(request)
    slug = _query(request, "orgSlug")
    for org in await run_in_threadpool(_store(request).orgs, user):
        if org.slug == slug:
            return user, org
    raise ApiError(403, f"You are not a member of the organisation {quote(slug)}.", "forbidden")


async def require_scope(request: Request) -> CallScope:
    """The user, the org and the project of the query, else a 401, 400, 403 or 404."""
    user, org = await require_org(request)
    slug = _query(request, "projectSlug")
    project = await run_in_threadpool(_store(request).project, org, slug)
    if project is None:
        raise ApiError(404, f"The organisation {org.slug!r} has no project {quote(slug)}.", "project_not_found")
    return CallScope(user, org, project)


async def require_job(request: Request, scope: CallScope, job_id: str) -> JobRecord:
    """The job of that id in that scope, else a 404. Its status may be behind its log's."""
    job = await run_in_threadpool(_store(request).job, scope.project, job_id)
    if job is None:
        raise ApiError(404, f"The project {scope.project.slug!r} has no job {quote(job_id)}.", "job_not_found")
    return job


def quote(text: str) -> str:
    """What a caller wrote, quoted, and no longer than a sentence bears."""
    return repr(text if len(text) <= 80 else f"{text[:79]}…")


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _query(request: Request, name: str) -> str:
    value = request.query_params.get(name)
    if not value:
        raise invalid_field(name, "is missing in the query")
    return value


# The body


async def read_json_object(request: Request, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The body, which must be a JSON object of at most `limit` bytes, else a 400, 408, 413 or 415."""
    too_large = ApiError(413, f"The body is larger than {limit} bytes.", "too_large")
    if _content_length(request) > limit:
        raise too_large
    body = bytearray()
    async for chunk in body_chunks(request):
        body += chunk
        if len(body) > limit:
            raise too_large
    value = _parse(bytes(body))
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", "invalid_json")
    return value


async def save_body(request: Request, file: Path, limit: int, inspect: Callable[[bytes], object] | None = None) -> int:
    """Stream the body into a file, and show `inspect` every piece; returns its size in bytes. Else a 408, 413 or
    415.
    """
    if _content_length(request) > limit:
        raise _too_large(limit)
    size = 0

    def write_chunk(chunk: bytes) -> None:
        if inspect is not None:
            inspect(chunk)
        target.write(chunk)

    with file.open("wb", buffering=0) as target:
        pending = bytearray()
        async for chunk in body_chunks(request):
            pending += chunk
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            if len(pending) >= _CHUNK_BYTES:
                await run_in_threadpool(write_chunk, bytes(pending))
                pending.clear()
        await run_in_threadpool(write_chunk, bytes(pending))
    return size


async def body_chunks(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes, uncompressed; else a 415, or a 408 for a client that has us wait for next to nothing.

    Only the time counts in which we wait for the client, not that in which it waits for us.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise ApiError(415, f"The body is compressed ({quote(encoding)}); send it as it is.", "compressed")
    stream, clock = request.stream(), asyncio.get_running_loop().time
    received, timeout = 0, BODY_SECONDS
    while True:
        began = clock()
        try:
            chunk = await asyncio.wait_for(anext(stream), timeout)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            sentence = "The body came too slowly; send it again."
            raise ApiError(408, sentence, "too_slow", {"Connection": "close"}) from None
        received, timeout = received + len(chunk), timeout - (clock() - began)
        if received >= MIN_BODY_RATE * BODY_SECONDS:
            received, timeout = 0, BODY_SECONDS
        yield chunk


def _content_length(request: Request) -> int:
    """How many bytes the body is said to have; 0 where nothing is said."""
    return int(request.headers.get("content-length") or 0)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The file is larger than {limit // 1024**3} GiB.", "too_large")


def _parse(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
        value = json.loads(
            text, parse_float=_parse_number, parse_constant=_reject_constant, object_pairs_hook=_reject_duplicate_keys
        )
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be stored
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.", "invalid_json") from None
    return value


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, none of whose fields is there twice: one reader takes the first, another the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        duplicates, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the field {quote(duplicates)} is there twice")
    return found


def _parse_number(text: str) -> float:
    """In JSON, 10.0 is as whole as 10 is."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"no number is as large as {quote(text)}")
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def check_fields(body: Mapping[str, Any], required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """A 400 for the first required field that is missing, and for a field that does not exist."""
    known = [*required, *optional]
    for field in body:
        if field not in known:
            suggestions = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {suggestions[0]}?" if suggestions else f"there are {', '.join(known)}"
            raise invalid_field(field[:80], f"is no field of this request; {hint}")
    for field in required:
        if body.get(field) is None:
            raise invalid_field(field, "is missing")


def require_text(body: Mapping[str, Any], field: str, max_length: int = 200) -> str:
    """A field that is a non-empty string of at most `max_length` characters, trimmed, else a 400."""
    value = body.get(field)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise invalid_field(field, "must be a non-empty string")
    if len(value.strip()) > max_length:
        raise invalid_field(field, f"must have at most {max_length} characters")
    return value.strip()
