"""The overview: the project's trainer and its processes, the latest runs, the backend."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from arkor.client.auth.credentials import OAuthCredentials
from arkor.errors import ArkorError
from arkor.studio.backend_client import client_of
from arkor.studio.entry_point import probe_entry, source_version
from arkor.studio.rendering import page
from arkor.studio.run_processes import RunProcess, RunProcesses
from arkor.studio.stream_proxy import stopping

_LATEST = 6
_POLL_SECONDS = 0.2
_MAX_OUTPUT_BYTES = 256 * 1024
_CHUNK_BYTES = 64 * 1024


def overview(request: Request) -> Response:
    """`GET /`: the page; its slower parts are loaded separately."""
    folder, home = request.app.state.folder, Path.home()
    path = f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) and folder != home else str(folder)
    return page("overview.html", name=folder.name or str(folder), folder=path, launch=_processes(request).latest())


def trainer(request: Request) -> Response:
    """`GET /parts/trainer`: the trainer of the entry point, read anew. Each button works once.

    With `?poll`: 204 if the project's code is the version `seen`, or if none is shown yet.
    """
    folder = request.app.state.folder
    version = source_version(folder)  # before the entry is read, so that an edit meanwhile is noticed
    if "poll" in request.query_params and request.query_params.get("seen", version) == version:
        return Response(status_code=204)
    clicks = {"click": uuid.uuid4().hex, "second_click": uuid.uuid4().hex}
    return page("parts/trainer.html", entry=probe_entry(folder), version=version, **clicks)


def latest(request: Request) -> Response:
    return page("parts/latest.html", runs=request.app.state.run_index.runs()[:_LATEST])


def identity(request: Request) -> Response:
    """`GET /parts/identity`: the backend and the identity; with `?long`, for the overview."""
    long = "long" in request.query_params
    try:
        client = client_of(request)
    except ArkorError:
        if long:  # the card shows the reason, the short form only the state
            raise
        return page("parts/identity.html", long=False, away=True)
    scope, embedded = client.scope, client.http.auth.source == "embedded"
    oauth = isinstance(client.credentials, OAuthCredentials)
    return page(
        "parts/identity.html",
        long=long,
        away=False,
        kind="This machine" if embedded else "Remote",
        host=urlsplit(client.base_url).netloc,
        url=client.base_url,
        why=client.http.auth.source,
        who="a user" if oauth else "this machine's owner" if embedded else "an anonymous identity",
        scope=f"{scope.org_slug} / {scope.project_slug}" if scope else "",
    )


def ready(request: Request) -> Response:  # noqa: ARG001 - the signature of a route
    """`GET /parts/ready`: 204 if Studio is running and the token is right."""
    return Response(status_code=204)


async def launch(request: Request) -> Response:
    """`POST /actions/launch`: start the trainer; a repeated `click` starts it only once."""
    form = await request.form()
    click, dry_run = str(form.get("click", "")), form.get("dry_run") == "1"
    if len(click) != 32 or set(click) - set("0123456789abcdef"):
        raise HTTPException(400, "click: must be the id of a click")
    started = await run_in_threadpool(lambda: _processes(request).start(click, dry_run=dry_run))
    answer = page("parts/launch.html", launch=started)
    answer.headers["HX-Trigger-After-Swap"] = "launched"  # reloads the trainer with new click ids
    return answer


def launch_state(request: Request) -> Response:
    """`GET /parts/launches/:id`: whether the process is running, and its run."""
    return page("parts/launch_state.html", launch=_process(request))


async def output(request: Request) -> Response:
    """`GET /streams/launches/:id`: the output of the process from byte `from` on, until it ends."""
    found = await run_in_threadpool(_process, request)
    given = request.query_params.get("from", "0")
    start = int(given) if given.isascii() and given.isdigit() and len(given) < 16 else 0
    return StreamingResponse(_output(found, start), media_type="text/plain; charset=utf-8")


async def _output(process: RunProcess, start: int) -> AsyncGenerator[bytes, None]:
    with process.output.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(start, size - _MAX_OUTPUT_BYTES))
        while True:
            # Checked before reading: after the end of the process, everything has been read.
            alive = await run_in_threadpool(lambda: process.alive)
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
            if not alive or stopping.is_set():
                return
            await asyncio.sleep(_POLL_SECONDS)


def _processes(request: Request) -> RunProcesses:
    processes: RunProcesses = request.app.state.run_processes
    return processes


def _process(request: Request) -> RunProcess:
    found = _processes(request).find(request.path_params["id"])
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
