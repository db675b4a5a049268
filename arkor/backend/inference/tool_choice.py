"""`tools` and `tool_choice` of a request → which tools may or must be called, or what is wrong with them.

How a model writes its calls is in `tool_calls.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from arkor.backend.inference.json_schema import InvalidSchema, check_schema
from arkor.backend.inference.messages import ToolChoice
from arkor.errors import InvalidConfig
from arkor.protocol.chat import InferenceRequest

MAX_TOOLS = 128

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CHOICE_PROBLEM = 'must be "auto", "none", "required" or {"type": "function", "function": {"name": …}}'


def parse_tool_choice(request: InferenceRequest) -> ToolChoice | None:
    """None when nothing may be called. Raises `InvalidConfig`, for a schema `InvalidSchema`."""
    tools = _parse_tools(request.tools)
    choice = request.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidConfig("tool_choice", "asks for a call, but there are no tools")
        return None
    if choice == "none":
        return None
    if choice in (None, "auto", "required"):
        parallel = request.parallel_tool_calls
        forced = choice == "required"
        return ToolChoice(tools, forced=forced, name=None, parallel=bool(parallel) if forced else parallel is not False)
    return ToolChoice(tools, forced=True, name=_chosen_name(choice, tools), parallel=False)


def _parse_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)) or len(value) > MAX_TOOLS:
        raise InvalidConfig("tools", f"must be a list of at most {MAX_TOOLS} tools")
    names: set[str] = set()
    for index, tool in enumerate(value):
        _check_tool(f"tools[{index}]", tool)
        name = tool["function"]["name"]
        if name in names:
            raise InvalidConfig(f"tools[{index}].function.name", f"{name!r} is the name of an earlier tool, too")
        names.add(name)
    return tuple(value)


def _check_tool(field: str, tool: Any) -> None:
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
        raise InvalidConfig(field, 'must be {"type": "function", "function": {"name": …, "parameters": {…}}}')
    function = tool["function"]
    for name in function:
        if name not in ("name", "description", "parameters", "strict"):
            raise InvalidConfig(f"{field}.function.{name[:80]}", "is no field of a function")
    if not isinstance(function.get("name"), str) or not _NAME.fullmatch(function["name"]):
        raise InvalidConfig(f"{field}.function.name", "must be 1 to 64 letters, digits, _, . or -")
    if not isinstance(function.get("description"), (str, type(None))):
        raise InvalidConfig(f"{field}.function.description", "must be a string")
    if not isinstance(function.get("strict"), (bool, type(None))):
        raise InvalidConfig(f"{field}.function.strict", "must be true or false")
    if function.get("parameters") is not None:
        _check_parameters(f"{field}.function.parameters", function)


def _check_parameters(field: str, function: Mapping[str, Any]) -> None:
    parameters = function["parameters"]
    check_schema(field, parameters, strict=bool(function.get("strict")))
    if parameters.get("type", "object") != "object":
        raise InvalidSchema(f"{field}.type", "must be object: a function is called with an object of arguments")


def _chosen_name(choice: Any, tools: tuple[Mapping[str, Any], ...]) -> str:
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidConfig("tool_choice", _CHOICE_PROBLEM)
    names = [tool["function"]["name"] for tool in tools]
    if function["name"] not in names:
        raise InvalidConfig("tool_choice", f"{function['name'][:80]!r} is none of the tools: {', '.join(names)[:300]}")
    return str(function["name"])
