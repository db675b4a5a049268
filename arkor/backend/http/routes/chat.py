"""Chat completions from an adapter or a base model, streamed or whole, in OpenAI's shapes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
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
from arkor.backend.inference.messages import (
    CallDelta,
    CompletionRequest,
    Delta,
    Done,
    Failed,
    GenerationError,
    TokenLogprob,
    token_text,
)
from arkor.backend.inference.service import InferenceService, ReplyStream
from arkor.backend.store.store import new_id
from arkor.errors import InvalidConfig
from arkor.protocol.accounts import Project
from arkor.protocol.chat import InferenceRequest, Sampling, stop_strings
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
    completion = evolve(completion, model=model, adapter=folder)
    generation = await start(state.inference, [completion], _label(asked, model), asked.n)
    if asked.stream:
        return EventStreamResponse(_frames(generation), generation.close)
    await generation.finish(request)
    return JSONResponse(chat_completion(generation))


def build_completion(request: InferenceRequest) -> CompletionRequest:
    """Return the completion of a checked request without model and adapter. Raises `InvalidConfig`.

    Without a temperature it is greedy, unless `top_p` asks for sampling.
    """
    constraint, tool_choice = parse_constraint(request), parse_tool_choice(request)
    if constraint is not None and tool_choice is not None:
        if constraint.kind != "json":
            problem = "cannot be combined with tools that may be called"
            raise InvalidConfig(constraint.field, problem, "send only one of the two, or a JSON schema")
        constraint = None if tool_choice.forced else constraint  # a forced call has no other text
    return CompletionRequest(
        id=f"chatcmpl-{new_id()}",
        model="",
        adapter=None,
        messages=tuple(request.messages),
        constraint=constraint,
        tool_choice=tool_choice,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        enable_thinking=request.enable_thinking,
        reasoning_effort=request.reasoning_effort,
        **sampling_fields(request),
    )


def sampling_fields(request: Sampling) -> dict[str, Any]:
    """Return the fields of a `CompletionRequest` for checked parameters."""
    default = 0.0 if request.top_p is None else 1.0
    return {
        "temperature": default if request.temperature is None else float(request.temperature),
        "top_p": 1.0 if request.top_p is None else float(request.top_p),
        "max_tokens": request.max_tokens,
        "stop": stop_strings(request.stop),
        "seed": request.seed,
        "presence_penalty": float(request.presence_penalty or 0),
        "frequency_penalty": float(request.frequency_penalty or 0),
        "logit_bias": tuple((int(token), float(bias)) for token, bias in (request.logit_bias or {}).items()),
    }


def _label(request: InferenceRequest, model: str) -> str:
    """Return the `model` of the response: `JOB`, `JOB@STEP`, or the base model."""
    adapter = request.adapter
    if adapter is None:
        return model
    return adapter.job_id if adapter.step is None else f"{adapter.job_id}@{adapter.step}"


# Generation


@define
class Choice:
    """One answer of a generation, as far as it is generated."""

    index: int
    text: str = ""
    calls: list[dict[str, Any]] = field(factory=list)
    logprobs: list[TokenLogprob] = field(factory=list)
    done: Done | None = None

    def add(self, reply: Delta | CallDelta | Done) -> None:
        if isinstance(reply, Done):
            self.done = reply
        elif isinstance(reply, Delta):
            self.text += reply.text
            self.logprobs += reply.logprobs
        else:
            if reply.name is not None:
                self.calls.append(_call(reply.call_id, reply.name, ""))
            self.calls[reply.index]["function"]["arguments"] += reply.arguments

    @property
    def finish_reason(self) -> str | None:
        return self.done.finish_reason if self.done else None

    @property
    def message(self) -> dict[str, Any]:
        if self.calls:
            return {"role": "assistant", "content": self.text or None, "tool_calls": self.calls}
        return {"role": "assistant", "content": self.text}


@define
class Generation:
    """Answers that are being generated: their replies, and the choices so far.

    It must be closed, which stops it if it has not ended. There are `n` choices for each prompt.
    """

    id: str
    model: str
    _stream: ReplyStream
    _first: Delta | CallDelta | Done
    _choices_by_id: Mapping[str, Choice]
    n: int = 1
    created: int = field(factory=lambda: int(time.time()))

    @property
    def choices(self) -> list[Choice]:
        return list(self._choices_by_id.values())

    @property
    def done(self) -> bool:
        """Whether every choice is complete."""
        return all(choice.done for choice in self.choices)

    async def replies(self) -> AsyncIterator[tuple[Choice, Delta | CallDelta | Done]]:
        """Yield each reply up to the last `Done`. Raises `GenerationError`."""
        reply = self._first
        while True:
            choice = self._choices_by_id[reply.id]
            choice.add(reply)
            yield choice, reply
            if self.done:
                return
            reply = await _next(self._stream)

    async def finish(self, request: Request) -> None:
        """Wait for the end, and close. Raises `GenerationError` or a 499."""
        try:
            async for _ in self.replies():
                if not self.done and await request.is_disconnected():
                    raise ApiError(499, "The client has disconnected.", "client_closed")
        finally:
            self.close()

    @property
    def usage(self) -> dict[str, int] | None:
        """OpenAI's token counts, None until the end."""
        replies = [choice.done for choice in self.choices if choice.done]
        if not self.done:
            return None
        prompt = sum(done.prompt_tokens for done in replies[:: self.n])
        completion = sum(done.completion_tokens for done in replies)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    @property
    def metadata(self) -> dict[str, str]:
        """The engine, and the notes on parameters without effect: the field `metadata` of a
        response.
        """
        ends = [choice.done for choice in self.choices if choice.done]
        engines = dict.fromkeys(done.engine for done in ends if done.engine)
        notes = dict.fromkeys(note for done in ends for note in done.notes)
        texts = {"engine": ", ".join(engines), "notes": " ".join(notes)}
        return {name: text for name, text in texts.items() if text}

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def close(self) -> None:
        self._stream.close()


async def start(
    service: InferenceService, completions: Sequence[CompletionRequest], label: str, n: int | None = 1
) -> Generation:
    """Return the generation of `n` choices for each completion, once one has a first token.

    The completions share the id of the generation. Raises `GenerationError`.
    """
    n = n or 1
    repeated = [completion for completion in completions for _ in range(n)]
    numbered = [_numbered(completion, index, n) for index, completion in enumerate(repeated)]
    if len(numbered) == 1:
        numbered = repeated
    stream = await service.generate(*numbered)
    choices = {completion.id: Choice(index) for index, completion in enumerate(numbered)}
    try:
        return Generation(completions[0].id, label, stream, await _next(stream), choices, n)
    except BaseException:
        stream.close()
        raise


async def _next(stream: ReplyStream) -> Delta | CallDelta | Done:
    reply = await stream.next()
    if isinstance(reply, Failed):
        raise GenerationError(reply.status, reply.code, reply.problem, remedy=reply.remedy, field=reply.field)
    return reply


def _numbered(completion: CompletionRequest, index: int, n: int) -> CompletionRequest:
    """Return the completion of one choice; each of `n` has its own random numbers."""
    seed = completion.seed if completion.seed is None else completion.seed + index % n
    return evolve(completion, id=f"{completion.id}-{index}", seed=seed)


# Chat completions


def chat_completion(generation: Generation) -> dict[str, Any]:
    """Return the `chat.completion` of a generation that has ended."""
    choices = [
        {
            "index": choice.index,
            "message": choice.message,
            **_logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }
        for choice in generation.choices
    ]
    metadata = {"metadata": generation.metadata} if generation.metadata else {}
    return {**generation.head("chat.completion"), "choices": choices, "usage": generation.usage, **metadata}


async def chat_chunks(generation: Generation) -> AsyncIterator[dict[str, Any]]:
    """Yield `chat.completion.chunk`s; the last one has the usage. Raises `GenerationError`."""
    head = generation.head("chat.completion.chunk")

    def chunk(choice: Choice, delta: Mapping[str, Any], reply: Any = None) -> dict[str, Any]:
        logprobs = _logprobs(reply.logprobs) if isinstance(reply, Delta) else {}
        reason = reply.finish_reason if isinstance(reply, Done) else None
        return {**head, "choices": [{"index": choice.index, "delta": delta, **logprobs, "finish_reason": reason}]}

    for choice in generation.choices:
        yield chunk(choice, {"role": "assistant", "content": ""})
    async for choice, reply in generation.replies():
        if not isinstance(reply, Done):
            yield chunk(choice, _delta(reply), reply)
            continue
        last: dict[str, Any] = {"usage": generation.usage} if generation.done else {}
        if generation.done and generation.metadata:
            last["metadata"] = generation.metadata
        yield {**chunk(choice, {}, reply), **last}


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return the field `logprobs` of a choice, if there are any."""
    if not tokens:
        return {}
    return {"logprobs": {"content": [token_json(token) for token in tokens], "refusal": None}}


def token_json(token: TokenLogprob) -> dict[str, Any]:
    """Return a token with its log-probability as OpenAI's chat completions and responses do."""
    top = [{"token": token_text(data), "logprob": logprob, "bytes": list(data)} for data, logprob in token.top]
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.data), "top_logprobs": top}


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
        async for chunk in chat_chunks(generation):
            yield frame(chunk)
    except GenerationError as failure:
        error = generation_error(failure)
        yield frame(
            {"error": {"message": str(error), "type": "server_error", "code": error.code, "status": error.status}}
        )
    yield STREAM_END


def frame(value: Mapping[str, Any]) -> bytes:
    return b"data: " + dumps(value).encode() + b"\n\n"
