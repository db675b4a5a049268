"""Jobs: check, submit, list, show, cancel, and the event stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.compute.models import submission_problem
from arkor.backend.engine.hyperparameters import check_names
from arkor.backend.http.authentication import PROJECT, require_job
from arkor.backend.http.errors import ApiError, config_error, invalid_field
from arkor.backend.http.event_stream import EventStreamResponse, open_stream
from arkor.backend.http.openapi import ResponseSpec, RouteTable, id_links
from arkor.backend.http.schema import EVENTS, STRING, TEXT, Parameter, array_schema, name_schema, object_schema
from arkor.backend.http.state import AppState
from arkor.backend.inference.service import checkpoint_steps
from arkor.backend.runs.event_log import last_id
from arkor.backend.runs.log_queries import summary
from arkor.backend.runs.paths import create_run, run_folder
from arkor.backend.runs.sse import cursor_frame, parse_cursor
from arkor.backend.store.run_registry import manifest
from arkor.backend.store.schema import AlreadyExists
from arkor.backend.store.store import JobRecord, new_id
from arkor.backend.workers.supervisor import JobFinished
from arkor.errors import InvalidConfig
from arkor.protocol.accounts import Org, Project, User
from arkor.protocol.codec import camel_case, from_wire, to_wire
from arkor.protocol.datasets import BlobDataset, parse_dataset
from arkor.protocol.events import now
from arkor.protocol.jobs import JobConfig, JobStatus, TrainingJob
from arkor.settings import max_queued_runs

#: How many jobs a page of the list has by default, and at most.
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 100, 1000

CHECK_REQUEST = object_schema(config=JobConfig)
NEW_JOB = object_schema(name=name_schema(200), config=JobConfig)

_KEY, _PAGE_SIZE = {"type": "string", "maxLength": 255}, {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE}
IDEMPOTENCY_KEY = Parameter("Idempotency-Key", _KEY, "Requests with the same key create one job.", where="header")
LIMIT = Parameter("limit", _PAGE_SIZE, f"The maximum number of jobs; by default {DEFAULT_PAGE_SIZE}.")
BEFORE = Parameter("before", STRING, "Return the jobs that are older than the job of this id.")
ID_PREFIX = Parameter("idPrefix", STRING, "Return the jobs whose id begins like this.")
LAST_EVENT_ID = Parameter("Last-Event-ID", STRING, "Begin after this event.", where="header")
SINCE = Parameter("since", STRING, "`now` leaves out the events so far.")

JOB = object_schema(job=TrainingJob)
_LINKS = id_links("job", job="getV1JobsId", cancel="postV1JobsIdCancel")
_INVALID_CONFIG = {400: "The configuration is not valid, or the run cannot start with it."}
_TOO_MANY_STREAMS = {429: "The user has too many streams open; repeat the request after `Retry-After` seconds."}
_CHECK_EVENTS = "Server-sent events: `check.progress`, `check.found` and `check.failed`; the last one is `end`."

routes = RouteTable()


# Checking and submitting


@routes.add(
    "POST /v1/jobs/check",
    PROJECT,
    body=CHECK_REQUEST,
    responses={200: ResponseSpec(_CHECK_EVENTS, EVENTS, "text/event-stream")},
    errors={**_INVALID_CONFIG, **_TOO_MANY_STREAMS},
)
async def check(state: AppState, user: User, project: Project, body: dict[str, Any]) -> Response:
    """Check a run without submitting it: its rows, their lengths, how long it will take."""
    config, token = _parse_config(body["config"])
    await run_in_threadpool(_reject_unrunnable, state, project, config)
    frames = state.check_service.frames(to_wire(config), token)
    return EventStreamResponse(frames, open_stream(state.open_streams, user))


@routes.add(
    "POST /v1/jobs",
    PROJECT,
    body=NEW_JOB,
    parameters=[IDEMPOTENCY_KEY],
    responses={
        201: ResponseSpec("The job, which is queued.", JOB, links=_LINKS),
        200: ResponseSpec("The job that was created with the same key before.", JOB, links=_LINKS),
    },
    errors={**_INVALID_CONFIG, 409: "The organisation has too many unfinished runs."},
)
def submit(request: Request, state: AppState, org: Org, project: Project, body: dict[str, Any]) -> Response:
    """Submit a run."""
    config, token = _parse_config(body["config"])
    key = IDEMPOTENCY_KEY.read(request)
    if existing := _existing_job(state, project, key):
        return existing
    _reject_unrunnable(state, project, config)
    with state.submission_lock:  # simultaneous submissions would each find the queue below its limit
        _reject_full_queue(state, org)
        name, wire = body["name"].strip(), to_wire(config)
        job = JobRecord(new_id(), org.id, project.id, name, JobStatus.QUEUED, wire, now())
        folder = create_run(state.home, manifest(job, org, project, key), token)
        try:
            state.store.add_job(job, key)  # after its folder, as a worker may take the job from here on
        except Exception as error:
            folder.remove()
            if isinstance(error, AlreadyExists) and (existing := _existing_job(state, project, key)):
                return existing
            raise
    state.supervisor.wake()
    return JSONResponse({"job": job_json(job)}, 201)


def _existing_job(state: AppState, project: Project, key: str | None) -> Response | None:
    """Return the response with the job that was submitted with this key before."""
    job = state.store.job_of_key(project, key) if key else None
    return JSONResponse({"job": job_json(state.supervisor.current(job))}) if job else None


def _reject_full_queue(state: AppState, org: Org) -> None:
    """Raise a 409, not a 503: until a run ends, repeating the request does not help."""
    allowed = max_queued_runs()
    unfinished = (job for job in state.store.unfinished() if job.org_id == org.id)
    if sum(not state.supervisor.current(job).status.terminal for job in unfinished) >= allowed:
        problem = f"The organisation {org.slug!r} has {allowed} runs waiting or training, the most that are allowed."
        raise ApiError(409, problem, "queue_full", remedy="Wait until one ends, or cancel one.")


def _parse_config(value: Any) -> tuple[JobConfig, str | None]:
    """Return the `config` of a request without the token of its data set, and the token. Raises a 400."""
    source = value["datasetSource"]
    if isinstance(source, dict) and source.get("type") == "file":
        remedy = 'Upload it with POST /v1/datasets and send {"type": "blob", "url": …}.'
        raise invalid_field("config.datasetSource", "is a file on the client's machine.", remedy)
    config = from_wire(JobConfig, value)
    with _config_errors():
        config.check()
    dataset, token = parse_dataset(config.dataset_source, tolerant=True), None
    if isinstance(dataset, BlobDataset):
        dataset, token = attrs.evolve(dataset, token=None), dataset.token
    return attrs.evolve(config, dataset_source=dataset), token


@contextmanager
def _config_errors() -> Iterator[None]:
    """Turn an `InvalidConfig` into a 400: `dataset.url` → `config.datasetSource.url`."""
    try:
        yield
    except InvalidConfig as error:
        outer, dot, inner = error.field.partition(".")
        outer = "datasetSource" if outer == "dataset" else camel_case(outer)
        raise config_error(error, f"config.{outer}{dot}{inner}") from None


def _reject_unrunnable(state: AppState, project: Project, config: JobConfig) -> None:
    """Raise a 400 for a run that cannot start, as far as that is known without its worker."""
    source = config.dataset_source
    if isinstance(source, BlobDataset) and source.url.startswith("/v1/datasets/"):
        digest = source.url.removeprefix("/v1/datasets/").split("/")[0]
        if not state.store.has_dataset(project, digest):
            raise invalid_field("config.datasetSource.url", "names no file of this project")
    if state.engine != "trl":
        return
    if problem := submission_problem(config.model, state.home):
        raise invalid_field("config.model", problem.problem, problem.remedy)
    with _config_errors():
        check_names(config)


# Reading and cancelling


@routes.add(
    "GET /v1/jobs",
    PROJECT,
    parameters=[LIMIT, BEFORE, ID_PREFIX],
    responses={
        200: ResponseSpec(
            "A page of jobs; if there are more, `nextBefore` is the `before` of the next page.",
            object_schema({"nextBefore": TEXT}, jobs=array_schema(TrainingJob)),
        )
    },
    errors={404: "The project has no job `before`."},
)
def list_jobs(request: Request, state: AppState, project: Project) -> Response:
    """List the jobs of the project, newest first."""
    limit = LIMIT.read(request) or DEFAULT_PAGE_SIZE
    cursor, prefix = BEFORE.read(request), ID_PREFIX.read(request) or ""
    before = require_job(state, project, cursor) if cursor else None
    found = state.store.jobs(project, limit + 1, before=before, prefix=prefix)
    page = [_current_json(state, job) for job in found[:limit]]
    return JSONResponse({"jobs": page, **({"nextBefore": found[limit - 1].id} if len(found) > limit else {})})


@routes.add(
    "GET /v1/jobs/{id}",
    PROJECT,
    responses={
        200: ResponseSpec(
            "The job. `checkpoints` are the steps of its stored checkpoints; `stalledSince` is present if its worker "
            "is alive but makes no progress.",
            JOB,
        )
    },
)
def get_job(state: AppState, job: JobRecord) -> Response:
    """Return a job as it is now."""
    found = {**_current_json(state, job), "checkpoints": checkpoint_steps(run_folder(state.home, job.id))}
    if found["status"] == JobStatus.RUNNING and (since := state.supervisor.stalled_since(job.id)):
        found["stalledSince"] = since
    return JSONResponse({"job": found})


@routes.add(
    "POST /v1/jobs/{id}/cancel",
    PROJECT,
    responses={202: ResponseSpec("The job, which is being stopped.", JOB)},
    errors={409: "The run has ended already."},
)
def cancel_job(state: AppState, job: JobRecord) -> Response:
    """Cancel a run; its log and checkpoints remain."""
    try:
        state.supervisor.cancel(job)
    except JobFinished as error:
        raise ApiError(409, f"The job {job.id!r} is {error} already.", "already_over") from None
    return JSONResponse({"job": job_json(state.supervisor.current(job))}, 202)


def _current_json(state: AppState, job: JobRecord) -> dict[str, Any]:
    """Return a job with the status and the progress in its log."""
    return {**job_json(state.supervisor.current(job)), **summary(run_folder(state.home, job.id).events)}


def job_json(job: JobRecord) -> dict[str, Any]:
    wire: dict[str, Any] = to_wire(job)
    wire.pop("cancelRequestedAt", None)
    return wire


# Events


@routes.add(
    "GET /v1/jobs/{id}/events/stream",
    PROJECT,
    parameters=[LAST_EVENT_ID, SINCE],
    responses={200: ResponseSpec("Server-sent events; the last one is `end`.", EVENTS, "text/event-stream")},
    errors=_TOO_MANY_STREAMS,
)
async def stream_events(request: Request, state: AppState, user: User, job: JobRecord) -> Response:
    """Stream the events of a run until it ends: those logged so far, then each as it is logged.

    With `since=now` the first frame is the position in the log at which the stream begins.
    """
    if request.method == "HEAD":
        return Response(media_type=EventStreamResponse.media_type)
    events = run_folder(state.home, job.id).events
    last_event_id = request.headers.get("last-event-id")
    from_now = last_event_id is None and SINCE.read(request) == "now"
    after = last_id(events) if from_now else parse_cursor(last_event_id)
    first_frame = cursor_frame(after) if from_now else b""
    frames = state.log_watcher.follow(events, after, over=job.status.terminal, greeting=first_frame)
    return EventStreamResponse(frames, open_stream(state.open_streams, user))
