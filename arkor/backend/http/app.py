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

from arkor.backend.http.openapi import NOTHING, ResponseSpec, describe, object_schema, route
from arkor.backend.http.requests import ApiError, api_error, quote
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
from arkor.backend.inference.service import InferenceService
from arkor.backend.preflight.service import CheckService, remove_stale_checks
from arkor.backend.runs.checkpoints import CheckpointPins
from arkor.backend.runs.log_notifier import LogNotifier
from arkor.backend.runs.log_watcher import LogWatcher
from arkor.backend.runs.paths import database_file, notifier_file
from arkor.backend.store.conversations import ConversationStore
from arkor.backend.store.schema import recovery_advice
from arkor.backend.store.store import Store, is_busy, is_corrupted, is_disk_error
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
_HEALTH_SCHEMA = object_schema(status={"const": "ok"}, version={"type": "string"}, protocol=_COUNT, activeRuns=_COUNT)

routes = [
    route(
        "GET", "/healthz", health, NOTHING, "That it is well.", responses={200: ResponseSpec("It is.", _HEALTH_SCHEMA)}
    ),
    route(
        "GET",
        "/openapi.json",
        description,
        NOTHING,
        "What each route takes and answers.",
        responses={200: ResponseSpec("An OpenAPI document.", {"type": "object"})},
    ),
]


def create_app(
    home: Path, store: Store, engine: str, *, operator_token: str | None = None, open_to_own_user: bool = True
) -> Starlette:
    """The application on `home`, whose runs `engine` trains.

    `operator_token` opens it as the owner's does; `open_to_own_user` lets the owner's processes sign in without any.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.log_notifier.open()
        app.state.checkpoint_pins.restore(store.deployments.all())
        app.state.supervisor.start()
        app.state.inference = InferenceService(home, engine)
        remove_stale_checks(home)
        retention_task = asyncio.create_task(app.state.conversations.purge_periodically(store.deployments.all))
        yield
        retention_task.cancel()
        await app.state.check_service.close()
        await app.state.inference.close()
        app.state.supervisor.stop()

    route_modules = (
        auth,
        projects,
        jobs,
        checks,
        run_archives,
        datasets,
        chat,
        deployments,
        deployment_keys,
        openai_chat,
    )
    app = Starlette(
        routes=[*routes, *(described_route for module in route_modules for described_route in module.routes)],
        lifespan=lifespan,
        exception_handlers=_HANDLERS,
    )
    app.router.redirect_slashes = False
    app.state.description = describe(app.routes)
    app.state.home = home
    app.state.engine = engine
    app.state.store = store
    app.state.operator_token = operator_token
    app.state.open_to_own_user = open_to_own_user
    app.state.submitting = threading.Lock()
    app.state.streams = Counter()
    app.state.log_notifier = LogNotifier(notifier_file(home))
    app.state.log_watcher = LogWatcher(app.state.log_notifier)
    app.state.supervisor = Supervisor(home, store, engine)
    app.state.conversations = ConversationStore(home)
    app.state.checkpoint_pins = CheckpointPins(home)
    app.state.check_service = CheckService(home, engine, app.state.supervisor.is_training)
    return app


# The shape of an error


def _api_error_response(_request: Request, error: Any) -> Response:
    return api_error(error.status, error.sentence, error.code, error.headers)


def _http_error(request: Request, error: Any) -> Response:
    """What the framework says no to: paths that are not there, and methods that a path does not take."""
    if error.status_code == 405:
        return _method_not_allowed(request)
    if error.status_code == 404:
        return api_error(404, f"There is no {quote(request.scope['path'])} here.", "not_found")
    return api_error(error.status_code, f"{error.detail}.", None, error.headers)


def _method_not_allowed(request: Request) -> Response:
    """`OPTIONS` asks which methods there are; for any other, they come with the 405."""
    matching = [candidate for candidate in request.app.routes if candidate.matches(request.scope)[0] is not Match.NONE]
    exact = [candidate for candidate in matching if candidate.path == request.scope["path"]] or matching
    headers = {
        "Allow": ", ".join(sorted({"OPTIONS", *(method for candidate in exact for method in candidate.methods)}))
    }
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    sentence = f"{quote(request.scope['path'])} does not take {quote(request.method)}."
    return api_error(405, sentence, "method_not_allowed", headers)


def _internal_error(_request: Request, _exception: Exception) -> Response:
    """What we did not foresee; the traceback is in the server's log, where the framework puts it."""
    return api_error(500, "The backend has a fault; its log says more (backend.log in its home).", "internal")


def _client_disconnected(_request: Request, _error: Exception) -> Response:
    """The client hung up in the middle of its request; nobody will read this."""
    return Response(status_code=400)


def _disk_error(request: Request, error: Any) -> Response:
    """A disk that is full or may not be written is the person's to mend; what we did not foresee is a fault."""
    if error.errno not in _DISK_ERRORS:
        raise error
    path = error.filename or request.app.state.home
    remedy = "Let it be written" if error.errno == errno.EROFS else "Free some space"
    return api_error(507, f"{path} cannot be written: {error.strerror}. {remedy} and try again.", "no_space")


def _database_error(request: Request, error: Any) -> Response:
    """Likewise for the database, which another program may hold, too, or have damaged."""
    path = database_file(request.app.state.home)
    if is_disk_error(error):
        return api_error(507, f"{path} cannot be written: {error.orig}. Free some space and try again.", "no_space")
    if is_busy(error):
        return api_error(503, f"{path} is in use by another program; close that and try again.", "busy", RETRY_SOON)
    if is_corrupted(error):
        return api_error(
            500, f"{path} is damaged: {error.orig}. Stop the backend, then {recovery_advice(path)}", "damaged"
        )
    raise error


#: A client may come back in so many seconds.
RETRY_SOON = {"Retry-After": "5"}

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

_HANDLERS = {
    ApiError: _api_error_response,
    HTTPException: _http_error,
    ClientDisconnect: _client_disconnected,
    OSError: _disk_error,
    DBAPIError: _database_error,
    Exception: _internal_error,
}
