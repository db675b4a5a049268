"""Chat completions from an adapter or a base model, streamed or whole, in OpenAI's shapes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import attrs
from attrs import define, field, frozen
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from arkor.backend.compute.models import submission_problem
from arkor.backend.http import openapi
from arkor.backend.http.openapi import EVENTS, PROJECT, class_schema, route
from arkor.backend.http.requests import (
    CallScope,
    Refusal,
    check_fields,
    invalid,
    read_object,
    require_job,
    require_scope,
)
from arkor.backend.inference.constraints import constraint_of
from arkor.backend.inference.json_schema import InvalidSchema
from arkor.backend.inference.messages import (
    CallDelta,
    Calling,
    CannotAnswer,
    Completion,
    Constraint,
    Delta,
    Done,
    Failed,
    Reply,
)
from arkor.backend.inference.service import Answer, adapter_folder
from arkor.backend.inference.tool_choice import calling_of
from arkor.backend.runs.paths import run_folder
from arkor.backend.store.store import new_id
from arkor.errors import InvalidConfig
from arkor.protocol.chat import Adapter, InferenceRequest, stop_strings
from arkor.protocol.codec import camel, dumps, from_wire

#: The largest body, in bytes: more text than the context of any model that runs here.
BODY_LIMIT = 4 * 1024 * 1024

#: Some more of an answer.
Piece = Delta | CallDelta

FIELDS = [camel(one.name) for one in attrs.fields(InferenceRequest)]

#: The end of every stream, a failed one too.
END = b"data: [DONE]\n\n"


async def chat(request: Request) -> Response:
    """`POST /v1/inference/chat`."""
    scope = await require_scope(request)
    wanted = checked_request(await read_object(request, BODY_LIMIT))
    _demands(wanted)
    model, folder = await _weights(request, scope, wanted)
    return await respond(request, completion_of(wanted, model, folder), _label(wanted, model), stream=wanted.stream)


# What is asked


def checked_request(body: Mapping[str, Any]) -> InferenceRequest:
    """The body, else a 400 that names the field as it is on the wire."""
    check_fields(body, ["messages"], FIELDS)
    wanted = from_wire(InferenceRequest, {key: value for key, value in body.items() if value is not None})
    try:
        wanted.check()
    except InvalidConfig as error:
        outer = error.field.split(".")[0] == "adapter"  # whose inner names are ours
        raise invalid(camel(error.field) if outer else _on_the_wire(error.field), error.problem) from None
    return wanted


def completion_of(wanted: InferenceRequest, model: str, folder: str | None) -> Completion:
    """What the generator is to do. Without a temperature it is greedy, unless `top_p` asks for sampling."""
    default = 0.0 if wanted.top_p is None else 1.0
    constraint, calling = _demands(wanted)
    return Completion(
        id=f"chatcmpl-{new_id()}",
        model=model,
        adapter=folder,
        messages=tuple(wanted.messages),
        temperature=default if wanted.temperature is None else float(wanted.temperature),
        top_p=1.0 if wanted.top_p is None else float(wanted.top_p),
        max_tokens=wanted.max_tokens,
        stop=stop_strings(wanted.stop),
        seed=wanted.seed,
        constraint=constraint,
        calling=calling,
    )


def _demands(wanted: InferenceRequest) -> tuple[Constraint | None, Calling | None]:
    """What the answer must be and what it may call, else a 400 that names the field as it is on the wire."""
    try:
        constraint, calling = constraint_of(wanted), calling_of(wanted)
    except InvalidConfig as error:
        code = "invalid_schema" if isinstance(error, InvalidSchema) else "invalid_request"
        raise Refusal(400, f"{_on_the_wire(error.field)}: {error.problem}", code) from None
    if constraint is None or calling is None:
        return attrs.evolve(constraint, field=_on_the_wire(constraint.field)) if constraint else None, calling
    field = _on_the_wire(constraint.field)
    raise invalid(field, "cannot constrain an answer that may call tools; leave tools out, or set toolChoice to none")


def _on_the_wire(field: str) -> str:
    """The name of a field, whose inner names are OpenAI's and the same everywhere."""
    outer, separator, inner = field.partition(".")
    return camel(outer) + separator + inner


async def _weights(request: Request, scope: CallScope, wanted: InferenceRequest) -> tuple[str, str | None]:
    """The base model and the adapter's folder; an adapter brings its own base."""
    adapter = wanted.adapter
    if adapter is None:
        return await _base(request, wanted.base_model or ""), None
    job = await require_job(request, scope, adapter.job_id)
    base = str(job.config["model"])
    if wanted.base_model not in (None, base):
        raise invalid("baseModel", f"the adapter was trained on {base!r}, not on {wanted.base_model!r}; leave it out")
    folder = run_folder(request.app.state.home, job.id)
    try:
        return base, str(await run_in_threadpool(adapter_folder, folder, adapter))
    except CannotAnswer as error:
        raise _refusal(error) from None


async def _base(request: Request, model: str) -> str:
    state = request.app.state
    problem = await run_in_threadpool(submission_problem, model, state.home) if state.engine == "trl" else None
    if problem:
        raise invalid("baseModel", problem.removeprefix("model: "))
    return model


def _label(wanted: InferenceRequest, model: str) -> str:
    """What the answer calls its model: `JOB`, `JOB@STEP`, or the base."""
    adapter: Adapter | None = wanted.adapter
    if adapter is None:
        return model
    return adapter.job_id if adapter.step is None else f"{adapter.job_id}@{adapter.step}"


# The answer


@define
class Said:
    """What has come of an answer."""

    text: str = ""
    calls: list[dict[str, Any]] = field(factory=list)

    def hear(self, piece: Delta | CallDelta) -> None:
        """Take in some more."""
        if isinstance(piece, Delta):
            self.text += piece.text
            return
        if piece.name is not None:
            self.calls.append(
                {"id": piece.call_id, "type": "function", "function": {"name": piece.name, "arguments": ""}}
            )
        self.calls[piece.index]["function"]["arguments"] += piece.arguments

    def message(self) -> dict[str, Any]:
        """The assistant's message; its content is null when it does nothing but call."""
        if not self.calls:
            return {"role": "assistant", "content": self.text}
        return {"role": "assistant", "content": self.text or None, "tool_calls": self.calls}


@frozen
class Shape:
    """What every piece of one answer says of it."""

    id: str
    model: str
    created: int = field(factory=lambda: int(time.time()))

    def chunk(self, delta: Mapping[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        """A `chat.completion.chunk` as a frame."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _frame({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    def whole(self, said: Said, done: Done) -> dict[str, Any]:
        """A `chat.completion`."""
        choice = {"index": 0, "message": said.message(), "finish_reason": done.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(done)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(done: Done) -> dict[str, int]:
    """OpenAI's counts of tokens."""
    total = done.prompt_tokens + done.completion_tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.completion_tokens, "total_tokens": total}


async def respond(request: Request, completion: Completion, label: str, *, stream: bool) -> Response:
    """Generate it; what fails before the first token is an error status, whatever the form of the answer."""
    shape = Shape(completion.id, label)
    try:
        answer = await request.app.state.inference.ask(completion)
    except CannotAnswer as error:
        raise _refusal(error) from None
    try:
        first = _unless_failed(await answer.next())
        if not stream:
            return JSONResponse(await _collect(request, answer, first, shape))
    except BaseException:
        answer.close()
        raise
    return Chunks(answer, first, shape)


async def _collect(request: Request, answer: Answer, reply: Piece | Done, shape: Shape) -> dict[str, Any]:
    said = Said()
    while not isinstance(reply, Done):
        said.hear(reply)
        if await request.is_disconnected():
            raise Refusal(499, "The client has gone away.", "client_closed")
        reply = _unless_failed(await answer.next())
    answer.close()
    return shape.whole(said, reply)


def _unless_failed(reply: Reply) -> Piece | Done:
    if isinstance(reply, Failed):
        raise _refusal(reply)
    return reply


class Chunks(StreamingResponse):
    """An answer as server-sent events. Once they end, for whatever reason, the generation does."""

    def __init__(self, answer: Answer, first: Reply, shape: Shape) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_frames(answer, first, shape), media_type="text/event-stream", headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()


async def _frames(answer: Answer, reply: Reply, shape: Shape) -> AsyncIterator[bytes]:
    yield shape.chunk({"role": "assistant", "content": ""})
    while isinstance(reply, (Delta, CallDelta)):
        yield shape.chunk(_delta(reply))
        reply = await answer.next()
    if isinstance(reply, Failed):
        yield _frame({"error": _openai_error(reply)}) + END
    else:
        yield shape.chunk({}, reply.finish_reason, usage=usage(reply)) + END


def _delta(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, Delta):
        return {"content": piece.text}
    if piece.name is None:
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.arguments}}]}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"tool_calls": [{"index": piece.index, "id": piece.call_id, "type": "function", "function": function}]}


def _openai_error(failed: Failed) -> dict[str, Any]:
    return {"message": failed.sentence, "type": "server_error", "code": failed.code, "status": failed.status}


def _frame(value: Mapping[str, Any]) -> bytes:
    return b"data: " + dumps(value).encode() + b"\n\n"


def _refusal(error: CannotAnswer | Failed) -> Refusal:
    return Refusal(error.status, error.sentence, error.code)


_COMPLETION = {"type": "object", "description": "OpenAI's `chat.completion`.", "required": ["id", "choices", "usage"]}

routes = [
    route(
        "POST",
        "/v1/inference/chat",
        chat,
        PROJECT,
        "A chat completion from an adapter or a base model.",
        body=class_schema(InferenceRequest),
        answers={
            200: openapi.Answer(
                "OpenAI's chunks, which `data: [DONE]` ends; with `stream: false` the completion.",
                _COMPLETION,
                others={"text/event-stream": EVENTS},
            )
        },
        errors={
            404: "There is no such job, or it has no such adapter.",
            409: "The adapter cannot be used: it is damaged, or its run has diverged.",
            503: "There is not enough memory, or the process that answers has ended; ask again.",
        },
    )
]
