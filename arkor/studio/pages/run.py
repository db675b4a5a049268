"""The page of a run: its configuration, its state, and its events, which the browser draws."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from arkor.protocol.codec import to_wire
from arkor.protocol.jobs import TrainingJob
from arkor.settings import arkor_home
from arkor.studio.backend_client import client_of
from arkor.studio.pages.runs import flattened
from arkor.studio.rendering import page, toast
from arkor.studio.run_index import has_ended
from arkor.studio.stream_proxy import open_proxy


def run(request: Request) -> Response:
    job = _job(request)
    folder = arkor_home() / "runs" / job.id
    is_local = client_of(request).http.auth.source == "embedded" and folder.is_dir()
    settings = flattened(to_wire(job.config))
    return page("run.html", job=job, over=has_ended(job), settings=settings, folder=str(folder) if is_local else None)


def head(request: Request) -> Response:
    job = _job(request)
    return page("parts/run_head.html", job=job, over=has_ended(job))


def checkpoints(request: Request) -> Response:
    """`GET /parts/runs/:id/checkpoints`: the steps of the kept checkpoints; null if unknown."""
    return JSONResponse({"kept": _job(request).checkpoints})


def cancel(request: Request) -> Response:
    """`POST /actions/runs/:id/cancel`: cancel the run; what it has saved is kept."""
    job = _job(request)
    client_of(request).cancel_job(job.id)  # of a run that has ended, the managed cloud may accept this
    if has_ended(job):
        return toast(f"The run has already ended: {job.status}.")
    return toast("The run is being cancelled. What it has saved is kept.", kind="done")


def events(request: Request) -> Response:
    """`GET /streams/runs/:id`: the events after `Last-Event-ID`; with `?once`, only up to now."""
    client = client_of(request)
    id_, cursor = request.path_params["id"], request.headers.get("last-event-id")
    snapshot = "once" in request.query_params
    return open_proxy(lambda: client.open_event_stream(id_, last_event_id=cursor), snapshot=snapshot)


def _job(request: Request) -> TrainingJob:
    return client_of(request).get_job(request.path_params["id"])


routes = [
    Route("/runs/{id}", run, methods=["GET"]),
    Route("/parts/runs/{id}", head, methods=["GET"]),
    Route("/parts/runs/{id}/checkpoints", checkpoints, methods=["GET"]),
    Route("/actions/runs/{id}/cancel", cancel, methods=["POST"]),
    Route("/streams/runs/{id}", events, methods=["GET"]),
]
