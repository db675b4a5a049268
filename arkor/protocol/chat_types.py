"""The types of messages, tools and formats, for editors and type checkers.

They are plain dicts, in the form of OpenAI's chat completions.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict


class TextPart(TypedDict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class FunctionCall(TypedDict):
    """A call of a function; `arguments` is JSON in a string."""

    name: str
    arguments: str


class _ToolCall(TypedDict):
    function: FunctionCall


class ToolCall(_ToolCall, total=False):
    """A call of a tool, in a message of the assistant; the tool's message refers to its `id`."""

    id: str
    type: Literal["function"]


class _ChatMessage(TypedDict):
    role: Literal["system", "user", "assistant", "tool"]


class ChatMessage(_ChatMessage, total=False):
    """A message of a chat. Only one of the assistant with `tool_calls` may lack `content`."""

    content: str | Sequence[TextPart] | None
    name: str
    reasoning_content: str
    tool_calls: Sequence[ToolCall]
    tool_call_id: str


class _Function(TypedDict):
    name: str


class Function(_Function, total=False):
    """A function that the model may call; `parameters` is the JSON Schema of its arguments."""

    description: str
    parameters: Mapping[str, Any]
    strict: bool


class Tool(TypedDict):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class _JsonSchema(TypedDict):
    name: str
    schema: Mapping[str, Any]


class JsonSchema(_JsonSchema, total=False):
    """A named JSON Schema; `strict` demands closed objects whose properties are all required."""

    description: str
    strict: bool


class _ResponseFormat(TypedDict):
    type: Literal["text", "json_object", "json_schema"]


class ResponseFormat(_ResponseFormat, total=False):
    """The form of the answer; `json_schema` belongs to the type of that name."""

    json_schema: JsonSchema


class StructuredOutputs(TypedDict, total=False):
    """A constraint on the answer: exactly one of the first five, and options."""

    json: Mapping[str, Any] | str
    regex: str
    choice: Sequence[str]
    grammar: str
    json_object: Literal[True]
    disable_any_whitespace: bool
    disable_additional_properties: bool
    whitespace_pattern: str


#: The types of the fields of a chat completion. Plain mappings are accepted, too.
Messages = Sequence[ChatMessage] | Sequence[Mapping[str, Any]]
Tools = Sequence[Tool] | Sequence[Mapping[str, Any]]
Format = ResponseFormat | Mapping[str, Any]
Constraint = StructuredOutputs | Mapping[str, Any]


class ChatOptions(TypedDict, total=False):
    """The keywords of `infer`, as `Trainer.chat` passes them on."""

    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    stream: bool
    tools: Tools | None
    tool_choice: Any
    response_format: Format | type | None
    structured_outputs: Constraint | None
    stop: str | Sequence[str] | None
    seed: int | None
    parallel_tool_calls: bool | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[str, float] | None
    n: int | None
    logprobs: bool | None
    top_logprobs: int | None
    enable_thinking: bool | None
    reasoning_effort: str | None
    abort_signal: threading.Event | None
