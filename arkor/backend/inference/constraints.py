"""Parse `response_format`, `structured_outputs`, `tools` and `tool_choice` of a request.

Errors are detected without a model. `grammar.py` compiles the constraint on the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from attrs import evolve

from arkor.backend.inference.json_schema import InvalidSchema, check_schema, close_objects
from arkor.backend.inference.messages import Constraint, ToolChoice
from arkor.backend.inference.prompted_schema import find_prompted_schema
from arkor.errors import InvalidConfig
from arkor.protocol.chat import InferenceRequest

KINDS = ("json", "regex", "choice", "grammar", "json_object")
MODIFIERS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")

#: Limits: characters of a regex or grammar, number of choices, number of tools.
MAX_CONSTRAINT_LENGTH, MAX_CHOICES, MAX_TOOLS = 100_000, 10_000, 128

#: Whitespace between two JSON tokens: enough for indentation, limited so that it cannot fill the
#: answer.
WHITESPACE = r"[ \t\n\r]{0,12}"

_REPETITION = re.compile(r"\{\d+(,\d*)?\}|\(\?:")
_WHITESPACE_PATTERN = re.compile(r"([ \t\n\r\[\]()*+?|]|\\[ntrs]|\\x(20|09|0[aAdD]))*")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def parse_constraint(request: InferenceRequest) -> Constraint | None:
    """Return None if unconstrained. Raise `InvalidConfig`, for a schema `InvalidSchema`."""
    formatted = None if request.response_format is None else _of_response_format(request.response_format)
    if request.structured_outputs is None:
        prompted = find_prompted_schema(request.messages) if _allows_any_object(formatted) else None
        return formatted if formatted is None or prompted is None else evolve(formatted, value=prompted, prompted=True)
    structured = _of_structured_outputs(request.structured_outputs)
    if formatted is not None:
        raise InvalidConfig(
            "structured_outputs", "cannot be combined with a response_format that constrains the answer"
        )
    return structured


def _allows_any_object(constraint: Constraint | None) -> bool:
    return constraint is not None and constraint.value == _ANY_OBJECT


# response_format

_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def _of_response_format(value: Any) -> Constraint | None:
    if not isinstance(value, Mapping):
        raise InvalidConfig("response_format", 'must be an object like {"type": "json_object"}')
    kind = value.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise InvalidConfig("response_format.type", "must be text, json_object or json_schema")
    _reject_unknown(value, "response_format", ("type", "json_schema") if kind == "json_schema" else ("type",))
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint("json", dict(_ANY_OBJECT), "response_format", WHITESPACE)
    return _of_json_schema(value.get("json_schema"))


def _of_json_schema(value: Any) -> Constraint:
    field = "response_format.json_schema"
    if not isinstance(value, Mapping) or "schema" not in value:
        raise InvalidConfig(field, 'must be an object like {"name": "answer", "schema": {…}, "strict": true}')
    _reject_unknown(value, field, ("name", "description", "schema", "strict"))
    if not isinstance(value.get("name"), str) or not _NAME.fullmatch(value["name"]):
        raise InvalidConfig(f"{field}.name", "must be 1 to 64 letters, digits, _ or -")
    strict = _boolean(value, field, "strict")
    check_schema(f"{field}.schema", value["schema"], strict=strict)
    return Constraint("json", dict(value["schema"]), f"{field}.schema", WHITESPACE)


# structured_outputs


def _of_structured_outputs(value: Any) -> Constraint:
    field = "structured_outputs"
    if not isinstance(value, Mapping):
        raise InvalidConfig(field, 'must be an object like {"choice": ["yes", "no"]}')
    options = {name: one for name, one in value.items() if one is not None and one != {"json_object": False}.get(name)}
    _reject_unknown(options, field, (*KINDS, *MODIFIERS))
    kinds = [name for name in KINDS if name in options]
    if len(kinds) != 1:
        raise InvalidConfig(field, f"must have exactly one of {', '.join(KINDS)}, not {' and '.join(kinds) or 'none'}")
    [kind] = kinds
    field = f"{field}.{kind}"
    if kind in ("json", "json_object"):
        return _of_json(options, field)
    for name in MODIFIERS:
        if options.get(name):
            raise InvalidConfig(f"structured_outputs.{name}", "applies to json and json_object only")
    if kind == "choice":
        return _of_choice(options["choice"], field)
    description = "a regular expression" if kind == "regex" else "a grammar in Lark's or GBNF's syntax"
    return Constraint(kind, _text(options[kind], field, description), field)


def _of_json(options: Mapping[str, Any], field: str) -> Constraint:
    if "json" in options:
        schema = _parse_schema(options["json"], field)
        check_schema(field, schema, strict=False)
    elif options["json_object"] is True:
        schema = {"type": "object"}
    else:
        raise InvalidConfig(field, "must be true")
    if _boolean(options, "structured_outputs", "disable_additional_properties"):
        schema = close_objects(schema)
    return Constraint("json", dict(schema), field, _whitespace(options))


def _parse_schema(schema: Any, field: str) -> Any:
    """Decode a schema that is given as a string of JSON."""
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except (ValueError, RecursionError):
        raise InvalidSchema(field, "must be a JSON schema: an object, or a string of JSON") from None


def _whitespace(options: Mapping[str, Any]) -> str:
    disabled = _boolean(options, "structured_outputs", "disable_any_whitespace")
    pattern = options.get("whitespace_pattern")
    if pattern is None:
        return "" if disabled else WHITESPACE
    field = "structured_outputs.whitespace_pattern"
    if disabled:
        raise InvalidConfig(field, "cannot be combined with disable_any_whitespace: true")
    if not isinstance(pattern, str) or not 0 < len(pattern) <= 200:
        raise InvalidConfig(field, r'must be a regular expression of at most 200 characters, like "[ \n]?"')
    if not _WHITESPACE_PATTERN.fullmatch(_REPETITION.sub("", pattern)):
        raise InvalidConfig(field, r"must match only JSON whitespace: spaces, \t, \n and \r")
    return pattern.replace(r"\s", r"[ \t\n\r]")


def _of_choice(choices: Any, field: str) -> Constraint:
    if not isinstance(choices, list) or not 0 < len(choices) <= MAX_CHOICES:
        raise InvalidConfig(field, f"must be a list of 1 to {MAX_CHOICES} strings")
    for index, choice in enumerate(choices):
        _text(choice, f"{field}[{index}]", "a string")
    return Constraint("choice", list(choices), field)


# tools and tool_choice


def parse_tool_choice(request: InferenceRequest) -> ToolChoice | None:
    """Return None if no tool may be called. Raise `InvalidConfig`, for a schema `InvalidSchema`."""
    tools = _parse_tools(request.tools)
    choice = request.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidConfig("tool_choice", "requires a call, but tools is empty")
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
            raise InvalidConfig(f"tools[{index}].function.name", f"{name!r} is already the name of an earlier tool")
        names.add(name)
    return tuple(value)


def _check_tool(field: str, tool: Any) -> None:
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
        raise InvalidConfig(field, 'must be {"type": "function", "function": {"name": …, "parameters": {…}}}')
    function = tool["function"]
    field = f"{field}.function"
    _reject_unknown(function, field, ("name", "description", "parameters", "strict"))
    if not isinstance(function.get("name"), str) or not _TOOL_NAME.fullmatch(function["name"]):
        raise InvalidConfig(f"{field}.name", "must be 1 to 64 letters, digits, _, . or -")
    if not isinstance(function.get("description"), (str, type(None))):
        raise InvalidConfig(f"{field}.description", "must be a string")
    strict, parameters = _boolean(function, field, "strict"), function.get("parameters")
    if parameters is not None:
        check_schema(f"{field}.parameters", parameters, strict=strict)
        if parameters.get("type", "object") != "object":
            raise InvalidSchema(f"{field}.parameters.type", "must be object: the arguments of a function are an object")


def _chosen_name(choice: Any, tools: tuple[Mapping[str, Any], ...]) -> str:
    function = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidConfig(
            "tool_choice", 'must be "auto", "none", "required" or {"type": "function", "function": {"name": …}}'
        )
    names = [tool["function"]["name"] for tool in tools]
    if function["name"] not in names:
        raise InvalidConfig(
            "tool_choice", f"{function['name'][:80]!r} is not among the tools: {', '.join(names)[:300]}"
        )
    return str(function["name"])


def _text(value: Any, field: str, description: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CONSTRAINT_LENGTH:
        raise InvalidConfig(field, f"must be {description} of 1 to {MAX_CONSTRAINT_LENGTH} characters")
    return value


def _boolean(value: Mapping[str, Any], field: str, name: str) -> bool:
    flag = value.get(name)
    if flag not in (None, True, False) or isinstance(flag, (int, float)) != isinstance(flag, bool):
        raise InvalidConfig(f"{field}.{name}", "must be true or false")
    return bool(flag)


def _reject_unknown(value: Mapping[str, Any], field: str, known: tuple[str, ...]) -> None:
    for name in value:
        if name not in known:
            raise InvalidConfig(f"{field}.{name[:80]}", "is unknown", f"use {', '.join(known)}")
