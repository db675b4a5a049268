"""Chat completions from an adapter or a base model, streamed or whole, in OpenAI's shapes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import attrs
from attrs import field, frozen
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from arkor.backend.generation.completion import CannotAnswer, Completion, Delta, Done, Failed, Reply
from arkor.backend.home import run_folder
from arkor.backend.inference import Answer, adapter_folder
from arkor.backend.models import submission_problem
from arkor.backend.routes import CallScope, Refusal, check_fields, invalid, read_object, require_job, require_scope
from arkor.backend.store import new_id
from arkor.chat import Adapter, InferenceRequest, stop_strings
from arkor.errors import InvalidConfig
from arkor.wire import camel, dumps, from_wire

#: The largest body, in bytes: more text than the context of any model that runs here.
BODY_LIMIT = 4 * 1024 * 1024

FIELDS = [camel(one.name) for one in attrs.fields(InferenceRequest)]

#: The end of every stream, a failed one too.
END = b"data: [DONE]\n\n"


async def chat(request: Request) -> Response:
    """`POST /v1/inference/chat`."""
    scope = await require_scope(request)
    wanted = checked_request(await read_object(request, BODY_LIMIT))
    refuse_unbuilt(wanted)
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
        inner = error.field.startswith("messages")  # OpenAI's names, which are the same on the wire
        raise invalid(error.field if inner else camel(error.field), error.problem) from None
    return wanted


def refuse_unbuilt(wanted: InferenceRequest) -> None:
    """A 400 for what would change the answer and is not honoured here; never silently ignored."""
    if wanted.tools or wanted.tool_choice not in (None, "none", "auto"):
        sentence = "tools: this backend cannot call tools yet; leave tools and toolChoice out"
        raise Refusal(400, sentence, "tool_calling_not_configured")
    free = wanted.response_format is None or wanted.response_format == {"type": "text"}
    if not free or wanted.structured_outputs is not None:
        name = "structuredOutputs" if free else "responseFormat"
        sentence = f"{name}: this backend cannot constrain an answer yet; leave it out and ask for the form in words"
        raise Refusal(400, sentence, "constraints_not_configured")


def completion_of(wanted: InferenceRequest, model: str, folder: str | None) -> Completion:
    """What the generator is to do. Without a temperature it is greedy, unless `top_p` asks for sampling."""
    default = 0.0 if wanted.top_p is None else 1.0
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
    )


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

    def whole(self, text: str, done: Done) -> dict[str, Any]:
        """A `chat.completion`."""
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": done.finish_reason}
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


async def _collect(request: Request, answer: Answer, reply: Delta | Done, shape: Shape) -> dict[str, Any]:
    text = ""
    while isinstance(reply, Delta):
        text += reply.text
        if await request.is_disconnected():
            raise Refusal(499, "The client has gone away.", "client_closed")
        reply = _unless_failed(await answer.next())
    answer.close()
    return shape.whole(text, reply)


def _unless_failed(reply: Reply) -> Delta | Done:
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
    while isinstance(reply, Delta):
        yield shape.chunk({"content": reply.text})
        reply = await answer.next()
    if isinstance(reply, Failed):
        yield _frame({"error": _openai_error(reply)}) + END
    else:
        yield shape.chunk({}, reply.finish_reason, usage=usage(reply)) + END


def _openai_error(failed: Failed) -> dict[str, Any]:
    return {"message": failed.sentence, "type": "server_error", "code": failed.code, "status": failed.status}


def _frame(value: Mapping[str, Any]) -> bytes:
    return b"data: " + dumps(value).encode() + b"\n\n"


def _refusal(error: CannotAnswer | Failed) -> Refusal:
    return Refusal(error.status, error.sentence, error.code)


routes = [Route("/v1/inference/chat", chat, methods=["POST"])]
