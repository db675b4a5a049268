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

from arkor.backend.http.openapi import body_of, class_schema
from arkor.backend.http.requests import Refusal, invalid
from arkor.errors import InvalidConfig
from arkor.protocol.chat import InferenceRequest
from arkor.protocol.codec import camel, dumps

_BOOL = {"type": "boolean"}

#: Fields that are honoured, by the same names as in `InferenceRequest`.
_SAME = [
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

_OURS = (*_SAME, "max_tokens", "max_completion_tokens", "stream", "stream_options")

#: Fields that change nothing of an answer.
_HARMLESS = [
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
_UNABLE: Mapping[str, tuple[Any, ...]] = {
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

_INSTEAD = {
    "n": "one answer is given per request; leave it out",
    "functions": "is an older name; use tools",
    "function_call": "is an older name; use tool_choice",
    **{name: "is an older name; use structured_outputs" for name in _UNABLE if name.startswith("guided_")},
}

_KNOWN = (*_OURS, *_HARMLESS, *_UNABLE)

#: So many messages take a fraction of a second to look at, and are more than a context holds.
MOST_MESSAGES = 10_000

#: The fields of a message that mean something to a model here.
_OF_A_MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id")


# What is asked


@frozen
class Asked:
    """A request in our words; `include_usage`: a stream ends with a chunk that has the counts and nothing else."""

    request: InferenceRequest
    include_usage: bool


def read_request(body: Mapping[str, Any], base_model: str) -> Asked:
    """The body of a chat completion that `base_model` is to answer, perhaps with an adapter. Else a 400."""
    _refuse_others(body)
    fields = {name: body[name] for name in _SAME if body.get(name) is not None}
    fields["messages"] = _messages(body.get("messages"))
    stream: Any = False if body.get("stream") is None else body["stream"]
    request = InferenceRequest(**fields, base_model=base_model, max_tokens=_max_tokens(body), stream=stream)
    try:
        request.check()
    except InvalidConfig as error:
        renamed = error.field == "max_tokens" and body.get("max_tokens") is None
        raise invalid("max_completion_tokens" if renamed else error.field, error.problem) from None
    return Asked(request, _include_usage(body))


def _refuse_others(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name not in _KNOWN:
            near = difflib.get_close_matches(name[:80], _KNOWN, n=1)
            hint = f"did you mean {near[0]}?" if near else "it is not part of a chat completion here"
            raise invalid(name[:80], f"is no field that is known; {hint}")
        if name in _UNABLE and value is not None and value not in _UNABLE[name]:
            raise invalid(name, _INSTEAD.get(name, "cannot be honoured here; leave it out"))


def _messages(value: Any) -> Any:
    """As they came, in the roles that models know, without what says nothing."""
    if not isinstance(value, list):
        return value
    if len(value) > MOST_MESSAGES:
        raise invalid("messages", f"are {len(value)}; at most {MOST_MESSAGES} are taken")
    return [_message(f"messages[{index}]", message) for index, message in enumerate(value)]


def _message(where: str, message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    for name in ("audio", "function_call"):
        if message.get(name):
            raise invalid(f"{where}.{name}", "cannot be honoured here; leave it out")
    said = {name: message[name] for name in _OF_A_MESSAGE if message.get(name) is not None}
    return {**said, "role": "system"} if said.get("role") == "developer" else said


def _max_tokens(body: Mapping[str, Any]) -> Any:
    older, newer = body.get("max_tokens"), body.get("max_completion_tokens")
    if older is not None and newer is not None and older != newer:
        raise invalid("max_tokens", "differs from max_completion_tokens, which means the same; send one of them")
    return newer if older is None else older


def _include_usage(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    known = ("include_usage", "include_obfuscation")
    if not isinstance(options, Mapping) or not all(isinstance(value, bool) for value in options.values()):
        raise invalid("stream_options", 'must be an object like {"include_usage": true}')
    for name in options:
        if name not in known:
            raise invalid(f"stream_options.{name[:80]}", f"is no field that is known; there are {' and '.join(known)}")
    if not body.get("stream"):
        raise invalid("stream_options", "belongs to a stream; ask for stream: true, or leave it out")
    return bool(options.get("include_usage"))


# How it is described

_INFERENCE = class_schema(InferenceRequest)["properties"]
_COUNT = _INFERENCE["maxTokens"]
_USAGE = {"anyOf": [body_of({"include_usage": _BOOL, "include_obfuscation": _BOOL}), {"type": "null"}]}

#: The body of a chat completion.
CHAT_REQUEST = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        **{name: _INFERENCE[camel(name)] for name in _SAME},
        "max_tokens": _COUNT,
        "max_completion_tokens": _COUNT,
        "stream": _BOOL,
        "stream_options": _USAGE,
        **{name: {} for name in _HARMLESS},
        **{name: {"enum": [*values, None]} for name, values in _UNABLE.items()},
    },
    "additionalProperties": False,
}


# How it is refused

_WIRE_NAMES = {camel(one.name): one.name for one in attrs.fields(InferenceRequest) if "_" in one.name}
_ANY_WIRE_NAME = re.compile(rf"\b({'|'.join(_WIRE_NAMES)})\b")
_PARAM = re.compile(r"([A-Za-z_]+(?:\.[\w$]+|\[\d+\])*): ")


def by_openais_names(sentence: str) -> str:
    """The sentence with its fields by the names that they have in a chat completion."""
    return _ANY_WIRE_NAME.sub(lambda found: _WIRE_NAMES[found[1]], sentence)


def error_json(refusal: Refusal) -> dict[str, Any]:
    """The body of an error as OpenAI's clients read it."""
    param = _PARAM.match(refusal.sentence) if refusal.status == 400 else None
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    told = {"message": refusal.sentence, "type": kind, "param": param and param[1], "code": refusal.code}
    return {"error": told}


# What is answered


@define
class Told:
    """What has been said of an answer so far."""

    id: str | None = None
    text: list[str] = field(factory=list)
    calls: dict[int, dict[str, Any]] = field(factory=dict)
    finish_reason: str | None = None
    usage: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None

    def whole(self, completion: Mapping[str, Any]) -> None:
        """Take in an answer that came at once."""
        self.id, choice = completion["id"], completion["choices"][0]
        self.text = [choice["message"].get("content") or ""]
        self.calls = dict(enumerate(choice["message"].get("tool_calls") or ()))
        self.finish_reason, self.usage = choice["finish_reason"], completion.get("usage")

    def chunk(self, chunk: Mapping[str, Any]) -> None:
        """Take in a piece."""
        self.id = chunk.get("id") or self.id
        self.usage = chunk.get("usage") or self.usage
        self.error = chunk.get("error") or self.error
        for choice in chunk.get("choices", ()):
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self.text.append(choice["delta"].get("content") or "")
            for call in choice["delta"].get("tool_calls") or ():
                self._call(call)

    def _call(self, delta: Mapping[str, Any]) -> None:
        told = self.calls.setdefault(delta["index"], {"function": {"name": "", "arguments": ""}})
        told.update({name: value for name, value in delta.items() if name not in ("index", "function")})
        for name, value in (delta.get("function") or {}).items():
            told["function"][name] += value

    def to_json(self) -> dict[str, Any]:
        """The message, why it ended, what it cost; or what went wrong. `finish_reason` None: it was broken off."""
        calls = [self.calls[index] for index in sorted(self.calls)]
        message = {"role": "assistant", "content": "".join(self.text), **({"tool_calls": calls} if calls else {})}
        said = {"id": self.id, "message": message, "finish_reason": self.finish_reason, "usage": self.usage}
        return {**said, **({"error": self.error} if self.error else {})}


Sentence = Callable[[str], str]


async def retold(
    pieces: AsyncIterable[Any], told: Told, *, include_usage: bool, outward: Sentence
) -> AsyncIterator[bytes]:
    """The frames of a stream as OpenAI's clients expect them, errors as `outward` words them; `told` listens."""
    pending = b""
    async for piece in pieces:
        *frames, pending = (pending + bytes(piece)).split(b"\n\n")
        yield b"".join(_retell(frame, told, include_usage, outward) for frame in frames)


def _retell(frame: bytes, told: Told, include_usage: bool, outward: Sentence) -> bytes:
    if not frame.startswith(b"data: {"):  # the end, or a comment
        return frame + b"\n\n"
    chunk = json.loads(frame.removeprefix(b"data: "))
    if error := chunk.get("error"):
        chunk["error"] = {"param": None, **error, "message": outward(error["message"])}
    told.chunk(chunk)
    return b"".join(b"data: " + dumps(one).encode() + b"\n\n" for one in _respelled(chunk, include_usage))


def _respelled(chunk: dict[str, Any], include_usage: bool) -> Iterator[Mapping[str, Any]]:
    if "error" in chunk:
        yield chunk
        return
    usage = chunk.pop("usage", None)
    if chunk["choices"]:
        yield {**chunk, **({"usage": None} if include_usage else {})}
    if usage and include_usage:
        yield {**chunk, "choices": [], "usage": usage}
