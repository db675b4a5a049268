"""Overview: the project's trainer as its entry point has it now, its processes, the last runs, backend and identity."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from arkor.client.api import CloudApiClient
from arkor.client.auth.credentials import OAuthCredentials
from arkor.errors import ArkorError
from arkor.studio.entry_point import probe_entry
from arkor.studio.rendering import page
from arkor.studio.run_processes import RunProcess, RunProcesses
from arkor.studio.stream_proxy import stopping

_LATEST = 6
_POLL_SECONDS = 0.2
_MAX_OUTPUT_BYTES = 256 * 1024
_CHUNK_BYTES = 64 * 1024


def overview(request: Request) -> Response:
    """`GET /`: the frame of the page; what takes a moment comes as parts."""
    folder: Path = request.app.state.folder
    last = _launches(request).latest()
    return page("overview.html", name=folder.name or str(folder), folder=_with_tilde(folder), launch=last)


def _with_tilde(folder: Path) -> str:
    """`"~/support-desk"`, as a person writes it."""
    home = Path.home()
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) and folder != home else str(folder)


def trainer(request: Request) -> Response:
    """`GET /parts/trainer`: what the entry point would train, read anew. Its buttons work once each."""
    entry = probe_entry(request.app.state.folder)
    return page("parts/trainer.html", entry=entry, click=uuid.uuid4().hex, second_click=uuid.uuid4().hex)


def latest(request: Request) -> Response:
    """`GET /parts/latest`: the last runs."""
    runs = request.app.state.run_index.latest(_LATEST + 1)
    return page("parts/latest.html", runs=runs[:_LATEST], more=len(runs) > _LATEST)


def identity(request: Request) -> Response:
    """`GET /parts/identity`: which backend, in whose name; `?long` is for the card of the overview."""
    long = "long" in request.query_params
    try:
        client = request.app.state.backend.client()
    except ArkorError:
        if long:  # the card says why, the corner of the frame only that it is so
            raise
        return page("parts/identity.html", long=False, away=True)
    return page("parts/identity.html", long=long, away=False, **_identity_context(client))


def _identity_context(client: CloudApiClient) -> dict[str, Any]:
    scope, embedded = client.scope, client.http.auth.source == "embedded"
    oauth = isinstance(client.credentials, OAuthCredentials)
    return {
        "kind": "This machine" if embedded else "Elsewhere",
        "host": urlsplit(client.base_url).netloc,
        "url": client.base_url,
        "why": client.http.auth.source,
        "who": "a person" if oauth else "this machine's owner" if embedded else "an anonymous identity",
        "scope": f"{scope.org_slug} / {scope.project_slug}" if scope else "",
    }


def ready(request: Request) -> Response:  # noqa: ARG001 - the signature of a route
    """`GET /parts/ready`: that Studio is there, and knows the token."""
    return Response(status_code=204)


# Its processes


async def launch(request: Request) -> Response:
    """`POST /actions/launch`: run the trainer; `click` names the click, so that a double one is one."""
    form = await request.form()
    click, dry_run = str(form.get("click", "")), form.get("dry_run") == "1"
    if len(click) != 32 or set(click) - set("0123456789abcdef"):
        raise HTTPException(400, "click: must be the name of a click")
    started = await run_in_threadpool(lambda: _launches(request).start(click, dry_run=dry_run))
    answer = page("parts/launch.html", launch=started)
    answer.headers["HX-Trigger-After-Swap"] = "launched"  # the trainer is read anew, and its buttons work once more
    return answer


def launch_state(request: Request) -> Response:
    """`GET /parts/launches/:id`: whether it goes on, and its run."""
    return page("parts/launch_state.html", launch=_launch(request))


async def output(request: Request) -> Response:
    """`GET /streams/launches/:id`: what the process has printed from byte `from` on, and what it prints, to its end."""
    found = await run_in_threadpool(_launch, request)
    given = request.query_params.get("from", "0")
    start = int(given) if given.isascii() and given.isdigit() and len(given) < 16 else 0
    return StreamingResponse(_output(found, start), media_type="text/plain; charset=utf-8")


async def _output(launch: RunProcess, start: int) -> AsyncGenerator[bytes, None]:
    with launch.output.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(start, size - _MAX_OUTPUT_BYTES))
        while True:
            alive = await run_in_threadpool(lambda: launch.alive)
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
            if not alive or stopping.is_set():  # asked before reading: all that it has printed was read
                return
            await asyncio.sleep(_POLL_SECONDS)


def _launches(request: Request) -> RunProcesses:
    launches: RunProcesses = request.app.state.run_processes
    return launches


def _launch(request: Request) -> RunProcess:
    found = _launches(request).find(request.path_params["id"])
    if found is None:
        raise HTTPException(404)
    return found


routes = [
    Route("/", overview, methods=["GET"]),
    Route("/parts/trainer", trainer, methods=["GET"]),
    Route("/parts/latest", latest, methods=["GET"]),
    Route("/parts/identity", identity, methods=["GET"]),
    Route("/parts/ready", ready, methods=["GET"]),
    Route("/actions/launch", launch, methods=["POST"]),
    Route("/parts/launches/{id}", launch_state, methods=["GET"]),
    Route("/streams/launches/{id}", output, methods=["GET"]),
]
