"""Convert messages with tools and calls to messages for the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from arkor.backend.inference.messages import ToolChoice
from arkor.backend.inference.tool_calls.detect import ToolCallFormat
from arkor.protocol.chat import message_text

Message = Mapping[str, Any]


def render_tools(
    messages: Sequence[Message], tool_choice: ToolChoice | None, call_format: ToolCallFormat
) -> list[dict[str, Any]]:
    """Return messages for the template, with tools as text if it does not support them."""
    if call_format.native:
        return [_with_parsed_arguments(message) for message in messages]
    converted = _merge_tool_results([_as_plain_text(message) for message in messages])
    return converted if tool_choice is None else _with_tool_prompt(converted, tool_choice)


def _with_parsed_arguments(message: Message) -> dict[str, Any]:
    """Replace JSON arguments by objects, which templates encode themselves."""
    converted = {**message, "content": message_text(message)}
    if message.get("tool_calls"):
        converted["tool_calls"] = [
            {**call, "type": "function", "function": {**call["function"], "arguments": _parse_arguments(call)}}
            for call in message["tool_calls"]
        ]
    return converted


def _parse_arguments(call: Mapping[str, Any]) -> Any:
    try:
        return json.loads(call["function"]["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call["function"]["arguments"]


def _as_plain_text(message: Message) -> dict[str, Any]:
    text = message_text(message)
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    if message.get("tool_calls"):
        calls = [{"name": c["function"]["name"], "arguments": _parse_arguments(c)} for c in message["tool_calls"]]
        rendered = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
        text = "\n".join([text, *rendered] if text else rendered)
    return {"role": message["role"], "content": text}


def _merge_tool_results(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge consecutive results to one turn, for templates that require alternating turns."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        is_result = message["content"].startswith("<tool_response>") and message["role"] == "user"
        if is_result and merged and merged[-1]["role"] == "user" and "<tool_response>" in merged[-1]["content"]:
            merged[-1] = {**message, "content": f"{merged[-1]['content']}\n{message['content']}"}
        else:
            merged.append(message)
    return merged


def _with_tool_prompt(messages: list[dict[str, Any]], tool_choice: ToolChoice) -> list[dict[str, Any]]:
    """Describe the tools in the system message."""
    listing = "\n".join(json.dumps(function, ensure_ascii=False) for function in tool_choice.callable)
    prompt = (
        "You can call these functions, each described by a line of JSON:\n"
        f"<tools>\n{listing}\n</tools>\n"
        "To call one, write:\n"
        '<tool_call>\n{"name": <its name>, "arguments": <an object that fits its parameters>}\n</tool_call>'
    )
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{prompt}"}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]
