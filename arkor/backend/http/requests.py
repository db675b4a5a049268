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
from arkor.backend.store.store import OWNER, Job, Org, Project, Store, User
from arkor.protocol.codec import to_wire

JSON_LIMIT = 1024 * 1024

#: What a person calls a thing of theirs, as `require_text` takes it.
NAME = {"type": "string", "maxLength": 200, "pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$"}
#: A body brings at least so many bytes a second, over so many seconds of waiting for it.
BODY_RATE, BODY_SECONDS = 512, 20.0

_PIECE = 1024 * 1024


class Refusal(Exception):
    """An answer that is an error: an HTTP status, a sentence for a person, a word for a machine; more headers."""

    def __init__(
        self, status: int, sentence: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, sentence, code)
        self.status = status
        self.sentence = sentence
        self.code = code
        self.headers = headers


def refused(status: int, sentence: str, code: str | None, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as all are on the wire."""
    return JSONResponse(to_wire(Problem(sentence, code)), status, headers)


@frozen
class CallScope:
    """Whose call it is, and in which project."""

    user: User
    org: Org
    project: Project


def invalid(field: str, problem: str) -> Refusal:
    """A 400 that names the field by its name on the wire."""
    return Refusal(400, f"{field}: {problem}", "invalid_request")


# Who calls


async def require_user(request: Request) -> User:
    """The user whose bearer token this is, else a 401."""
    token = bearer_token(request)
    user = await run_in_threadpool(user_of, request, token) if token else None
    if user is None:
        raise unauthorized("This needs a valid token: Authorization: Bearer <token>.", "unauthorized")
    return user


def bearer_token(request: Request) -> str | None:
    """The token of the request, if it has a single one."""
    given = request.headers.getlist("authorization")
    kind, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return token.strip() or None if kind.lower() == "bearer" else None


def user_of(request: Request, token: str) -> User | None:
    """Whose token it is; the operator's own is the owner's for as long as this server runs, and is kept nowhere."""
    operator: str | None = request.app.state.operator_token
    if operator and hmac.compare_digest(operator.encode(), token.encode("utf-8", "replace")):
        return User(OWNER, None)
    return _store(request).user(token)


def unauthorized(sentence: str, code: str) -> Refusal:
    """A 401."""
    return Refusal(401, sentence, code, {"WWW-Authenticate": "Bearer"})


async def require_org(request: Request) -> tuple[User, Org]:
    """The user and the org of the query, else a 401, 400 or 403."""
    user = await require_user(request)
    slug = _query(request, "orgSlug")
    for org in await run_in_threadpool(_store(request).orgs, user):
        if org.slug == slug:
            return user, org
    raise Refusal(403, f"You are not a member of the organisation {shown(slug)}.", "forbidden")


async def require_scope(request: Request) -> CallScope:
    """The user, the org and the project of the query, else a 401, 400, 403 or 404."""
    user, org = await require_org(request)
    slug = _query(request, "projectSlug")
    project = await run_in_threadpool(_store(request).project, org, slug)
    if project is None:
        raise Refusal(404, f"The organisation {org.slug!r} has no project {shown(slug)}.", "project_not_found")
    return CallScope(user, org, project)


async def require_job(request: Request, scope: CallScope, job_id: str) -> Job:
    """The job of that id in that scope, else a 404. Its status may be behind its log's."""
    job = await run_in_threadpool(_store(request).job, scope.project, job_id)
    if job is None:
        raise Refusal(404, f"The project {scope.project.slug!r} has no job {shown(job_id)}.", "job_not_found")
    return job


def shown(text: str) -> str:
    """What a caller wrote, quoted, and no longer than a sentence bears."""
    return repr(text if len(text) <= 80 else f"{text[:79]}…")


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _query(request: Request, name: str) -> str:
    value = request.query_params.get(name)
    if not value:
        raise invalid(name, "is missing in the query")
    return value


# The body


async def read_object(request: Request, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The body, which must be a JSON object of at most `limit` bytes, else a 400, 408, 413 or 415."""
    too_large = Refusal(413, f"The body is larger than {limit} bytes.", "too_large")
    if _announced(request) > limit:
        raise too_large
    body = bytearray()
    async for piece in pieces(request):
        body += piece
        if len(body) > limit:
            raise too_large
    value = _parse(bytes(body))
    if not isinstance(value, dict):
        raise Refusal(400, "The body must be a JSON object.", "invalid_json")
    return value


async def save_body(request: Request, file: Path, limit: int, look: Callable[[bytes], object] | None = None) -> int:
    """Stream the body into a file, and show `look` every piece; returns its size in bytes. Else a 408, 413 or 415."""
    if _announced(request) > limit:
        raise _too_large(limit)
    size = 0

    def take(piece: bytes) -> None:
        if look is not None:
            look(piece)
        target.write(piece)

    with file.open("wb", buffering=0) as target:
        pending = bytearray()
        async for piece in pieces(request):
            pending += piece
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            if len(pending) >= _PIECE:
                await run_in_threadpool(take, bytes(pending))
                pending.clear()
        await run_in_threadpool(take, bytes(pending))
    return size


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes, uncompressed; else a 415, or a 408 for a client that has us wait for next to nothing.

    Only the time counts in which we wait for the client, not that in which it waits for us.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Refusal(415, f"The body is compressed ({shown(encoding)}); send it as it is.", "compressed")
    stream, clock = request.stream(), asyncio.get_running_loop().time
    came, patience = 0, BODY_SECONDS
    while True:
        began = clock()
        try:
            piece = await asyncio.wait_for(anext(stream), patience)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            sentence = "The body came too slowly; send it again."
            raise Refusal(408, sentence, "too_slow", {"Connection": "close"}) from None
        came, patience = came + len(piece), patience - (clock() - began)
        if came >= BODY_RATE * BODY_SECONDS:
            came, patience = 0, BODY_SECONDS
        yield piece


def _announced(request: Request) -> int:
    """How many bytes the body is said to have; 0 where nothing is said."""
    return int(request.headers.get("content-length") or 0)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"The file is larger than {limit // 1024**3} GiB.", "too_large")


def _parse(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_float=_number, parse_constant=_no_constant, object_pairs_hook=_once)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be stored
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is not valid JSON: {error}.", "invalid_json") from None
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, none of whose fields is there twice: one reader takes the first, another the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the field {shown(twice)} is there twice")
    return found


def _number(text: str) -> float:
    """In JSON, 10.0 is as whole as 10 is."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"no number is as large as {shown(text)}")
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def check_fields(body: Mapping[str, Any], required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """A 400 for the first required field that is missing, and for a field that does not exist."""
    known = [*required, *optional]
    for field in body:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise invalid(field[:80], f"is no field of this request; {hint}")
    for field in required:
        if body.get(field) is None:
            raise invalid(field, "is missing")


def require_text(body: Mapping[str, Any], field: str, longest: int = 200) -> str:
    """A field that is a non-empty string of at most `longest` characters, trimmed, else a 400."""
    value = body.get(field)
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise invalid(field, "must be a non-empty string")
    if len(value.strip()) > longest:
        raise invalid(field, f"must have at most {longest} characters")
    return value.strip()
