"""Text completions of a deployment, at `/e/<slug>/v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from arkor.backend.http.authentication import NOTHING
from arkor.backend.http.openapi import ResponseSpec, RouteTable
from arkor.backend.http.routes.chat import STREAM_END, UNAVAILABLE, Choice, Generation, frame, sampling_fields
from arkor.backend.http.routes.openai_deployment import NO_KEY, NO_MODEL, Conversation, answer, read_call
from arkor.backend.http.routes.openai_format import COMPLETION_REQUEST, ERROR_SCHEMA, TextRequest, read_text_request
from arkor.backend.http.schema import EVENTS
from arkor.backend.inference.messages import (
    CompletionRequest,
    Delta,
    Done,
    GenerationError,
    TokenLogprob,
    token_text,
)
from arkor.backend.store.store import new_id

routes = RouteTable()


@routes.add(
    "POST /e/{slug}/v1/completions",
    NOTHING,
    body=COMPLETION_REQUEST,
    responses={
        200: ResponseSpec(
            "OpenAI's `text_completion`; with `stream: true` its chunks, ended by `data: [DONE]`.",
            {"type": "object", "required": ["id", "choices", "usage"]},
            alternatives={"text/event-stream": EVENTS},
        )
    },
    errors={**NO_KEY, **UNAVAILABLE, **NO_MODEL},
    error_schema=ERROR_SCHEMA,
)
async def complete(request: Request) -> Response:
    """Continue texts, without the chat template, as OpenAI's clients request it."""
    call = await read_call(request, COMPLETION_REQUEST)
    asked = await run_in_threadpool(read_text_request, call.body)

    def stream(generation: Generation, conversation: Conversation) -> AsyncGenerator[bytes, None]:
        return _frames(generation, conversation, asked)

    return await answer(
        call,
        lambda: _completions(asked),
        lambda generation: _whole(generation, asked),
        stream if asked.stream else None,
        asked.n,
    )


def _completions(asked: TextRequest) -> list[CompletionRequest]:
    """Return the completion of each prompt."""
    id_ = f"cmpl-{new_id()}"
    return [
        CompletionRequest(
            id=id_,
            model="",
            adapter=None,
            messages=(),
            prompt=prompt,
            echo=asked.echo,
            logprobs=asked.logprobs,
            **sampling_fields(asked),
        )
        for prompt in asked.prompts
    ]


def _whole(generation: Generation, asked: TextRequest) -> Mapping[str, Any]:
    choices = [
        _choice(choice, choice.text, choice.logprobs if asked.logprobs is not None else None, 0, choice.finish_reason)
        for choice in generation.choices
    ]
    return {**generation.head("text_completion"), "choices": choices, "usage": generation.usage}


def _choice(
    choice: Choice, text: str, tokens: Sequence[TokenLogprob] | None, offset: int, finish_reason: str | None
) -> dict[str, Any]:
    """Return a choice, or a part of one that begins at character `offset`."""
    logprobs = None if tokens is None else _logprobs(tokens, offset)
    return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Return OpenAI's `logprobs` of a text completion.

    Like OpenAI's, `top_logprobs` of a token contain the token itself, the likely ones aside.
    """
    texts = [token.text for token in tokens]
    offsets = accumulate((len(bytes(token.data).decode(errors="ignore")) for token in tokens), initial=offset)
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_top(token) for token in tokens] if any(token.top for token in tokens) else None,
        "text_offset": [position for position, _ in zip(offsets, tokens, strict=False)],
    }


def _top(token: TokenLogprob) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    return {**{token_text(data): logprob for data, logprob in reversed(token.top)}, token.text: token.logprob}


async def _frames(
    generation: Generation, conversation: Conversation, asked: TextRequest
) -> AsyncGenerator[bytes, None]:
    """Yield the frames of a stream, with the usage in one of its own, on request."""
    head = generation.head("text_completion")
    usage = {"usage": None} if asked.include_usage else {}
    offsets = dict.fromkeys(range(len(generation.choices)), 0)
    try:
        async for choice, reply in generation.replies():
            text = reply.text if isinstance(reply, Delta) else ""
            tokens = reply.logprobs if isinstance(reply, Delta) and asked.logprobs is not None else None
            reason = reply.finish_reason if isinstance(reply, Done) else None
            yield frame({**head, "choices": [_choice(choice, text, tokens, offsets[choice.index], reason)], **usage})
            offsets[choice.index] += len(text)
        if asked.include_usage:
            yield frame({**head, "choices": [], "usage": generation.usage})
    except GenerationError as error:
        yield frame({"error": conversation.fail(error)})
    yield STREAM_END
