"""The HTTP server's application: the routes, the shape of an error, what lives as long as the server.

Who may call and what a body must look like is in `requests.py`, who is let in at all in `middleware.py`; the process
around it in `backend/__main__.py`.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from arkor.backend.http.openapi import NOTHING, Answer, body_of, describe, route
from arkor.backend.http.requests import Refusal, refused, shown
from arkor.backend.http.routes import (
    auth,
    chat,
    checks,
    datasets,
    deployment_keys,
    deployments,
    jobs,
    openai_chat,
    projects,
    run_archives,
)
from arkor.backend.inference.service import Inference
from arkor.backend.preflight.service import Checking, sweep_checks
from arkor.backend.runs.checkpoint_pins import Pins
from arkor.backend.runs.log_notifier import Bell
from arkor.backend.runs.log_watcher import Lookout
from arkor.backend.runs.paths import bell_file, database_file
from arkor.backend.store.conversations import Conversations
from arkor.backend.store.schema import way_out
from arkor.backend.store.store import Store, is_busy, is_damaged, is_disk_trouble
from arkor.backend.workers.supervisor import Supervisor
from arkor.settings import PROTOCOL, VERSION


def health(request: Request) -> Response:
    """`GET /healthz`: that it is a backend, which, and whether it has work."""
    active = request.app.state.store.count_unfinished()
    return JSONResponse({"status": "ok", "version": VERSION, "protocol": PROTOCOL, "activeRuns": active})


def description(request: Request) -> Response:
    """`GET /openapi.json`."""
    return JSONResponse(request.app.state.description)


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


def create_app(
    home: Path, store: Store, engine: str, *, operator_token: str | None = None, open_to_own: bool = True
) -> Starlette:
    """The application on `home`, whose runs `engine` trains.

    `operator_token` opens it as the owner's does; `open_to_own` lets the owner's processes sign in without any.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.bell.open()
        app.state.pins.restore(store.endpoints.all())
        app.state.supervisor.start()
        app.state.inference = Inference(home, engine)
        sweep_checks(home)
        tidying = asyncio.create_task(app.state.conversations.tidy(store.endpoints.all))
        yield
        tidying.cancel()
        await app.state.checking.close()
        await app.state.inference.close()
        app.state.supervisor.stop()

    rooms = (auth, projects, jobs, checks, run_archives, datasets, chat, deployments, deployment_keys, openai_chat)
    app = Starlette(
        routes=[*routes, *(one for room in rooms for one in room.routes)],
        lifespan=lifespan,
        exception_handlers=_HANDLERS,
    )
    app.router.redirect_slashes = False
    app.state.description = describe(app.routes)
    app.state.home = home
    app.state.engine = engine
    app.state.store = store
    app.state.operator_token = operator_token
    app.state.open_to_own = open_to_own
    app.state.submitting = threading.Lock()
    app.state.streams = Counter()
    app.state.bell = Bell(bell_file(home))
    app.state.lookout = Lookout(app.state.bell)
    app.state.supervisor = Supervisor(home, store, engine)
    app.state.conversations = Conversations(home)
    app.state.pins = Pins(home)
    app.state.checking = Checking(home, engine, app.state.supervisor.is_training)
    return app


# The shape of an error


def _refused(_request: Request, error: Any) -> Response:
    return refused(error.status, error.sentence, error.code, error.headers)


def _http_error(request: Request, error: Any) -> Response:
    """What the framework says no to: paths that are not there, and methods that a path does not take."""
    if error.status_code == 405:
        return _other_method(request)
    if error.status_code == 404:
        return refused(404, f"There is no {shown(request.scope['path'])} here.", "not_found")
    return refused(error.status_code, f"{error.detail}.", None, error.headers)


def _other_method(request: Request) -> Response:
    """`OPTIONS` asks which methods there are; for any other, they come with the 405."""
    matching = [one for one in request.app.routes if one.matches(request.scope)[0] is not Match.NONE]
    here = [one for one in matching if one.path == request.scope["path"]] or matching
    headers = {"Allow": ", ".join(sorted({"OPTIONS", *(method for one in here for method in one.methods)}))}
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    sentence = f"{shown(request.scope['path'])} does not take {shown(request.method)}."
    return refused(405, sentence, "method_not_allowed", headers)


def _fault(_request: Request, _exception: Exception) -> Response:
    """What we did not foresee; the traceback is in the server's log, where the framework puts it."""
    return refused(500, "The backend has a fault; its log says more (backend.log in its home).", "internal")


def _gone(_request: Request, _error: Exception) -> Response:
    """The client hung up in the middle of its request; nobody will read this."""
    return Response(status_code=400)


def _disk_error(request: Request, error: Any) -> Response:
    """A disk that is full or may not be written is the person's to mend; what we did not foresee is a fault."""
    if error.errno not in _DISK_ERRORS:
        raise error
    where = error.filename or request.app.state.home
    advice = "Let it be written" if error.errno == errno.EROFS else "Free some space"
    return refused(507, f"{where} cannot be written: {error.strerror}. {advice} and try again.", "no_space")


def _database_error(request: Request, error: Any) -> Response:
    """Likewise for the database, which another program may hold, too, or have damaged."""
    where = database_file(request.app.state.home)
    if is_disk_trouble(error):
        return refused(507, f"{where} cannot be written: {error.orig}. Free some space and try again.", "no_space")
    if is_busy(error):
        return refused(503, f"{where} is in use by another program; close that and try again.", "busy", RETRY_SOON)
    if is_damaged(error):
        return refused(500, f"{where} is damaged: {error.orig}. Stop the backend. {way_out(where)}", "damaged")
    raise error


#: A client may come back in so many seconds.
RETRY_SOON = {"Retry-After": "5"}

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

_HANDLERS = {
    Refusal: _refused,
    HTTPException: _http_error,
    ClientDisconnect: _gone,
    OSError: _disk_error,
    DBAPIError: _database_error,
    Exception: _fault,
}
