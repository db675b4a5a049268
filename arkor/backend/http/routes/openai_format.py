"""OpenAI's chat completions, as its clients write and read them ⇄ what is asked and answered here.

A field that would change the answer and is not honoured is refused, never passed over. Who may ask is in
`openai_chat.py`, what an answer consists of in `chat.py`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import attrs
from attrs import define, field, frozen

from arkor.backend.http.openapi import class_schema, object_schema
from arkor.backend.http.requests import ApiError, invalid_field
from arkor.errors import InvalidConfig
from arkor.protocol.chat import InferenceRequest
from arkor.protocol.codec import camel_case, dumps

_BOOL = {"type": "boolean"}

#: Fields that are honoured, by the same names as in `InferenceRequest`.
_SHARED_FIELDS = [
    "messages",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "structured_outputs",
]

_SUPPORTED = (*_SHARED_FIELDS, "max_tokens", "max_completion_tokens", "stream", "stream_options")

#: Fields that change nothing of an answer.
_IGNORED = [
    "model",
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
]

#: Fields that are not honoured → the values that ask for nothing, beside null.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "functions": ([],),
    "function_call": ("none",),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}

_ALTERNATIVES = {
    "n": "one answer is given per request; leave it out",
    "functions": "is an older name; use tools",
    "function_call": "is an older name; use tool_choice",
    **{name: "is an older name; use structured_outputs" for name in _UNSUPPORTED if name.startswith("guided_")},
}

_KNOWN = (*_SUPPORTED, *_IGNORED, *_UNSUPPORTED)

#: So many messages take a fraction of a second to look at, and are more than a context holds.
MAX_MESSAGES = 10_000

#: The fields of a message that mean something to a model here.
_MESSAGE_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id")


# What is asked


@frozen
class ChatRequest:
    """A request in our words; `include_usage`: a stream ends with a chunk that has the counts and nothing else."""

    request: InferenceRequest
    include_usage: bool


def read_request(body: Mapping[str, Any], base_model: str) -> ChatRequest:
    """The body of a chat completion that `base_model` is to answer, perhaps with an adapter. Else a 400."""
    _reject_unknown(body)
    fields = {name: body[name] for name in _SHARED_FIELDS if body.get(name) is not None}
    fields["messages"] = _messages(body.get("messages"))
    stream: Any = False if body.get("stream") is None else body["stream"]
    request = InferenceRequest(**fields, base_model=base_model, max_tokens=_max_tokens(body), stream=stream)
    try:
        request.check()
    except InvalidConfig as error:
        field_name = error.field == "max_tokens" and body.get("max_tokens") is None
        raise invalid_field("max_completion_tokens" if field_name else error.field, error.problem) from None
    return ChatRequest(request, _include_usage(body))


def _reject_unknown(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name not in _KNOWN:
            suggestions = difflib.get_close_matches(name[:80], _KNOWN, n=1)
            hint = f"did you mean {suggestions[0]}?" if suggestions else "it is not part of a chat completion here"
            raise invalid_field(name[:80], f"is no field that is known; {hint}")
        if name in _UNSUPPORTED and value is not None and value not in _UNSUPPORTED[name]:
            raise invalid_field(name, _ALTERNATIVES.get(name, "cannot be honoured here; leave it out"))


def _messages(value: Any) -> Any:
    """As they came, in the roles that models know, without what says nothing."""
    if not isinstance(value, list):
        return value
    if len(value) > MAX_MESSAGES:
        raise invalid_field("messages", f"are {len(value)}; at most {MAX_MESSAGES} are taken")
    return [_message(f"messages[{index}]", message) for index, message in enumerate(value)]


def _message(path: str, message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    for name in ("audio", "function_call"):
        if message.get(name):
            raise invalid_field(f"{path}.{name}", "cannot be honoured here; leave it out")
    fields = {name: message[name] for name in _MESSAGE_FIELDS if message.get(name) is not None}
    return {**fields, "role": "system"} if fields.get("role") == "developer" else fields


def _max_tokens(body: Mapping[str, Any]) -> Any:
    older, newer = body.get("max_tokens"), body.get("max_completion_tokens")
    if older is not None and newer is not None and older != newer:
        raise invalid_field("max_tokens", "differs from max_completion_tokens, which means the same; send one of them")
    return newer if older is None else older


def _include_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    known = ("include_usage", "include_obfuscation")
    if not isinstance(options, Mapping) or not all(isinstance(value, bool) for value in options.values()):
        raise invalid_field("stream_options", 'must be an object like {"include_usage": true}')
    for name in options:
        if name not in known:
            raise invalid_field(
                f"stream_options.{name[:80]}", f"is no field that is known; there are {' and '.join(known)}"
            )
    if not body.get("stream"):
        raise invalid_field("stream_options", "belongs to a stream; ask for stream: true, or leave it out")
    return bool(options.get("include_usage"))


# How it is described

_INFERENCE = class_schema(InferenceRequest)["properties"]
_COUNT = _INFERENCE["maxTokens"]
_USAGE = {"anyOf": [object_schema({"include_usage": _BOOL, "include_obfuscation": _BOOL}), {"type": "null"}]}

#: The body of a chat completion.
CHAT_REQUEST = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        **{name: _INFERENCE[camel_case(name)] for name in _SHARED_FIELDS},
        "max_tokens": _COUNT,
        "max_completion_tokens": _COUNT,
        "stream": _BOOL,
        "stream_options": _USAGE,
        **{name: {} for name in _IGNORED},
        **{name: {"enum": [*values, None]} for name, values in _UNSUPPORTED.items()},
    },
    "additionalProperties": False,
}


# How it is refused

_WIRE_NAMES = {camel_case(one.name): one.name for one in attrs.fields(InferenceRequest) if "_" in one.name}
_ANY_WIRE_NAME = re.compile(rf"\b({'|'.join(_WIRE_NAMES)})\b")
_PARAM = re.compile(r"([A-Za-z_]+(?:\.[\w$]+|\[\d+\])*): ")


def with_openai_names(sentence: str) -> str:
    """The sentence with its fields by the names that they have in a chat completion."""
    return _ANY_WIRE_NAME.sub(lambda found: _WIRE_NAMES[found[1]], sentence)


def error_json(refusal: ApiError) -> dict[str, Any]:
    """The body of an error as OpenAI's clients read it."""
    param = _PARAM.match(refusal.sentence) if refusal.status == 400 else None
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    body = {"message": refusal.sentence, "type": kind, "param": param and param[1], "code": refusal.code}
    return {"error": body}


# What is answered


@define
class OpenAIResponse:
    """What has been said of an answer so far."""

    id: str | None = None
    text: list[str] = field(factory=list)
    calls: dict[int, dict[str, Any]] = field(factory=dict)
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None

    def add_completion(self, completion: Mapping[str, Any]) -> None:
        """Take in an answer that came at once."""
        self.id, choice = completion["id"], completion["choices"][0]
        self.text = [choice["message"].get("content") or ""]
        self.calls = dict(enumerate(choice["message"].get("tool_calls") or ()))
        self.finish_reason, self.usage = choice["finish_reason"], completion.get("usage")

    def add_chunk(self, chunk: Mapping[str, Any]) -> None:
        """Take in a piece."""
        self.id = chunk.get("id") or self.id
        self.usage = chunk.get("usage") or self.usage
        self.error = chunk.get("error") or self.error
        for choice in chunk.get("choices", ()):
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self.text.append(choice["delta"].get("content") or "")
            for call in choice["delta"].get("tool_calls") or ():
                self._add_call(call)

    def _add_call(self, delta: Mapping[str, Any]) -> None:
        call = self.calls.setdefault(delta["index"], {"function": {"name": "", "arguments": ""}})
        call.update({name: value for name, value in delta.items() if name not in ("index", "function")})
        for name, value in (delta.get("function") or {}).items():
            call["function"][name] += value

    def to_json(self) -> dict[str, Any]:
        """The message, why it ended, what it cost; or what went wrong. `finish_reason` None: it was broken off."""
        calls = [self.calls[index] for index in sorted(self.calls)]
        message = {"role": "assistant", "content": "".join(self.text), **({"tool_calls": calls} if calls else {})}
        data = {"id": self.id, "message": message, "finish_reason": self.finish_reason, "usage": self.usage}
        return {**data, **({"error": self.error} if self.error else {})}


Sentence = Callable[[str], str]


async def openai_frames(
    chunks: AsyncIterable[Any], output: OpenAIResponse, *, include_usage: bool, redact: Sentence
) -> AsyncIterator[bytes]:
    """The frames of a stream as OpenAI's clients expect them, errors as `redact` words them; `output` listens."""
    pending = b""
    async for chunk in chunks:
        *frames, pending = (pending + bytes(chunk)).split(b"\n\n")
        yield b"".join(_openai_frame(frame, output, include_usage, redact) for frame in frames)


def _openai_frame(frame: bytes, output: OpenAIResponse, include_usage: bool, redact: Sentence) -> bytes:
    if not frame.startswith(b"data: {"):  # the end, or a comment
        return frame + b"\n\n"
    chunk = json.loads(frame.removeprefix(b"data: "))
    if error := chunk.get("error"):
        chunk["error"] = {"param": None, **error, "message": redact(error["message"])}
    output.add_chunk(chunk)
    return b"".join(
        b"data: " + dumps(openai_chunk).encode() + b"\n\n" for openai_chunk in _openai_chunks(chunk, include_usage)
    )


def _openai_chunks(chunk: dict[str, Any], include_usage: bool) -> Iterator[Mapping[str, Any]]:
    if "error" in chunk:
        yield chunk
        return
    usage = chunk.pop("usage", None)
    if chunk["choices"]:
        yield {**chunk, **({"usage": None} if include_usage else {})}
    if usage and include_usage:
        yield {**chunk, "choices": [], "usage": usage}
