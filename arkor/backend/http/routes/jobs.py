"""Jobs: submit, list, look at, cancel, and watch as a stream of events."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import attrs
from attrs import field, frozen
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from arkor.backend.compute.models import submission_problem
from arkor.backend.engine.hyperparameters import check_names
from arkor.backend.http.openapi import (
    EVENTS,
    PROJECT,
    TEXT,
    Parameter,
    ResponseSpec,
    array_schema,
    field_names,
    object_schema,
    route,
)
from arkor.backend.http.requests import (
    NAME,
    ApiError,
    CallScope,
    check_fields,
    invalid_field,
    read_json_object,
    require_job,
    require_scope,
    require_text,
)
from arkor.backend.inference.service import checkpoint_steps
from arkor.backend.runs.event_log import last_id
from arkor.backend.runs.log_queries import summary
from arkor.backend.runs.paths import create_run, run_folder
from arkor.backend.runs.sse import cursor_frame, parse_cursor
from arkor.backend.store.rebuild import manifest
from arkor.backend.store.store import AlreadyExists, JobRecord, OrgRecord, ProjectRecord, UserRecord, new_id
from arkor.backend.workers.supervisor import JobFinished
from arkor.errors import InvalidConfig
from arkor.protocol.codec import camel_case, from_wire, to_wire
from arkor.protocol.datasets import BlobDataset, parse_dataset
from arkor.protocol.events import now
from arkor.protocol.jobs import JobConfig, JobStatus, TrainingJob
from arkor.settings import max_queued_runs, max_streams

#: How many jobs are listed at once, where the caller does not say, and at most.
DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE = 100, 1000

NEW_JOB = object_schema(name=NAME, config=JobConfig)

# Submitting


async def submit(request: Request) -> Response:
    """`POST /v1/jobs`; with an `Idempotency-Key` that the project knows, the job of that key, once more."""
    scope = await require_scope(request)
    body = await read_json_object(request)
    check_fields(body, *field_names(NEW_JOB))
    key = request.headers.get("idempotency-key") or None
    if key and len(key) > 255:
        raise invalid_field("Idempotency-Key", "must have at most 255 characters")
    config, token = split_token(checked_config(body["config"]))
    submission = Submission(scope, require_text(body, "name"), config, token, key)
    job, new = await run_in_threadpool(_submit, request.app.state, submission)
    return JSONResponse({"job": job_json(job)}, 201 if new else 200)


@frozen
class Submission:
    """What a `POST /v1/jobs` asks for, checked."""

    scope: CallScope
    name: str
    config: JobConfig
    token: str | None = field(repr=False)
    key: str | None


def _submit(state: State, submission: Submission) -> tuple[JobRecord, bool]:
    """The job, and whether it is a new one."""
    if existing := _existing_job(state, submission):
        return existing, False
    reject_unrunnable(state, submission.scope.project, submission.config)
    with state.submitting:  # or of those that come at once, each would find room
        _reject_too_many(state, submission.scope.org)
        return _queue(state, submission)


def _reject_too_many(state: State, org: OrgRecord) -> None:
    """A 409, for room comes when a run ends and not with time: waiting for a moment and trying again does not help."""
    allowed = max_queued_runs()
    unfinished = (job for job in state.store.unfinished() if job.org_id == org.id)
    if sum(not state.supervisor.current(job).status.terminal for job in unfinished) >= allowed:
        sentence = f"The organisation {org.slug!r} has {allowed} runs that wait or train, the most there may be; "
        raise ApiError(409, f"{sentence}wait for one to end, or cancel one.", "queue_full")


def _queue(state: State, submission: Submission) -> tuple[JobRecord, bool]:
    """The job's folder is there before the row that lets a slot take it."""
    project = submission.scope.project
    job = JobRecord(
        new_id(), project.org_id, project.id, submission.name, JobStatus.QUEUED, to_wire(submission.config), now()
    )
    folder = create_run(state.home, manifest(job, submission.scope.org, project, submission.key), submission.token)
    try:
        state.store.add_job(job, submission.key)
    except AlreadyExists:
        folder.remove()
        if existing := _existing_job(state, submission):
            return existing, False
        raise
    except Exception:
        folder.remove()
        raise
    state.supervisor.wake()
    return job, True


def _existing_job(state: State, submission: Submission) -> JobRecord | None:
    job = state.store.job_of_key(submission.scope.project, submission.key) if submission.key else None
    return state.supervisor.current(job) if job else None


def checked_config(value: Any) -> JobConfig:
    """The `config` of a request, else a 400 that names the field as it is on the wire."""
    if not isinstance(value, Mapping):
        raise invalid_field("config", "must be an object")
    for name in ("model", "datasetSource"):
        if value.get(name) is None:
            raise invalid_field(f"config.{name}", "is missing")
    source = value["datasetSource"]
    if isinstance(source, Mapping) and source.get("type") == "file":
        problem = 'a file must be uploaded first (POST /v1/datasets) and named as {"type": "blob", "url": …}'
        raise invalid_field("config.datasetSource", problem)
    config = from_wire(JobConfig, value)
    with wire_field_errors():
        config.check()
    return attrs.evolve(config, dataset_source=parse_dataset(config.dataset_source, tolerant=True))


@contextmanager
def wire_field_errors() -> Iterator[None]:
    """An `InvalidConfig` in here becomes a 400 that names the field as it is on the wire."""
    try:
        yield
    except InvalidConfig as error:
        raise invalid_field(_wire_name(error.field), error.problem) from None


def _wire_name(field: str) -> str:
    """`"dataset.url"` → `"config.datasetSource.url"`, `"lora_r"` → `"config.loraR"`."""
    head, *rest = field.split(".")
    return ".".join(["config", "datasetSource" if head == "dataset" else camel_case(head), *map(camel_case, rest)])


def split_token(config: JobConfig) -> tuple[JobConfig, str | None]:
    """The configuration without the token of its data set, and that token."""
    source = config.dataset_source
    if not isinstance(source, BlobDataset):
        return config, None
    return attrs.evolve(config, dataset_source=attrs.evolve(source, token=None)), source.token


def reject_unrunnable(state: State, project: ProjectRecord, config: JobConfig) -> None:
    """A 400 for a run that cannot work, as far as that can be known at once."""
    source = config.dataset_source
    if isinstance(source, BlobDataset) and source.url.startswith("/v1/datasets/"):
        digest = source.url.removeprefix("/v1/datasets/").split("/")[0]
        if not state.store.has_dataset(project, digest):
            raise invalid_field("config.datasetSource.url", "no file of this project was uploaded under it")
    if state.engine != "trl":
        return
    if problem := submission_problem(config.model, state.home):
        raise invalid_field("config.model", str(attrs.evolve(problem, field=None)))
    with wire_field_errors():
        check_names(config)


# Looking and cancelling


async def list_jobs(request: Request) -> Response:
    """`GET /v1/jobs`, newest first: `limit` of them, older than the job `before`, whose id begins with `idPrefix`.

    `nextBefore` is the `before` of the next page, where there is one.
    """
    scope = await require_scope(request)
    limit = _limit(request)
    cursor = request.query_params.get("before")
    before = await require_job(request, scope, cursor) if cursor else None
    prefix = request.query_params.get("idPrefix", "")
    state = request.app.state

    def read() -> dict[str, Any]:
        found = state.store.jobs(scope.project, limit + 1, before=before, prefix=prefix)
        page = [_current_json(state, job) for job in found[:limit]]
        return {"jobs": page, **({"nextBefore": found[limit - 1].id} if len(found) > limit else {})}

    return JSONResponse(await run_in_threadpool(read))


def _limit(request: Request) -> int:
    given = request.query_params.get("limit", str(DEFAULT_PAGE_SIZE))
    if not (given.isascii() and given.isdigit() and 1 <= int(given[:10]) <= MAX_PAGE_SIZE):
        raise invalid_field("limit", f"must be a whole number from 1 to {MAX_PAGE_SIZE}")
    return int(given)


async def get_job(request: Request) -> Response:
    """`GET /v1/jobs/:id`; its events are in the stream alone. `checkpoints` are the steps of those that it keeps,
    `stalledSince` is there when its worker lives but stands still.
    """
    job = await require_job(request, await require_scope(request), request.path_params["id"])
    state = request.app.state

    def read() -> dict[str, Any]:
        kept = checkpoint_steps(run_folder(state.home, job.id))
        return {**_current_json(state, job), "checkpoints": kept}

    answer = await run_in_threadpool(read)
    if answer["status"] == JobStatus.RUNNING and (since := state.supervisor.stalled_since(job.id)):
        answer["stalledSince"] = since
    return JSONResponse({"job": answer})


async def cancel_job(request: Request) -> Response:
    """`POST /v1/jobs/:id/cancel`: 409 when it is over already."""
    job = await require_job(request, await require_scope(request), request.path_params["id"])
    supervisor = request.app.state.supervisor
    try:
        await run_in_threadpool(supervisor.cancel, job)
    except JobFinished as error:
        raise ApiError(409, f"The job {job.id!r} is {error} already.", "already_over") from None
    return JSONResponse({"job": job_json(await run_in_threadpool(supervisor.current, job))}, 202)


def _current_json(state: State, job: JobRecord) -> dict[str, Any]:
    """A job as its log has it now, with where it stands."""
    return {**job_json(state.supervisor.current(job)), **summary(run_folder(state.home, job.id).events)}


def job_json(job: JobRecord) -> dict[str, Any]:
    """A job as on the wire."""
    answer: dict[str, Any] = to_wire(job)
    answer.pop("cancelRequestedAt", None)
    return answer


# Watching


async def stream_events(request: Request) -> Response:
    """`GET /v1/jobs/:id/events/stream`: what was logged behind `Last-Event-ID`, then what is, until the run ends.

    `since=now` leaves the history out, and tells the reader at once where it begins.
    """
    scope = await require_scope(request)
    job = await require_job(request, scope, request.path_params["id"])
    if request.method == "HEAD":
        return Response(media_type=EventStreamResponse.media_type)
    events = run_folder(request.app.state.home, job.id).events
    last_event_id = request.headers.get("last-event-id")
    from_now = last_event_id is None and request.query_params.get("since") == "now"
    after = last_id(events) if from_now else parse_cursor(last_event_id)
    first_frame = cursor_frame(after) if from_now else b""
    source = request.app.state.log_watcher.follow(events, after, over=job.status.terminal, greeting=first_frame)
    return EventStreamResponse(source, open_stream(request.app.state.streams, scope.user))


def open_stream(streams: Counter[str], user: UserRecord) -> Callable[[], None]:
    """Count one more open stream of the user; returns what ends it. Else a 429."""
    if streams[user.id] >= max_streams():
        sentence = f"You have {streams[user.id]} event streams open, which is the most there may be; close one."
        raise ApiError(429, sentence, "too_many_streams", {"Retry-After": "5"})
    streams[user.id] += 1

    def close_stream() -> None:
        streams[user.id] -= 1
        if not streams[user.id]:
            del streams[user.id]

    return close_stream


class EventStreamResponse(StreamingResponse):
    """Frames, as they come from a generator that is closed at once when the reader goes away; `leave` is told."""

    media_type = "text/event-stream"

    def __init__(self, source: AsyncGenerator[bytes, None], on_close: Callable[[], None]) -> None:
        super().__init__(source, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._source = source
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_close()

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._source):
            await super().stream_response(send)


_KEY = {"type": "string", "maxLength": 255}
_LIMIT = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE}
_JOB_ID_LINK = {"parameters": {"id": "$response.body#/job/id"}}
_LINKS = {
    name: {"operationId": operation, **_JOB_ID_LINK}
    for name, operation in (("job", "getV1JobsId"), ("cancel", "postV1JobsIdCancel"))
}

routes = [
    route(
        "POST",
        "/v1/jobs",
        submit,
        PROJECT,
        "Submit a run.",
        body=NEW_JOB,
        parameters=[Parameter("Idempotency-Key", _KEY, "Makes one job, however often it is sent.", where="header")],
        responses={
            201: ResponseSpec("The job, which waits for its turn.", object_schema(job=TrainingJob), links=_LINKS),
            200: ResponseSpec("The job of that key, once more.", object_schema(job=TrainingJob), links=_LINKS),
        },
        errors={400: "The run cannot work.", 409: "Too many runs wait already."},
    ),
    route(
        "GET",
        "/v1/jobs",
        list_jobs,
        PROJECT,
        "The jobs of the project, newest first.",
        parameters=[
            Parameter("limit", _LIMIT, f"How many at most; {DEFAULT_PAGE_SIZE} where it is not given."),
            Parameter("before", {"type": "string"}, "Those that are older than the job of this id."),
            Parameter("idPrefix", {"type": "string"}, "Those whose id begins like this."),
        ],
        responses={
            200: ResponseSpec(
                "`nextBefore` is the `before` of the next page, where there is one.",
                object_schema({"nextBefore": TEXT}, jobs=array_schema(TrainingJob)),
            )
        },
        errors={404: "There is no job `before` in this project."},
    ),
    route(
        "GET",
        "/v1/jobs/{id}",
        get_job,
        PROJECT,
        "A job as it stands now.",
        responses={
            200: ResponseSpec(
                "`checkpoints`: the steps of those that it keeps; `stalledSince` when its worker stands still.",
                object_schema(job=TrainingJob),
            )
        },
    ),
    route(
        "POST",
        "/v1/jobs/{id}/cancel",
        cancel_job,
        PROJECT,
        "Stop a run; what it has by then stays.",
        responses={202: ResponseSpec("It stops.", object_schema(job=TrainingJob))},
        errors={409: "It is over already."},
    ),
    route(
        "GET",
        "/v1/jobs/{id}/events/stream",
        stream_events,
        PROJECT,
        "The events of a run from its beginning, then as they come, until it ends.",
        parameters=[
            Parameter("Last-Event-ID", {"type": "string"}, "Only what came after this event.", where="header"),
            Parameter("since", {"type": "string"}, "`now` leaves out what was before."),
        ],
        responses={200: ResponseSpec("Server-sent events; after the last comes `end`.", EVENTS, "text/event-stream")},
        errors={429: "Too many streams are open; `Retry-After` says when to come back."},
    ),
]
