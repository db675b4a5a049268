"""The HTTP server's application: its routes, its shared state, and the responses to exceptions.

Requests are read in `authentication.py` and `body.py`, and filtered before in `middleware.py`; the
process around the application is `backend/__main__.py`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from arkor.backend.http.authentication import NOTHING
from arkor.backend.http.errors import OPENAI_PATH, RETRY_SOON, ApiError, error_response
from arkor.backend.http.openapi import ResponseSpec, RouteTable, describe
from arkor.backend.http.routes import (
    accounts,
    chat,
    deployments,
    files,
    jobs,
    openai_chat,
    openai_completions,
    openai_deployment,
    openai_responses,
)
from arkor.backend.http.schema import STRING, object_schema
from arkor.backend.http.state import AppState, app_state
from arkor.backend.inference.messages import GenerationError
from arkor.backend.inference.service import InferenceService
from arkor.backend.preflight.service import CheckService
from arkor.backend.runs.checkpoints import CheckpointPins
from arkor.backend.runs.log_notifier import LogNotifier
from arkor.backend.runs.log_watcher import LogWatcher
from arkor.backend.runs.paths import database_file, notifier_file
from arkor.backend.store.conversations import ConversationStore
from arkor.backend.store.schema import recovery_advice
from arkor.backend.store.store import Store, database_problem
from arkor.backend.workers.supervisor import Supervisor
from arkor.errors import InvalidConfig
from arkor.files import DISK_ERRORS
from arkor.formatting import quote
from arkor.settings import PROTOCOL, VERSION

_COUNT = {"type": "integer", "minimum": 0}
_HEALTH = object_schema(status={"const": "ok"}, version=STRING, protocol=_COUNT, activeRuns=_COUNT)

routes = RouteTable()


@routes.add("GET /healthz", NOTHING, responses={200: ResponseSpec("The server is healthy.", _HEALTH)})
def health(state: AppState) -> Response:
    """Health check."""
    active = state.store.count_unfinished()
    return JSONResponse({"status": "ok", "version": VERSION, "protocol": PROTOCOL, "activeRuns": active})


@routes.add("GET /openapi.json", NOTHING, responses={200: ResponseSpec("An OpenAPI document.", {"type": "object"})})
def description(request: Request) -> Response:
    """Return the description of every route."""
    return JSONResponse(describe(request.app.routes))


def create_app(
    home: Path, store: Store, engine: str, *, operator_token: str | None = None, open_to_own_user: bool = True
) -> Starlette:
    """Return the application that serves `home` with `engine`; for the tokens see `AppState`."""
    notifier, supervisor = LogNotifier(notifier_file(home)), Supervisor(home, store, engine)
    state = AppState(
        home=home,
        engine=engine,
        store=store,
        supervisor=supervisor,
        inference=InferenceService(home, engine),
        check_service=CheckService(home, engine, supervisor.is_training),
        conversations=ConversationStore(home),
        checkpoint_pins=CheckpointPins(home),
        log_notifier=notifier,
        log_watcher=LogWatcher(notifier),
        operator_token=operator_token,
        open_to_own_user=open_to_own_user,
    )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        notifier.open()
        state.checkpoint_pins.restore(store.deployments.all())
        supervisor.start()
        retention_task = asyncio.create_task(state.conversations.purge_periodically(store.deployments.all))
        yield
        retention_task.cancel()
        await state.check_service.close()
        await state.inference.close()
        supervisor.stop()

    modules = (accounts, jobs, files, chat, deployments)
    public = (openai_chat, openai_completions, openai_responses)
    app = Starlette(
        routes=[*routes, *(route for module in (*modules, *public) for route in module.routes)],
        lifespan=lifespan,
        exception_handlers=_HANDLERS,
    )
    app.router.redirect_slashes = False
    app.state.arkor = state
    return app


# Exceptions


def _error(request: Request, error: Any) -> Response:
    return error_response(request.scope["path"], error)


def _http_error(request: Request, error: Any) -> Response:
    """Answer what the framework rejects: unknown paths, and methods that a path does not have."""
    if error.status_code == 405:
        return _method_not_allowed(request)
    if error.status_code == 404:
        problem = f"There is nothing at {quote(request.scope['path'])}."
        remedy = openai_deployment.ROUTES_HINT if _is_public(request) else None
        return _error(request, ApiError(404, problem, "not_found", remedy=remedy))
    return _error(request, ApiError(error.status_code, f"{error.detail}.", headers=error.headers))


def _method_not_allowed(request: Request) -> Response:
    """Answer `OPTIONS` with the methods of the path, other methods with a 405 that lists them."""
    matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    exact = [route for route in matching if route.path == request.scope["path"]] or matching
    headers = {"Allow": ", ".join(sorted({"OPTIONS", *(method for route in exact for method in route.methods)}))}
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    problem = f"{quote(request.scope['path'])} does not support the method {quote(request.method)}."
    return _error(request, ApiError(405, problem, "method_not_allowed", headers=headers))


def _internal_error(request: Request, _exception: Exception) -> Response:
    """Answer an unforeseen exception; the framework logs its traceback."""
    remedy = None if _is_public(request) else "Its log has the details (backend.log in its home)."
    return _error(request, ApiError(500, "The backend failed to handle this request.", "internal", remedy=remedy))


def _disk_error(request: Request, error: Any) -> Response:
    """Answer errors of the disk that the operator can fix; others are unforeseen."""
    if error.errno not in DISK_ERRORS:
        raise error
    path = error.filename or app_state(request).home
    remedy = "Make it writable" if error.errno == errno.EROFS else "Free some space"
    return _no_space(request, f"{path} cannot be written: {error.strerror}.", f"{remedy} and try again.")


def _database_error(request: Request, error: Any) -> Response:
    """Answer errors of the database that the operator can fix: full disk, lock, damaged file."""
    path = database_file(app_state(request).home)
    kind = database_problem(error)
    if kind == "disk":
        return _no_space(request, f"{path} cannot be written: {error.orig}.", "Free some space and try again.")
    if kind == "busy":
        problem, remedy = f"{path} is in use by another program.", "Close that and try again."
        if _is_public(request):
            problem, remedy = "The backend is busy.", "Try again."
        return _error(request, ApiError(503, problem, "busy", remedy=remedy, headers=RETRY_SOON))
    if kind == "damaged":
        if _is_public(request):
            return _error(request, ApiError(500, "The backend's database is damaged.", "damaged"))
        remedy = f"Stop the backend, then {recovery_advice(path)}"
        return _error(request, ApiError(500, f"{path} is damaged: {error.orig}.", "damaged", remedy=remedy))
    raise error


def _no_space(request: Request, problem: str, remedy: str) -> Response:
    if _is_public(request):
        return _error(request, ApiError(507, "The backend's disk cannot be written.", "no_space"))
    return _error(request, ApiError(507, problem, "no_space", remedy=remedy))


def _is_public(request: Request) -> bool:
    """Whether the caller need not be the operator: paths of this machine are not for them."""
    return bool(request.scope["path"].startswith(OPENAI_PATH))


_HANDLERS: dict[Any, Callable[[Request, Any], Response]] = {
    ApiError: _error,
    InvalidConfig: _error,
    GenerationError: _error,
    HTTPException: _http_error,
    ClientDisconnect: lambda _request, _error: Response(status_code=400),  # sent to a closed connection
    OSError: _disk_error,
    DBAPIError: _database_error,
    Exception: _internal_error,
}
