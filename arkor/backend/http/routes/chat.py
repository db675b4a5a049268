"""Chat completions from an adapter or a base model, streamed or whole, in OpenAI's shapes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from attrs import define, evolve, field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.authentication import PROJECT
from arkor.backend.http.body import read_object
from arkor.backend.http.errors import ApiError, generation_error, invalid_field
from arkor.backend.http.event_stream import EventStreamResponse
from arkor.backend.http.openapi import ResponseSpec, RouteTable
from arkor.backend.http.routes.deployments import resolve_target
from arkor.backend.http.schema import EVENTS
from arkor.backend.http.state import AppState
from arkor.backend.inference.constraints import parse_constraint, parse_tool_choice
from arkor.backend.inference.messages import CallDelta, CompletionRequest, Delta, Done, Failed, GenerationError
from arkor.backend.inference.service import InferenceService, ReplyStream
from arkor.backend.store.store import new_id
from arkor.errors import InvalidConfig
from arkor.protocol.accounts import Project
from arkor.protocol.chat import InferenceRequest, stop_strings
from arkor.protocol.codec import dumps, from_wire
from arkor.protocol.model_target import ModelTarget

#: The maximum size of a body, in bytes: more text than any model's context.
BODY_LIMIT = 4 * 1024 * 1024

#: The last frame of every stream, a failed one included.
STREAM_END = b"data: [DONE]\n\n"

_COMPLETION = {"type": "object", "description": "OpenAI's `chat.completion`.", "required": ["id", "choices", "usage"]}
UNAVAILABLE = {503: "There is not enough memory, or the serving process has ended; repeat the request."}

routes = RouteTable()


@routes.add(
    "POST /v1/inference/chat",
    PROJECT,
    body=InferenceRequest,
    responses={
        200: ResponseSpec(
            "OpenAI's chunks, ended by `data: [DONE]`; with `stream: false` the completion.",
            _COMPLETION,
            alternatives={"text/event-stream": EVENTS},
        )
    },
    errors={
        **UNAVAILABLE,
        404: "The project has no such job, or the job has no such adapter.",
        409: "The adapter cannot be used: it is damaged, or its run has diverged.",
    },
)
async def chat(request: Request, state: AppState, project: Project) -> Response:
    """Generate a chat completion from an adapter or a base model."""
    body = await read_object(request, InferenceRequest, BODY_LIMIT)
    asked = from_wire(InferenceRequest, {name: value for name, value in body.items() if value is not None})
    asked.check()
    completion = build_completion(asked)
    target = ModelTarget(None if asked.adapter else asked.base_model, asked.adapter)
    model, folder = await run_in_threadpool(resolve_target, state, project, target)
    if asked.base_model not in (None, model):
        problem = f"the adapter was trained on {model!r}, not on {asked.base_model!r}"
        raise invalid_field("baseModel", problem, "leave it out")
    generation = await start(state.inference, evolve(completion, model=model, adapter=folder), _label(asked, model))
    if asked.stream:
        return EventStreamResponse(_frames(generation), generation.close)
    return JSONResponse(await generation.whole(request))


def build_completion(request: InferenceRequest) -> CompletionRequest:
    """Return the completion of a checked request without model and adapter. Raises `InvalidConfig`.

    Without a temperature it is greedy, unless `top_p` asks for sampling.
    """
    default = 0.0 if request.top_p is None else 1.0
    constraint, tool_choice = parse_constraint(request), parse_tool_choice(request)
    if constraint is not None and tool_choice is not None:
        problem = "cannot be combined with tools that may be called"
        raise InvalidConfig(constraint.field, problem, "send only one of the two")
    return CompletionRequest(
        id=f"chatcmpl-{new_id()}",
        model="",
        adapter=None,
        messages=tuple(request.messages),
        temperature=default if request.temperature is None else float(request.temperature),
        top_p=1.0 if request.top_p is None else float(request.top_p),
        max_tokens=request.max_tokens,
        stop=stop_strings(request.stop),
        seed=request.seed,
        constraint=constraint,
        tool_choice=tool_choice,
    )


def _label(request: InferenceRequest, model: str) -> str:
    """Return the `model` of the response: `JOB`, `JOB@STEP`, or the base model."""
    adapter = request.adapter
    if adapter is None:
        return model
    return adapter.job_id if adapter.step is None else f"{adapter.job_id}@{adapter.step}"


# Generation


@define
class Generation:
    """A completion that is being generated: its replies as OpenAI's chunks, and the message so far.

    It must be closed, which stops it if it has not ended.
    """

    id: str
    model: str
    _stream: ReplyStream
    _first: Delta | CallDelta | Done
    text: str = ""
    calls: list[dict[str, Any]] = field(factory=list)
    done: Done | None = None
    _created: int = field(factory=lambda: int(time.time()))

    async def replies(self) -> AsyncIterator[Delta | CallDelta | Done]:
        """Yield each reply up to `Done`. Raises `GenerationError`."""
        reply = self._first
        while True:
            self._add(reply)
            yield reply
            if isinstance(reply, Done):
                return
            reply = await _next(self._stream)

    def _add(self, reply: Delta | CallDelta | Done) -> None:
        if isinstance(reply, Done):
            self.done = reply
        elif isinstance(reply, Delta):
            self.text += reply.text
        else:
            if reply.name is not None:
                self.calls.append(_call(reply.call_id, reply.name, ""))
            self.calls[reply.index]["function"]["arguments"] += reply.arguments

    @property
    def usage(self) -> dict[str, int] | None:
        """OpenAI's token counts, None until the end."""
        if self.done is None:
            return None
        prompt, completion = self.done.prompt_tokens, self.done.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """Yield `chat.completion.chunk`s; the last one has the usage. Raises `GenerationError`."""
        yield self._chunk({"role": "assistant", "content": ""})
        async for reply in self.replies():
            if isinstance(reply, Done):
                yield {**self._chunk({}, reply.finish_reason), "usage": self.usage}
            else:
                yield self._chunk(_delta(reply))

    async def whole(self, request: Request) -> dict[str, Any]:
        """Return the `chat.completion`, and close. Raises `GenerationError` or a 499."""
        try:
            async for _ in self.replies():
                if self.done is None and await request.is_disconnected():
                    raise ApiError(499, "The client has disconnected.", "client_closed")
        finally:
            self.close()
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.calls:
            message = {"role": "assistant", "content": self.text or None, "tool_calls": self.calls}
        choice = {"index": 0, "message": message, "finish_reason": self.done and self.done.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage}

    def _chunk(self, delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self._created, "model": self.model}

    def close(self) -> None:
        self._stream.close()


async def start(service: InferenceService, completion: CompletionRequest, label: str) -> Generation:
    """Return the generation once it has a first token. Raises `GenerationError`."""
    stream = await service.generate(completion)
    try:
        return Generation(completion.id, label, stream, await _next(stream))
    except BaseException:
        stream.close()
        raise


async def _next(stream: ReplyStream) -> Delta | CallDelta | Done:
    reply = await stream.next()
    if isinstance(reply, Failed):
        raise GenerationError(reply.status, reply.code, reply.problem, remedy=reply.remedy, field=reply.field)
    return reply


def _call(call_id: str | None, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _delta(reply: Delta | CallDelta) -> dict[str, Any]:
    if isinstance(reply, Delta):
        return {"content": reply.text}
    call = {"function": {"arguments": reply.arguments}}
    if reply.name is not None:
        call = _call(reply.call_id, reply.name, reply.arguments)
    return {"tool_calls": [{"index": reply.index, **call}]}


async def _frames(generation: Generation) -> AsyncGenerator[bytes, None]:
    """Yield the frames of a stream; a failure is a frame before the end."""
    try:
        async for chunk in generation.chunks():
            yield frame(chunk)
    except GenerationError as failure:
        error = generation_error(failure)
        yield frame(
            {"error": {"message": str(error), "type": "server_error", "code": error.code, "status": error.status}}
        )
    yield STREAM_END


def frame(value: Mapping[str, Any]) -> bytes:
    return b"data: " + dumps(value).encode() + b"\n\n"
