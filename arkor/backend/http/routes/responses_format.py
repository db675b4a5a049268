"""Conversion of requests of OpenAI's Responses API to our requests.

Only its stateless part is served: responses are not stored, so `previous_response_id` and
`conversation` are rejected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from arkor.backend.http.errors import config_error, invalid_field
from arkor.backend.http.routes.openai_format import MAX_MESSAGES, unsupported
from arkor.backend.http.schema import BOOLEAN, STRING, Schema, any_of, array_schema, class_schema, object_schema
from arkor.errors import InvalidConfig
from arkor.formatting import quote
from arkor.protocol.chat import InferenceRequest

#: Finds an item of an earlier response by its id.
FindItem = Callable[[str], Mapping[str, Any] | None]

#: Fields that do not change the response.
_IGNORED = [
    "model",
    "user",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "truncation",
    "max_tool_calls",
]

#: Fields that are not supported, with the values (besides null) that request nothing.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {"background": (False,), "context_management": ([],), "moderation": ()}

#: Fields of the stateful part, and the reason for rejecting them.
_STATEFUL = {
    "previous_response_id": "is not supported: responses are not stored",
    "conversation": "is not supported: conversations are not stored",
    "prompt": "is not supported: prompt templates are not stored",
}

_INCLUDABLE_LOGPROBS = "message.output_text.logprobs"

#: Patterns of our field names, and the names in this API.
_NAMES = (
    (r"^messages$", "input"),
    (r"^max_tokens$", "max_output_tokens"),
    (r"^response_format\.json_schema", "text.format"),
    (r"^response_format", "text.format"),
    (r"^(tools\[\d+\])\.function", r"\1"),
    (r"^reasoning_effort$", "reasoning.effort"),
    (r"^logprobs$", "include"),
)

_INFERENCE = class_schema(InferenceRequest)["properties"]
_ITEM: Schema = {"type": "object"}
_NULL: Schema = {"type": "null"}


def _optional(schema: Schema) -> Schema:
    return any_of(schema, _NULL)


#: The body of a request.
RESPONSE_REQUEST = object_schema(
    {
        "input": any_of(STRING, array_schema(_ITEM)),
        "instructions": _optional(STRING),
        "max_output_tokens": _INFERENCE["maxTokens"],
        "temperature": _INFERENCE["temperature"],
        "top_p": _INFERENCE["topP"],
        "top_logprobs": _INFERENCE["topLogprobs"],
        "stream": {"type": ["boolean", "null"]},
        "stream_options": _optional(object_schema({"include_obfuscation": BOOLEAN})),
        "tools": _INFERENCE["tools"],
        "tool_choice": {},
        "parallel_tool_calls": {"type": ["boolean", "null"]},
        "text": _optional({"type": "object"}),
        "reasoning": _optional({"type": "object"}),
        "include": _optional(array_schema(STRING)),
        "metadata": _optional({"type": "object", "additionalProperties": STRING}),
        **{name: {"description": f"left out; it {reason}"} for name, reason in _STATEFUL.items()},
        **{name: {} for name in _IGNORED},
        **unsupported(_UNSUPPORTED),
    }
)
RESPONSE_REQUEST["required"] = ["input"]


@frozen
class ResponsesRequest:
    """A checked request: ours, and the path of the input item that each message comes from."""

    request: InferenceRequest
    origins: Sequence[str]

    def field(self, name: str) -> str:
        """Return the name that a field of our request has in this API."""
        if found := re.match(r"messages\[(\d+)\]", name):
            return self.origins[int(found[1])] + name[found.end() :]
        for ours, theirs in _NAMES:
            if (renamed := re.sub(ours, theirs, name)) != name:
                return renamed
        return name


def read_response_request(body: Mapping[str, Any], base_model: str, find_item: FindItem) -> ResponsesRequest:
    """Decode a body that matches `RESPONSE_REQUEST`. Raises a 400."""
    for name, reason in _STATEFUL.items():
        if body.get(name) is not None:
            raise invalid_field(name, reason, "send the earlier items as input")
    _check_extras(body)
    messages = _Messages(find_item)
    if body.get("instructions") is not None:
        messages.add_instructions(body["instructions"])
    messages.add_input(body["input"])
    tools, tool_choice = _tools(body)
    top_logprobs = body.get("top_logprobs")
    if top_logprobs == 0 and not isinstance(top_logprobs, bool):
        top_logprobs = None
    request = InferenceRequest(
        messages=messages.found,
        base_model=base_model,
        temperature=body.get("temperature"),
        top_p=body.get("top_p"),
        max_tokens=body.get("max_output_tokens"),
        stream=False if body.get("stream") is None else body["stream"],
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=body.get("parallel_tool_calls"),
        response_format=_response_format(body.get("text")),
        logprobs=True if top_logprobs is not None or _INCLUDABLE_LOGPROBS in _include(body) else None,
        top_logprobs=top_logprobs,
        reasoning_effort=_reasoning_effort(body.get("reasoning")),
    )
    converted = ResponsesRequest(request, messages.origins)
    try:
        request.check()
    except InvalidConfig as error:
        raise config_error(error, converted.field(error.field)) from None
    return converted


def _include(body: Mapping[str, Any]) -> Sequence[Any]:
    """Return the further data that are asked for; other kinds than log-probabilities never exist."""
    value = [] if body.get("include") is None else body["include"]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise invalid_field("include", f'must be a list like ["{_INCLUDABLE_LOGPROBS}"]')
    return value


def _check_extras(body: Mapping[str, Any]) -> None:
    """Check the fields that do not reach the model. Raises a 400."""
    metadata, options = body.get("metadata"), body.get("stream_options")
    if metadata is not None and not _is_object_of(metadata, str):
        raise invalid_field("metadata", "must be an object of strings")
    if options is not None and (not _is_object_of(options, bool) or options.keys() - {"include_obfuscation"}):
        raise invalid_field("stream_options", 'must be an object like {"include_obfuscation": false}')


def _is_object_of(value: Any, kind: type) -> bool:
    return isinstance(value, Mapping) and all(isinstance(inner, kind) for inner in value.values())


def _reasoning_effort(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise invalid_field("reasoning", 'must be an object like {"effort": "low"}')
    return value.get("effort")


def _response_format(text: Any) -> Any:
    """Return `text.format` as the `response_format` of chat completions."""
    if text is None:
        return None
    if not isinstance(text, Mapping):
        raise invalid_field("text", 'must be an object like {"format": {"type": "text"}}')
    value = text.get("format")
    if not isinstance(value, Mapping) or value.get("type") != "json_schema":
        return value
    schema = {name: inner for name, inner in value.items() if name != "type" and inner is not None}
    return {"type": "json_schema", "json_schema": schema}


# Tools


def _tools(body: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return `tools` and `tool_choice` of chat completions."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if isinstance(tools, list):
        tools = [_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools)]
    if not isinstance(choice, Mapping):
        return tools, choice
    if choice.get("type") == "function":
        return tools, {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        names = [tool.get("name") if isinstance(tool, Mapping) else None for tool in choice["tools"]]
        return [tool for tool in tools or () if tool["function"].get("name") in names], choice.get("mode", "auto")
    raise invalid_field(
        "tool_choice", 'must be "auto", "none", "required", {"type": "function", "name": …} or of type allowed_tools'
    )


def _tool(path: str, tool: Any) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise invalid_field(path, 'must be {"type": "function", "name": …, "parameters": {…}}')
    if tool.get("type") != "function":
        problem = f"must be function, not {quote(tool.get('type'))}: only functions that the caller runs are supported"
        raise invalid_field(f"{path}.type", problem)
    known = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in known if tool.get(name) is not None}}


# Input


@define
class _Messages:
    """The messages of chat completions for the items of an input."""

    _find_item: FindItem
    found: list[dict[str, Any]] = field(factory=list)
    origins: list[str] = field(factory=list)

    def add_instructions(self, text: Any) -> None:
        if not isinstance(text, str):
            raise invalid_field("instructions", "must be a string")
        if text:
            self._add("instructions", {"role": "system", "content": text})

    def add_input(self, value: Any) -> None:
        if isinstance(value, str):
            self._add("input", {"role": "user", "content": value})
            return
        if not isinstance(value, list):
            raise invalid_field("input", "must be a string or a list of items")
        if len(value) > MAX_MESSAGES:
            raise invalid_field("input", f"must be at most {MAX_MESSAGES} items, not {len(value)}")
        for index, item in enumerate(value):
            self._add_item(f"input[{index}]", item)
        if not self.found:
            raise invalid_field("input", "must have at least one message")

    def _add_item(self, path: str, item: Any) -> None:
        if not isinstance(item, Mapping):
            raise invalid_field(path, 'must be an object like {"role": "user", "content": "Hello"}')
        kind = item.get("type") or ("message" if "role" in item else None)
        if kind == "message":
            self._add_message(path, item)
        elif kind == "function_call":
            self._add_call(path, item)
        elif kind == "function_call_output":
            content = _content(f"{path}.output", item.get("output"))
            self._add(path, {"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        elif kind == "item_reference":
            self._add_item(path, self._referenced(path, item.get("id")))
        elif kind != "reasoning":  # which models here do not write, and no template takes
            problem = "must be message, function_call, function_call_output, reasoning or item_reference"
            raise invalid_field(f"{path}.type", f"{problem}, not {quote(kind)}")

    def _referenced(self, path: str, item_id: Any) -> Mapping[str, Any]:
        item = self._find_item(item_id) if isinstance(item_id, str) else None
        if item is None:
            problem = f"{quote(item_id)} is not an item of a recent response; responses are not stored"
            raise invalid_field(f"{path}.id", problem, "send the item itself (clients do with store: false)")
        return item

    def _add_message(self, path: str, item: Mapping[str, Any]) -> None:
        role = item.get("role")
        message = {"role": "system" if role == "developer" else role, "content": item.get("content")}
        if message["content"] is not None:
            message["content"] = _content(f"{path}.content", message["content"])
        leading_system = bool(self.found) and all(earlier["role"] == "system" for earlier in self.found)
        if message["role"] == "system" and leading_system:  # which most templates take once
            self.found[-1]["content"] += f"\n\n{message['content']}"
        else:
            self._add(path, message)

    def _add_call(self, path: str, item: Mapping[str, Any]) -> None:
        """Add a call to the message of the assistant before it, or to a new one."""
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if not self.found or self.found[-1]["role"] != "assistant":
            self._add(path, {"role": "assistant", "content": ""})
        self.found[-1].setdefault("tool_calls", []).append(call)

    def _add(self, path: str, message: dict[str, Any]) -> None:
        self.found.append(message)
        self.origins.append(path)


def _content(path: str, value: Any) -> str:
    """Return the text of a content: a string, or a list of parts of text."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid_field(path, "must be a string or a list of parts")
    return "".join(_part(f"{path}[{index}]", part) for index, part in enumerate(value))


def _part(path: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    name = "refusal" if kind == "refusal" else "text"
    if kind not in ("input_text", "output_text", "text", "refusal") or not isinstance(part.get(name), str):
        raise invalid_field(path, 'must be {"type": "input_text", "text": "…"}; other parts are not supported')
    return str(part[name])
