"""Conversion between OpenAI's chat completions and our requests and errors.

A field that would change the response and is not supported is rejected, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from arkor.backend.http.errors import ApiError, config_error, invalid_field
from arkor.backend.http.openapi import ErrorBody
from arkor.backend.http.schema import BOOLEAN, TEXT, any_of, class_schema, object_schema
from arkor.backend.inference.messages import GenerationError
from arkor.errors import InvalidConfig
from arkor.protocol.chat import InferenceRequest
from arkor.protocol.codec import camel_case

#: Fields that `InferenceRequest` has by the same names.
_SHARED = (  # noqa: SIM905
    "messages temperature top_p stop seed tools tool_choice parallel_tool_calls response_format structured_outputs"
).split()

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
]

#: vLLM's older names of `structured_outputs`.
_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")

#: Fields that are not supported, with the values (besides null) that request nothing.
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
    "reasoning_effort": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    **dict.fromkeys(("audio", "prediction", "verbosity", "web_search_options", *_GUIDED), ()),
}

_ALTERNATIVES = {
    "n": "each request gets one response",
    "functions": "use tools",
    "function_call": "use tool_choice",
    **dict.fromkeys(_GUIDED, "use structured_outputs"),
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
        **{name: {} for name in _IGNORED},
        **{
            name: {
                "enum": [*values, None],
                "description": f"left out; {_ALTERNATIVES.get(name, 'it is not supported')}",
            }
            for name, values in _UNSUPPORTED.items()
        },
    }
)
CHAT_REQUEST["required"] = ["messages"]

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
    stream: Any = False if body.get("stream") is None else body["stream"]
    request = InferenceRequest(**fields, base_model=base_model, max_tokens=_max_tokens(body), stream=stream)
    try:
        request.check()
    except InvalidConfig as error:
        newer_name = error.field == "max_tokens" and body.get("max_tokens") is None
        raise config_error(error, "max_completion_tokens" if newer_name else error.field) from None
    return ChatRequest(request, _include_usage(body))


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


def _include_usage(body: Mapping[str, Any]) -> bool:
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


# Errors


def public_error(error: ApiError | InvalidConfig | GenerationError) -> ApiError:
    """Return the error for callers of a deployment: OpenAI's names, no remedies for the owner."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidConfig):
        return config_error(error, error.field)
    return ApiError(error.status, error.problem, error.code, field=error.field)


def error_json(error: ApiError) -> dict[str, Any]:
    """Return the `error` object that OpenAI's clients read."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {"message": str(error), "type": kind, "param": error.field, "code": error.code}
