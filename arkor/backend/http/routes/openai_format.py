"""Conversion of OpenAI's chat completions and text completions to our requests.

A field that would change the response and is not supported is rejected, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from arkor.backend.http.errors import config_error, invalid_field
from arkor.backend.http.openapi import ErrorBody
from arkor.backend.http.schema import BOOLEAN, STRING, TEXT, Schema, any_of, array_schema, class_schema, object_schema
from arkor.errors import InvalidConfig
from arkor.protocol.chat import MAX_TOP_LOGPROBS, InferenceRequest, check_sampling
from arkor.protocol.codec import camel_case
from arkor.protocol.validation import Integer

#: Fields of both kinds of completions, by the names that our requests have too.
_SAMPLING = ("temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "n")

#: Fields that `InferenceRequest` has by the same names.
_SHARED = (
    *("messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "structured_outputs"),
    *("logprobs", "top_logprobs", "enable_thinking", "reasoning_effort"),
    *_SAMPLING,
)

#: Fields that do not change the response.
_IGNORED = [
    "model",
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "verbosity",
]

#: vLLM's older names of `structured_outputs`.
_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")

#: Fields that are not supported, with the values (besides null) that request nothing.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "repetition_penalty": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none",),
    **dict.fromkeys(("audio", "prediction", "web_search_options", *_GUIDED), ()),
}

_ALTERNATIVES = {
    "best_of": "use n",
    "functions": "use tools",
    "function_call": "use tool_choice",
    **dict.fromkeys(_GUIDED, "use structured_outputs"),
}


def unsupported(fields: Mapping[str, tuple[Any, ...]]) -> dict[str, Schema]:
    """Return the schemas of fields that must be left out, or have a value that requests nothing."""
    return {
        name: {"enum": [*values, None], "description": f"left out; {_ALTERNATIVES.get(name, 'it is not supported')}"}
        for name, values in fields.items()
    }


_INFERENCE = class_schema(InferenceRequest)["properties"]
_STREAM_OPTIONS = object_schema({"include_usage": BOOLEAN, "include_obfuscation": BOOLEAN})

#: The body of a chat completion.
CHAT_REQUEST = object_schema(
    {
        **{name: _INFERENCE[camel_case(name)] for name in _SHARED},
        "max_tokens": _INFERENCE["maxTokens"],
        "max_completion_tokens": _INFERENCE["maxTokens"],
        "stream": {"type": ["boolean", "null"]},
        "stream_options": any_of(_STREAM_OPTIONS, {"type": "null"}),
        "chat_template_kwargs": any_of(object_schema({"enable_thinking": BOOLEAN}), {"type": "null"}),
        **{name: {} for name in _IGNORED},
        **unsupported(_UNSUPPORTED),
    }
)
CHAT_REQUEST["required"] = ["messages"]

_TOKENS = array_schema({"type": "integer", "minimum": 0})

#: The body of a text completion.
COMPLETION_REQUEST = object_schema(
    {
        "prompt": any_of(STRING, array_schema(STRING), _TOKENS, array_schema(_TOKENS)),
        **{name: _INFERENCE[camel_case(name)] for name in _SAMPLING},
        "max_tokens": any_of({"type": "integer", "minimum": 0}, {"type": "null"}),
        "logprobs": any_of({"type": "integer", "minimum": 0, "maximum": MAX_TOP_LOGPROBS}, {"type": "null"}),
        "echo": {"type": ["boolean", "null"]},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": any_of(_STREAM_OPTIONS, {"type": "null"}),
        **{name: {} for name in _IGNORED},
        **unsupported(
            {name: _UNSUPPORTED[name] for name in ("best_of", "repetition_penalty", "top_k", "min_p")}
            | {"suffix": ("",)}
        ),
    }
)
COMPLETION_REQUEST["required"] = ["prompt"]

_NULLABLE = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "properties": {"message": TEXT, "type": TEXT, "param": _NULLABLE, "code": _NULLABLE},
    "required": ["message", "type", "param", "code"],
}
#: An error of these routes, or of a request that does not reach them.
ERROR_SCHEMA = any_of({"type": "object", "properties": {"error": _ERROR}, "required": ["error"]}, ErrorBody)

#: More messages than any context holds, which still take only a fraction of a second to check.
MAX_MESSAGES = 10_000

#: Prompts in a request, and the tokens of an answer that sets no limit, as in OpenAI's API.
MAX_PROMPTS, DEFAULT_TEXT_TOKENS = 128, 16

#: The fields of a message that a chat template uses.
_MESSAGE_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id")


# Requests


@frozen
class ChatRequest:
    """A chat completion request; `include_usage`: the stream ends with a chunk of token counts."""

    request: InferenceRequest
    include_usage: bool


def read_request(body: Mapping[str, Any], base_model: str) -> ChatRequest:
    """Decode a body that matches `CHAT_REQUEST`. Raises a 400."""
    fields = {name: body[name] for name in _SHARED if body.get(name) is not None}
    fields["messages"] = _messages(body.get("messages"))
    template = {} if body.get("chat_template_kwargs") is None else body["chat_template_kwargs"]
    known = isinstance(template, Mapping) and not template.keys() - {"enable_thinking"}
    if not known or not all(isinstance(value, bool) for value in template.values()):
        raise invalid_field("chat_template_kwargs", 'must be an object like {"enable_thinking": false}')
    fields = {**template, **fields}
    stream: Any = False if body.get("stream") is None else body["stream"]
    request = InferenceRequest(**fields, base_model=base_model, max_tokens=_max_tokens(body), stream=stream)
    try:
        request.check()
    except InvalidConfig as error:
        newer_name = error.field == "max_tokens" and body.get("max_tokens") is None
        raise config_error(error, "max_completion_tokens" if newer_name else error.field) from None
    return ChatRequest(request, include_usage(body))


def _messages(value: Any) -> Any:
    """Drop the fields that no template uses, and map the role `developer` to `system`."""
    if not isinstance(value, list):
        return value
    if len(value) > MAX_MESSAGES:
        raise invalid_field("messages", f"must be at most {MAX_MESSAGES}, not {len(value)}")
    return [_message(f"messages[{index}]", message) for index, message in enumerate(value)]


def _message(path: str, message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    for name in ("audio", "function_call"):
        if message.get(name):
            raise invalid_field(f"{path}.{name}", "is not supported", "leave it out")
    fields = {name: message[name] for name in _MESSAGE_FIELDS if message.get(name) is not None}
    return {**fields, "role": "system"} if fields.get("role") == "developer" else fields


def _max_tokens(body: Mapping[str, Any]) -> Any:
    older, newer = body.get("max_tokens"), body.get("max_completion_tokens")
    if older is not None and newer is not None and older != newer:
        raise invalid_field("max_tokens", "differs from max_completion_tokens, its newer name", "send one of them")
    return newer if older is None else older


def include_usage(body: Mapping[str, Any]) -> bool:
    """Return whether a stream ends with a chunk of token counts. Raises a 400."""
    options, known = body.get("stream_options"), _STREAM_OPTIONS["properties"]
    if options is None:
        return False
    if not isinstance(options, Mapping) or not all(isinstance(value, bool) for value in options.values()):
        raise invalid_field("stream_options", 'must be an object like {"include_usage": true}')
    for name in options:
        if name not in known:
            problem = f"is not a known field; the fields are {' and '.join(known)}"
            raise invalid_field(f"stream_options.{name[:80]}", problem)
    if not body.get("stream"):
        raise invalid_field("stream_options", "requires stream: true")
    return bool(options.get("include_usage"))


# Text completions


@frozen
class TextRequest:
    """A text completion: prompts to continue, as texts or tokens.

    `logprobs` is the number of likely tokens to return with each token. `max_tokens` 0, with
    `echo`, returns the prompt alone.
    """

    prompts: tuple[str | tuple[int, ...], ...]
    max_tokens: int | None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | Sequence[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None
    n: int | None = None
    logprobs: int | None = None
    echo: bool = False
    stream: bool = False
    include_usage: bool = False


def read_text_request(body: Mapping[str, Any]) -> TextRequest:
    """Decode a body that matches `COMPLETION_REQUEST`. Raises a 400."""
    fields = {name: body[name] for name in (*_SAMPLING, "logprobs") if body.get(name) is not None}
    echo, stream = bool(body.get("echo")), bool(body.get("stream"))
    max_tokens = body.get("max_tokens")
    request = TextRequest(
        _prompts(body.get("prompt")),
        DEFAULT_TEXT_TOKENS if max_tokens is None else max_tokens,
        echo=echo,
        stream=stream,
        include_usage=include_usage(body),
        **fields,
    )
    try:
        if request.logprobs is not None:
            Integer(0, MAX_TOP_LOGPROBS)("logprobs", request.logprobs)
        check_sampling(evolve(request, max_tokens=None) if max_tokens == 0 and echo else request)
    except InvalidConfig as error:
        raise config_error(error, error.field) from None
    return request


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """Return the prompts; a list of numbers is one prompt, of tokens."""
    if isinstance(value, str) or _is_tokens(value):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(one, str) or _is_tokens(one) for one in value):
        raise invalid_field("prompt", "must be a string, a list of token ids, or a list of either")
    if len(value) > MAX_PROMPTS:
        raise invalid_field("prompt", f"must be at most {MAX_PROMPTS} prompts, not {len(value)}", "send fewer at once")
    return tuple(one if isinstance(one, str) else tuple(one) for one in value)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)
