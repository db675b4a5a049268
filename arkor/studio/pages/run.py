"""A run: what it was asked to do and how it stands; its events go to the browser, which draws them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from arkor.protocol.codec import to_wire
from arkor.protocol.jobs import TrainingJob
from arkor.settings import arkor_home
from arkor.studio.pages.runs import flattened
from arkor.studio.rendering import page, toast
from arkor.studio.run_index import is_over, total_of
from arkor.studio.stream_proxy import open_proxy


def run(request: Request) -> Response:
    """`GET /runs/:id`: the page."""
    job = _job(request)
    settings = flattened(to_wire(job.config))
    folder = _folder(request, job)
    return page("run.html", job=job, over=is_over(job), total=total_of(job), settings=settings, folder=folder)


def head(request: Request) -> Response:
    """`GET /parts/runs/:id`: how it stands."""
    job = _job(request)
    return page("parts/run_head.html", job=job, over=is_over(job))


def checkpoints(request: Request) -> Response:
    """`GET /parts/runs/:id/checkpoints`: the steps of those that the backend keeps; null where it does not say."""
    return JSONResponse({"kept": _job(request).checkpoints})


def cancel(request: Request) -> Response:
    """`POST /actions/runs/:id/cancel`: ask the backend to stop it; what it has saved so far is kept."""
    request.app.state.backend.client().cancel_job(request.path_params["id"])
    return toast("The run is being cancelled. What it has saved so far is kept.", kind="done")


def events(request: Request) -> Response:
    """`GET /streams/runs/:id`: its events behind `Last-Event-ID`; with `?once`, up to now instead of to its end."""
    client = request.app.state.backend.client()
    id_, cursor = request.path_params["id"], request.headers.get("last-event-id")
    glance = "once" in request.query_params
    return open_proxy(lambda: client.open_event_stream(id_, last_event_id=cursor), snapshot=glance)


def _folder(request: Request, job: TrainingJob) -> str | None:
    """Where it lies, if that is on this machine."""
    folder = arkor_home() / "runs" / job.id
    embedded = request.app.state.backend.client().http.auth.source == "embedded"
    return str(folder) if embedded and folder.is_dir() else None


def _job(request: Request) -> TrainingJob:
    job: TrainingJob = request.app.state.backend.client().get_job(request.path_params["id"])
    return job


routes = [
    Route("/runs/{id}", run, methods=["GET"]),
    Route("/parts/runs/{id}", head, methods=["GET"]),
    Route("/parts/runs/{id}/checkpoints", checkpoints, methods=["GET"]),
    Route("/actions/runs/{id}/cancel", cancel, methods=["POST"]),
    Route("/streams/runs/{id}", events, methods=["GET"]),
]
