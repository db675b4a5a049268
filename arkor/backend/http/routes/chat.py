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
    ApiError,
    CallScope,
    check_fields,
    invalid_field,
    read_json_object,
    require_job,
    require_scope,
)
from arkor.backend.inference.constraints import parse_constraint, parse_tool_choice
from arkor.backend.inference.json_schema import InvalidSchema
from arkor.backend.inference.messages import (
    CallDelta,
    CompletionRequest,
    Constraint,
    Delta,
    Done,
    Failed,
    GenerationError,
    Reply,
    ToolChoice,
)
from arkor.backend.inference.service import ReplyStream, adapter_folder
from arkor.backend.runs.paths import run_folder
from arkor.backend.store.store import new_id
from arkor.errors import InvalidConfig
from arkor.protocol.chat import Adapter, InferenceRequest, stop_strings
from arkor.protocol.codec import camel_case, dumps, from_wire

#: The largest body, in bytes: more text than the context of any model that runs here.
BODY_LIMIT = 4 * 1024 * 1024

#: Some more of an answer.
ContentDelta = Delta | CallDelta

FIELDS = [camel_case(one.name) for one in attrs.fields(InferenceRequest)]

#: The end of every stream, a failed one too.
STREAM_END = b"data: [DONE]\n\n"


async def chat(request: Request) -> Response:
    """`POST /v1/inference/chat`."""
    scope = await require_scope(request)
    inference_request = checked_request(await read_json_object(request, BODY_LIMIT))
    _parse_constraints(inference_request)
    model, folder = await _model_and_adapter(request, scope, inference_request)
    return await respond(
        request,
        build_completion(inference_request, model, folder),
        _model_label(inference_request, model),
        stream=inference_request.stream,
    )


# What is asked


def checked_request(body: Mapping[str, Any]) -> InferenceRequest:
    """The body, else a 400 that names the field as it is on the wire."""
    check_fields(body, ["messages"], FIELDS)
    request = from_wire(InferenceRequest, {key: value for key, value in body.items() if value is not None})
    try:
        request.check()
    except InvalidConfig as error:
        outer = error.field.split(".")[0] == "adapter"  # whose inner names are ours
        raise invalid_field(
            camel_case(error.field) if outer else _wire_field_name(error.field), error.problem
        ) from None
    return request


def build_completion(request: InferenceRequest, model: str, folder: str | None) -> CompletionRequest:
    """What the generator is to do. Without a temperature it is greedy, unless `top_p` asks for sampling."""
    default = 0.0 if request.top_p is None else 1.0
    constraint, tool_choice = _parse_constraints(request)
    return CompletionRequest(
        id=f"chatcmpl-{new_id()}",
        model=model,
        adapter=folder,
        messages=tuple(request.messages),
        temperature=default if request.temperature is None else float(request.temperature),
        top_p=1.0 if request.top_p is None else float(request.top_p),
        max_tokens=request.max_tokens,
        stop=stop_strings(request.stop),
        seed=request.seed,
        constraint=constraint,
        tool_choice=tool_choice,
    )


def _parse_constraints(request: InferenceRequest) -> tuple[Constraint | None, ToolChoice | None]:
    """What the answer must be and what it may call, else a 400 that names the field as it is on the wire."""
    try:
        constraint, tool_choice = parse_constraint(request), parse_tool_choice(request)
    except InvalidConfig as error:
        code = "invalid_schema" if isinstance(error, InvalidSchema) else "invalid_request"
        raise ApiError(400, f"{_wire_field_name(error.field)}: {error.problem}", code) from None
    if constraint is None or tool_choice is None:
        return attrs.evolve(constraint, field=_wire_field_name(constraint.field)) if constraint else None, tool_choice
    field = _wire_field_name(constraint.field)
    raise invalid_field(
        field, "cannot constrain an answer that may call tools; leave tools out, or set toolChoice to none"
    )


def _wire_field_name(field: str) -> str:
    """The name of a field, whose inner names are OpenAI's and the same everywhere."""
    outer, separator, inner = field.partition(".")
    return camel_case(outer) + separator + inner


async def _model_and_adapter(
    request: Request, scope: CallScope, inference_request: InferenceRequest
) -> tuple[str, str | None]:
    """The base model and the adapter's folder; an adapter brings its own base."""
    adapter = inference_request.adapter
    if adapter is None:
        return await _base_model(request, inference_request.base_model or ""), None
    job = await require_job(request, scope, adapter.job_id)
    base = str(job.config["model"])
    if inference_request.base_model not in (None, base):
        raise invalid_field(
            "baseModel", f"the adapter was trained on {base!r}, not on {inference_request.base_model!r}; leave it out"
        )
    folder = run_folder(request.app.state.home, job.id)
    try:
        return base, str(await run_in_threadpool(adapter_folder, folder, adapter))
    except GenerationError as error:
        raise _api_error(error) from None


async def _base_model(request: Request, model: str) -> str:
    state = request.app.state
    problem = await run_in_threadpool(submission_problem, model, state.home) if state.engine == "trl" else None
    if problem:
        raise invalid_field("baseModel", str(attrs.evolve(problem, field=None)))
    return model


def _model_label(request: InferenceRequest, model: str) -> str:
    """What the answer calls its model: `JOB`, `JOB@STEP`, or the base."""
    adapter: Adapter | None = request.adapter
    if adapter is None:
        return model
    return adapter.job_id if adapter.step is None else f"{adapter.job_id}@{adapter.step}"


# The answer


@define
class MessageAccumulator:
    """What has come of an answer."""

    text: str = ""
    calls: list[dict[str, Any]] = field(factory=list)

    def feed(self, delta: Delta | CallDelta) -> None:
        """Take in some more."""
        if isinstance(delta, Delta):
            self.text += delta.text
            return
        if delta.name is not None:
            self.calls.append(
                {"id": delta.call_id, "type": "function", "function": {"name": delta.name, "arguments": ""}}
            )
        self.calls[delta.index]["function"]["arguments"] += delta.arguments

    def message(self) -> dict[str, Any]:
        """The assistant's message; its content is null when it does nothing but call."""
        if not self.calls:
            return {"role": "assistant", "content": self.text}
        return {"role": "assistant", "content": self.text or None, "tool_calls": self.calls}


@frozen
class ChunkBuilder:
    """What every piece of one answer says of it."""

    id: str
    model: str
    created: int = field(factory=lambda: int(time.time()))

    def chunk(self, delta: Mapping[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        """A `chat.completion.chunk` as a frame."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _frame({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    def completion(self, message: MessageAccumulator, done: Done) -> dict[str, Any]:
        """A `chat.completion`."""
        choice = {"index": 0, "message": message.message(), "finish_reason": done.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(done)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(done: Done) -> dict[str, int]:
    """OpenAI's counts of tokens."""
    total = done.prompt_tokens + done.completion_tokens
    return {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.completion_tokens, "total_tokens": total}


async def respond(request: Request, completion: CompletionRequest, label: str, *, stream: bool) -> Response:
    """Generate it; what fails before the first token is an error status, whatever the form of the answer."""
    builder = ChunkBuilder(completion.id, label)
    try:
        answer = await request.app.state.inference.generate(completion)
    except GenerationError as error:
        raise _api_error(error) from None
    try:
        first = _raise_if_failed(await answer.next())
        if not stream:
            return JSONResponse(await _collect(request, answer, first, builder))
    except BaseException:
        answer.close()
        raise
    return ChunkStreamResponse(answer, first, builder)


async def _collect(
    request: Request, stream: ReplyStream, reply: ContentDelta | Done, builder: ChunkBuilder
) -> dict[str, Any]:
    message = MessageAccumulator()
    while not isinstance(reply, Done):
        message.feed(reply)
        if await request.is_disconnected():
            raise ApiError(499, "The client has gone away.", "client_closed")
        reply = _raise_if_failed(await stream.next())
    stream.close()
    return builder.completion(message, reply)


def _raise_if_failed(reply: Reply) -> ContentDelta | Done:
    if isinstance(reply, Failed):
        raise _api_error(reply)
    return reply


class ChunkStreamResponse(StreamingResponse):
    """An answer as server-sent events. Once they end, for whatever reason, the generation does."""

    def __init__(self, stream: ReplyStream, first: Reply, builder: ChunkBuilder) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(_frames(stream, first, builder), media_type="text/event-stream", headers=headers)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()


async def _frames(stream: ReplyStream, reply: Reply, builder: ChunkBuilder) -> AsyncIterator[bytes]:
    yield builder.chunk({"role": "assistant", "content": ""})
    while isinstance(reply, (Delta, CallDelta)):
        yield builder.chunk(_delta(reply))
        reply = await stream.next()
    if isinstance(reply, Failed):
        yield _frame({"error": _openai_error(reply)}) + STREAM_END
    else:
        yield builder.chunk({}, reply.finish_reason, usage=usage(reply)) + STREAM_END


def _delta(delta: ContentDelta) -> dict[str, Any]:
    if isinstance(delta, Delta):
        return {"content": delta.text}
    if delta.name is None:
        return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.arguments}}]}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"tool_calls": [{"index": delta.index, "id": delta.call_id, "type": "function", "function": function}]}


def _openai_error(failed: Failed) -> dict[str, Any]:
    return {"message": failed.sentence, "type": "server_error", "code": failed.code, "status": failed.status}


def _frame(value: Mapping[str, Any]) -> bytes:
    return b"data: " + dumps(value).encode() + b"\n\n"


def _api_error(error: GenerationError | Failed) -> ApiError:
    return ApiError(error.status, error.sentence, error.code)


_COMPLETION = {"type": "object", "description": "OpenAI's `chat.completion`.", "required": ["id", "choices", "usage"]}

routes = [
    route(
        "POST",
        "/v1/inference/chat",
        chat,
        PROJECT,
        "A chat completion from an adapter or a base model.",
        body=class_schema(InferenceRequest),
        responses={
            200: openapi.ResponseSpec(
                "OpenAI's chunks, which `data: [DONE]` ends; with `stream: false` the completion.",
                _COMPLETION,
                alternatives={"text/event-stream": EVENTS},
            )
        },
        errors={
            404: "There is no such job, or it has no such adapter.",
            409: "The adapter cannot be used: it is damaged, or its run has diverged.",
            503: "There is not enough memory, or the process that answers has ended; ask again.",
        },
    )
]
