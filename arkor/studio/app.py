"""The HTTP application of Studio: its rooms put together, behind the guard."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from arkor.errors import ArkorError
from arkor.studio.backend_client import BackendClient
from arkor.studio.listener import ListenAddress
from arkor.studio.pages import endpoints, overview, playground, run, runs
from arkor.studio.rendering import error_page, fault, page, shell
from arkor.studio.run_index import RunIndex
from arkor.studio.run_processes import RunProcesses
from arkor.studio.security import SecurityMiddleware

_STATIC = Path(__file__).parent / "static"

#: The rooms of the pages, each with its `routes`.
_PAGE_MODULES = (overview, runs, run, playground, endpoints)


def make_app(folder: Path, address: ListenAddress, token: str) -> SecurityMiddleware:
    """Studio for the project in `folder`, for those who know the token."""
    routes = [route for module in _PAGE_MODULES for route in module.routes]
    app = Starlette(
        routes=[*routes, Mount("/static", _Static(directory=_STATIC))],
        exception_handlers={ArkorError: fault, 404: _no_such_page, Exception: error_page},
    )
    app.state.folder = folder
    app.state.backend = BackendClient(folder)
    app.state.run_index = RunIndex(app.state.backend)
    app.state.run_processes = RunProcesses(folder)
    app.state.backend.connect_in_background()
    return SecurityMiddleware(app, address, token, shell())


class _Static(StaticFiles):
    """Asked for again each time, and sent only when it has changed: a new version is seen at once."""

    def file_response(self, *arguments: object, **options: object) -> Response:
        response = super().file_response(*arguments, **options)  # type: ignore[arg-type] # handed on as they are
        response.headers["Cache-Control"] = "no-cache"
        return response


def _no_such_page(request: Request, error: Exception) -> Response:  # noqa: ARG001 - the signature of a handler
    sentence = f"There is no page {request.url.path}."
    return page("parts/fault.html", 404, kind="missing", sentence=sentence, again=None)
