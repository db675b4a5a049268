"""The HTTP server's application: the routes, the shape of an error, what lives as long as the server.

Who may call and what a body must look like is in `routes/`; the process around it in `__main__.py`.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arkor.backend.bell import Bell
from arkor.backend.conversations import Conversations
from arkor.backend.home import bell_file, database_file
from arkor.backend.inference import Inference
from arkor.backend.openapi import NOTHING, Answer, body_of, describe, route
from arkor.backend.routes import Refusal, auth, copies, datasets, door, endpoints, inference, jobs, keys, projects
from arkor.backend.schema import way_out
from arkor.backend.store import Store, is_busy, is_damaged, is_disk_trouble
from arkor.backend.supervisor import Supervisor
from arkor.backend.tail import Lookout
from arkor.settings import PROTOCOL, VERSION

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def health(request: Request) -> Response:
    """`GET /healthz`: that it is a backend, which, and whether it has work."""
    active = request.app.state.store.count_unfinished()
    return JSONResponse({"status": "ok", "version": VERSION, "protocol": PROTOCOL, "activeRuns": active})


def description(request: Request) -> Response:
    """`GET /openapi.json`."""
    return JSONResponse(describe(request.app.routes))


_COUNT = {"type": "integer", "minimum": 0}
_WELL = body_of(status={"const": "ok"}, version={"type": "string"}, protocol=_COUNT, activeRuns=_COUNT)

routes = [
    route("GET", "/healthz", health, NOTHING, "That it is well.", answers={200: Answer("It is.", _WELL)}),
    route(
        "GET",
        "/openapi.json",
        description,
        NOTHING,
        "What each route takes and answers.",
        answers={200: Answer("An OpenAPI document.", {"type": "object"})},
    ),
]


def create_app(home: Path, store: Store, engine: str) -> Starlette:
    """The application on `home`, whose runs `engine` trains."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.bell.open()
        app.state.supervisor.start()
        app.state.inference = Inference(home, engine)
        tidying = asyncio.create_task(app.state.conversations.tidy(store.endpoints.all))
        yield
        tidying.cancel()
        await app.state.inference.close()
        app.state.supervisor.stop()

    rooms = (auth, projects, jobs, copies, datasets, inference, endpoints, keys, door)
    app = Starlette(
        routes=[*routes, *(one for room in rooms for one in room.routes)],
        lifespan=lifespan,
        exception_handlers=_HANDLERS,
    )
    app.router.redirect_slashes = False
    app.state.home = home
    app.state.engine = engine
    app.state.store = store
    app.state.bell = Bell(bell_file(home))
    app.state.lookout = Lookout(app.state.bell)
    app.state.supervisor = Supervisor(home, store, engine)
    app.state.conversations = Conversations(home)
    return app


# The shape of an error


def _error(status: int, sentence: str, code: str | None) -> JSONResponse:
    return JSONResponse({"error": sentence, **({"code": code} if code else {})}, status)


def _refused(_request: Request, error: Any) -> Response:
    return _error(error.status, error.sentence, error.code)


def _http_error(request: Request, error: Any) -> Response:
    sentences = {
        404: (f"There is no {request.url.path} here.", "not_found"),
        405: (f"{request.url.path} does not take {request.method}.", "method_not_allowed"),
    }
    sentence, code = sentences.get(error.status_code, (f"{error.detail}.", None))
    response = _error(error.status_code, sentence, code)
    response.headers.update(error.headers or {})
    return response


def _fault(_request: Request, _exception: Exception) -> Response:
    """What we did not foresee; the traceback is in the server's log, where the framework puts it."""
    return _error(500, "The backend has a fault; its log says more (backend.log in its home).", "internal")


def _gone(_request: Request, _error: Exception) -> Response:
    """The client hung up in the middle of its request; nobody will read this."""
    return Response(status_code=400)


def _disk_error(request: Request, error: Any) -> Response:
    """A disk that is full or may not be written is the person's to mend; what we did not foresee is a fault."""
    if error.errno not in _DISK_ERRORS:
        raise error
    where = error.filename or request.app.state.home
    advice = "Let it be written" if error.errno == errno.EROFS else "Free some space"
    return _error(507, f"{where} cannot be written: {error.strerror}. {advice} and try again.", "no_space")


def _database_error(request: Request, error: Any) -> Response:
    """Likewise for the database, which another program may hold, too, or have damaged."""
    where = database_file(request.app.state.home)
    if is_disk_trouble(error):
        return _error(507, f"{where} cannot be written: {error.orig}. Free some space and try again.", "no_space")
    if is_busy(error):
        return _error(503, f"{where} is in use by another program; close that and try again.", "busy")
    if is_damaged(error):
        return _error(500, f"{where} is damaged: {error.orig}. Stop the backend. {way_out(where)}", "damaged")
    raise error


_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

_HANDLERS = {
    Refusal: _refused,
    HTTPException: _http_error,
    ClientDisconnect: _gone,
    OSError: _disk_error,
    DBAPIError: _database_error,
    Exception: _fault,
}


class Doorman:
    """Stands before the application: whom the host name leads here, the version on every answer, who is inside."""

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only
        self._inside = 0
        self._last_left = time.monotonic()

    def quiet_since(self) -> float | None:
        """The `time.monotonic()` at which the last request or stream ended; None while there is one."""
        return None if self._inside else self._last_left

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Arkor-Version"] = VERSION
            await send(message)

        self._inside += 1
        try:
            if self._loopback_only and not _names_loopback(scope):
                # A page of another site whose name was made to point here must not get in.
                refusal = _error(403, "This backend answers to localhost alone; call it by that name.", "bad_host")
                return await refusal(scope, receive, send_with_version)
            return await self._app(scope, receive, send_with_version)
        finally:
            self._inside -= 1
            self._last_left = time.monotonic()


def _names_loopback(scope: Scope) -> bool:
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    try:
        return urlsplit(f"//{host}").hostname in LOOPBACK_NAMES
    except ValueError:
        return False
