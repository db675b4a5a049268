"""The HTTP application of Studio: the routes of its pages, its static files, its error handlers."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from arkor.errors import ArkorError
from arkor.studio.backend_client import BackendClient
from arkor.studio.pages import endpoints, overview, playground, run, runs
from arkor.studio.rendering import error_page, fault, fault_page, shell
from arkor.studio.run_index import RunIndex
from arkor.studio.run_processes import RunProcesses
from arkor.studio.security import ListenAddress, SecurityMiddleware

_STATIC = Path(__file__).parent / "static"


def make_app(folder: Path, address: ListenAddress, token: str) -> SecurityMiddleware:
    """Return the application for the project in `folder`; requests need the token."""
    routes = [route for module in (overview, runs, run, playground, endpoints) for route in module.routes]
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
    """Static files that the browser revalidates, so that an upgrade takes effect at once."""

    def file_response(self, *arguments: object, **options: object) -> Response:
        response = super().file_response(*arguments, **options)  # type: ignore[arg-type] # passed on
        response.headers["Cache-Control"] = "no-cache"
        return response


def _no_such_page(request: Request, error: Exception) -> Response:  # noqa: ARG001 - a handler's signature
    return fault_page(request, 404, "missing", f"Studio has no page {request.url.path}.")
