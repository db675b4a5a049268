"""The HTTP application of Studio: its rooms put together, behind the guard."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from arkor.errors import ArkorError
from arkor.studio.backend_client import Link
from arkor.studio.listener import Address
from arkor.studio.pages import endpoints, overview, playground, run, runs
from arkor.studio.rendering import breakdown, fault, page, shell
from arkor.studio.run_index import Listing
from arkor.studio.run_processes import Launches
from arkor.studio.security import Guard

_STATIC = Path(__file__).parent / "static"

#: The rooms of the pages, each with its `routes`.
_ROOMS = (overview, runs, run, playground, endpoints)


def make_app(folder: Path, address: Address, token: str) -> Guard:
    """Studio for the project in `folder`, for those who know the token."""
    routes = [route for room in _ROOMS for route in room.routes]
    app = Starlette(
        routes=[*routes, Mount("/static", _Static(directory=_STATIC))],
        exception_handlers={ArkorError: fault, 404: _no_such_page, Exception: breakdown},
    )
    app.state.folder = folder
    app.state.link = Link(folder)
    app.state.listing = Listing(app.state.link)
    app.state.launches = Launches(folder)
    app.state.link.warm_up()
    return Guard(app, address, token, shell())


class _Static(StaticFiles):
    """Asked for again each time, and sent only when it has changed: a new version is seen at once."""

    def file_response(self, *arguments: object, **options: object) -> Response:
        response = super().file_response(*arguments, **options)  # type: ignore[arg-type] # handed on as they are
        response.headers["Cache-Control"] = "no-cache"
        return response


def _no_such_page(request: Request, error: Exception) -> Response:  # noqa: ARG001 - the signature of a handler
    sentence = f"There is no page {request.url.path}."
    return page("parts/fault.html", 404, kind="missing", sentence=sentence, again=None)
