"""The stateless part of OpenAI's Responses API, at `/e/<slug>/v1/responses`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import define, evolve, field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from arkor.backend.http.authentication import NOTHING
from arkor.backend.http.errors import ApiError, config_error
from arkor.backend.http.openapi import ResponseSpec, RouteTable
from arkor.backend.http.routes.chat import (
    UNAVAILABLE,
    Choice,
    Generation,
    build_completion,
    token_json,
)
from arkor.backend.http.routes.openai_deployment import (
    NO_KEY,
    NO_MODEL,
    Call,
    Conversation,
    answer,
    authorize,
    read_call,
)
from arkor.backend.http.routes.openai_format import ERROR_SCHEMA
from arkor.backend.http.routes.responses_format import RESPONSE_REQUEST, ResponsesRequest, read_response_request
from arkor.backend.http.schema import EVENTS
from arkor.backend.inference.messages import CallDelta, CompletionRequest, Delta, Done, GenerationError, TokenLogprob
from arkor.backend.store.store import new_id
from arkor.errors import InvalidConfig
from arkor.protocol.codec import dumps

routes = RouteTable()


@routes.add(
    "POST /e/{slug}/v1/responses",
    NOTHING,
    body=RESPONSE_REQUEST,
    responses={
        200: ResponseSpec(
            "OpenAI's `response`; with `stream: true` its events.",
            {"type": "object", "required": ["id", "output", "status"]},
            alternatives={"text/event-stream": EVENTS},
        )
    },
    errors={**NO_KEY, **UNAVAILABLE, **NO_MODEL},
    error_schema=ERROR_SCHEMA,
)
async def respond(request: Request) -> Response:
    """Create a response, as OpenAI's clients request it, without storing it."""
    call = await read_call(request, RESPONSE_REQUEST)
    recent = call.state.recent_items
    find_item = partial(recent.find, call.deployment.id)
    asked = await run_in_threadpool(read_response_request, call.body, call.model, find_item)

    def whole(generation: Generation) -> Mapping[str, Any]:
        response = ResponseBuilder(generation, call.body)
        for reply in _replay(generation.choices[0]):
            response.push(reply)
        _remember(call, response)
        return response.snapshot()

    def stream(generation: Generation, conversation: Conversation) -> AsyncGenerator[bytes, None]:
        return _frames(generation, conversation, call)

    try:
        return await answer(call, lambda: [_completion(asked)], whole, stream if asked.request.stream else None)
    except GenerationError as error:
        field = error.field and asked.field(error.field)
        raise GenerationError(error.status, error.code, error.problem, field=field) from error


@routes.add(
    "GET /e/{slug}/v1/responses/{id}",
    NOTHING,
    responses={},
    errors={**NO_KEY, 404: "Always: responses are not stored."},
    error_schema=ERROR_SCHEMA,
)
async def get_response(request: Request) -> Response:
    """Reject the request for an earlier response."""
    await authorize(request)
    remedy = "Keep the response that the request returned."
    raise ApiError(404, "Responses are not stored.", "not_found", remedy=remedy)


def _completion(asked: ResponsesRequest) -> CompletionRequest:
    try:
        return evolve(build_completion(asked.request), id=f"resp_{new_id()}")
    except InvalidConfig as error:
        raise config_error(error, asked.field(error.field)) from None


def _remember(call: Call, response: ResponseBuilder) -> None:
    """Keep the items in memory for requests that refer to them, unless nothing may be kept."""
    if call.body.get("store") is not False and call.deployment.run_retention_mode != "disabled":
        call.state.recent_items.add(call.deployment.id, response.items)


def _replay(choice: Choice) -> Iterator[Delta | CallDelta | Done]:
    """Yield the replies of a complete answer, one for each part."""
    if choice.text or not choice.calls:
        yield Delta("", choice.text, tuple(choice.logprobs))
    for index, call in enumerate(choice.calls):
        yield CallDelta("", index, call["function"]["arguments"], call["id"], call["function"]["name"])
    if choice.done is not None:
        yield choice.done


async def _frames(generation: Generation, conversation: Conversation, call: Call) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stream; a failure is an event of its own."""
    response = ResponseBuilder(generation, call.body)
    number = 0
    async for event in _events(generation, conversation, response):
        yield f"event: {event['type']}\ndata: {dumps({**event, 'sequence_number': number})}\n\n".encode()
        number += 1
    if response.status != "failed":
        _remember(call, response)


async def _events(
    generation: Generation, conversation: Conversation, response: ResponseBuilder
) -> AsyncIterator[dict[str, Any]]:
    for kind in ("response.created", "response.in_progress"):
        yield {"type": kind, "response": response.snapshot()}
    try:
        async for _, reply in generation.replies():
            for event in response.push(reply):
                yield event
    except GenerationError as error:
        failure = conversation.fail(error)
        response.fail(failure)
        yield {"type": "error", "code": failure["code"], "message": failure["message"], "param": failure["param"]}
    yield {"type": f"response.{response.status}", "response": response.snapshot()}


# The response


@define
class ResponseBuilder:
    """Builds a response and its events from the replies of a generation."""

    _generation: Generation
    _body: Mapping[str, Any]
    items: list[dict[str, Any]] = field(factory=list)
    status: str = "in_progress"
    _error: Mapping[str, Any] | None = None
    _tokens: list[TokenLogprob] = field(factory=list)

    def push(self, reply: Delta | CallDelta | Done) -> list[dict[str, Any]]:
        """Add a reply; return its events."""
        if isinstance(reply, Delta):
            return self._add_text(reply)
        if isinstance(reply, CallDelta):
            return self._add_arguments(reply)
        cut = reply.finish_reason == "length"
        events = [] if self.items else self._open(self._new_message())
        events += self._close("incomplete" if cut else "completed")
        self.status = "incomplete" if cut else "completed"
        return events

    def fail(self, error: Mapping[str, Any]) -> None:
        self.status, self._error = "failed", error
        if self.items and self.items[-1]["status"] == "in_progress":
            self.items[-1]["status"] = "incomplete"

    def snapshot(self) -> dict[str, Any]:
        """Return the response as far as it is complete."""
        body, generation = self._body, self._generation
        incomplete = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        error = self._error and {"code": "server_error", "message": self._error["message"]}
        text = {"format": {"type": "text"}, **{k: v for k, v in (body.get("text") or {}).items() if v is not None}}
        return {
            "id": generation.id,
            "object": "response",
            "created_at": generation.created,
            "status": self.status,
            "error": error,
            "incomplete_details": incomplete,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "model": generation.model,
            "output": [_copy(item) for item in self.items if self.status != "in_progress"],
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "reasoning": {"effort": (body.get("reasoning") or {}).get("effort"), "summary": None},
            "store": False,
            "temperature": body.get("temperature"),
            "text": text,
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": [{"strict": None, "parameters": None, **tool} for tool in body.get("tools") or ()],
            "top_logprobs": body.get("top_logprobs") or 0,
            "top_p": body.get("top_p"),
            "truncation": "disabled",
            "usage": self._usage(),
            "user": body.get("user"),
            "metadata": {**(body.get("metadata") or {}), **generation.metadata},
        }

    def _usage(self) -> dict[str, Any] | None:
        usage = self._generation.usage
        return usage and {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }

    def _new_message(self) -> dict[str, Any]:
        return {"id": f"msg_{new_id()}", "type": "message", "role": "assistant", "status": "in_progress", "content": []}

    def _add_text(self, reply: Delta) -> list[dict[str, Any]]:
        events = []
        if not self.items or self.items[-1]["type"] != "message":
            if not reply.text and not reply.logprobs:
                return []
            events = self._close("completed") + self._open(self._new_message())
        self.items[-1]["content"][0]["text"] += reply.text
        self._tokens += reply.logprobs
        delta = {"delta": reply.text, "logprobs": _delta_logprobs(reply.logprobs)}
        return [*events, {"type": "response.output_text.delta", **self._position(), "content_index": 0, **delta}]

    def _add_arguments(self, reply: CallDelta) -> list[dict[str, Any]]:
        events = []
        if reply.name is not None:
            item = {"id": f"fc_{new_id()}", "type": "function_call", "status": "in_progress"}
            call = {"call_id": reply.call_id, "name": reply.name, "arguments": ""}
            events = self._close("completed") + self._open({**item, **call})
        self.items[-1]["arguments"] += reply.arguments
        if not reply.arguments:
            return events
        delta = {"type": "response.function_call_arguments.delta", **self._position(), "delta": reply.arguments}
        return [*events, delta]

    def _position(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}

    def _open(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        """Begin an item; a message begins with its only part."""
        self.items.append(item)
        events = [{"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": _copy(item)}]
        if item["type"] == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item["content"].append(part)
            added = {"type": "response.content_part.added", **self._position(), "content_index": 0, "part": dict(part)}
            events.append(added)
        return events

    def _close(self, status: str) -> list[dict[str, Any]]:
        """End the last item, if there is one that has not ended."""
        if not self.items or self.items[-1]["status"] != "in_progress":
            return []
        item, position = self.items[-1], self._position()
        item["status"] = status
        done = {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}
        if item["type"] == "function_call":
            arguments = {"name": item["name"], "arguments": item["arguments"]}
            event = {"type": "response.function_call_arguments.done", **position, **arguments}
            return [event, {**done, "item": _copy(item)}]
        part = item["content"][0]
        part["logprobs"] = [token_json(token) for token in self._tokens]
        text = {"text": part["text"], "logprobs": _delta_logprobs(self._tokens)}
        self._tokens = []
        return [
            {"type": "response.output_text.done", **position, "content_index": 0, **text},
            {"type": "response.content_part.done", **position, "content_index": 0, "part": dict(part)},
            {**done, "item": _copy(item)},
        ]


def _copy(item: Mapping[str, Any]) -> dict[str, Any]:
    """Copy an item with its parts, which change while it is generated."""
    content = {"content": [dict(part) for part in item["content"]]} if "content" in item else {}
    return {**item, **content}


def _delta_logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    return [token_json(token) for token in tokens]
