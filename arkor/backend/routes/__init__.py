"""What every route needs: who calls, in which scope, the body, and how to say no.

A route finds the shared things on `request.app.state`: `home` (a Path), `store`, `supervisor`, `lookout`, `inference`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from arkor.backend.store import Job, Org, Project, Store, User

JSON_LIMIT = 1024 * 1024

#: What a person calls a thing of theirs, as `require_text` takes it.
NAME = {"type": "string", "maxLength": 200, "pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$"}
_PIECE = 1024 * 1024


class Refusal(Exception):
    """An answer that is an error: an HTTP status, a sentence for a person, a word for a machine."""

    def __init__(self, status: int, sentence: str, code: str | None = None) -> None:
        super().__init__(status, sentence, code)
        self.status = status
        self.sentence = sentence
        self.code = code


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
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    user = None
    if kind.lower() == "bearer" and token.strip():
        user = await run_in_threadpool(_store(request).user, token.strip())
    if user is None:
        raise Refusal(401, "This needs a valid token: Authorization: Bearer <token>.", "unauthorized")
    return user


async def require_org(request: Request) -> tuple[User, Org]:
    """The user and the org of the query, else a 401, 400 or 403."""
    user = await require_user(request)
    slug = _query(request, "orgSlug")
    for org in await run_in_threadpool(_store(request).orgs, user):
        if org.slug == slug:
            return user, org
    raise Refusal(403, f"You are not a member of the organisation {slug!r}.", "forbidden")


async def require_scope(request: Request) -> CallScope:
    """The user, the org and the project of the query, else a 401, 400, 403 or 404."""
    user, org = await require_org(request)
    slug = _query(request, "projectSlug")
    project = await run_in_threadpool(_store(request).project, org, slug)
    if project is None:
        raise Refusal(404, f"The organisation {org.slug!r} has no project {slug!r}.", "project_not_found")
    return CallScope(user, org, project)


async def require_job(request: Request, scope: CallScope, job_id: str) -> Job:
    """The job of that id in that scope, else a 404. Its status may be behind its log's."""
    job = await run_in_threadpool(_store(request).job, scope.project, job_id)
    if job is None:
        raise Refusal(404, f"The project {scope.project.slug!r} has no job {job_id!r}.", "job_not_found")
    return job


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
    """The body, which must be a JSON object of at most `limit` bytes, else a 400 or 413."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise Refusal(413, f"The body is larger than {limit} bytes.", "too_large")
    value = _parse(bytes(body))
    if not isinstance(value, dict):
        raise Refusal(400, "The body must be a JSON object.", "invalid_json")
    return value


async def save_body(request: Request, file: Path, limit: int, look: Callable[[bytes], object] | None = None) -> int:
    """Stream the body into a file, and show `look` every piece; returns its size in bytes. Else a 413."""
    if int(request.headers.get("content-length") or 0) > limit:
        raise _too_large(limit)
    size = 0

    def take(piece: bytes) -> None:
        if look is not None:
            look(piece)
        target.write(piece)

    with file.open("wb", buffering=0) as target:
        pending = bytearray()
        async for chunk in request.stream():
            pending += chunk
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            if len(pending) >= _PIECE:
                await run_in_threadpool(take, bytes(pending))
                pending.clear()
        await run_in_threadpool(take, bytes(pending))
    return size


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"The file is larger than {limit // 1024**3} GiB.", "too_large")


def _parse(body: bytes) -> Any:
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be stored
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is not valid JSON: {error}.", "invalid_json") from None
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def check_fields(body: Mapping[str, Any], required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """A 400 for the first required field that is missing, and for a field that does not exist."""
    known = [*required, *optional]
    for field in body:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise invalid(field, f"is no field of this request; {hint}")
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
