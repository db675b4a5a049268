"""`response_format` and `structured_outputs` of a request → the constraint on its answer, or what is wrong with them.

What is decided here needs no model; how an answer is held to a constraint is in `grammar.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from arkor.backend.inference.json_schema import InvalidSchema, check_schema, close_objects
from arkor.backend.inference.messages import Constraint
from arkor.errors import InvalidConfig
from arkor.protocol.chat import InferenceRequest

KINDS = ("json", "regex", "choice", "grammar", "json_object")
MODIFIERS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")

#: The longest regex or grammar, in characters; how many choices there may be.
MAX_CONSTRAINT_LENGTH, MAX_CHOICES = 100_000, 10_000

#: Between two tokens of JSON: enough to look nice, and never so much that an answer is nothing else.
WHITESPACE = r"[ \t\n\r]{0,12}"

_REPETITION = re.compile(r"\{\d+(,\d*)?\}|\(\?:")
_WHITESPACE_PATTERN = re.compile(r"([ \t\n\r\[\]()*+?|]|\\[ntrs]|\\x(20|09|0[aAdD]))*")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def parse_constraint(request: InferenceRequest) -> Constraint | None:
    """None when the answer is free. Raises `InvalidConfig`, for a schema `InvalidSchema`."""
    formatted = None if request.response_format is None else _of_response_format(request.response_format)
    if request.structured_outputs is None:
        return formatted
    structured = _of_structured_outputs(request.structured_outputs)
    if formatted is not None:
        raise InvalidConfig("structured_outputs", "cannot stand beside a response_format that constrains, too")
    return structured


# response_format


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
        return Constraint("json", {"type": "object"}, "response_format", WHITESPACE)
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
        given = " and ".join(kinds) or "none"
        raise InvalidConfig(field, f"must have exactly one of {', '.join(KINDS)}; there is {given}")
    [kind] = kinds
    return {
        "json": _of_json,
        "json_object": _of_json,
        "regex": _of_regex,
        "choice": _of_choice,
        "grammar": _of_grammar,
    }[kind](options, f"{field}.{kind}")


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
    """A schema may come as a string of JSON, too."""
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except (ValueError, RecursionError):
        raise InvalidSchema(field, "must be a JSON schema: an object, or one as a string of JSON") from None


def _whitespace(options: Mapping[str, Any]) -> str:
    disabled = _boolean(options, "structured_outputs", "disable_any_whitespace")
    pattern = options.get("whitespace_pattern")
    if pattern is None:
        return "" if disabled else WHITESPACE
    field = "structured_outputs.whitespace_pattern"
    if disabled:
        raise InvalidConfig(field, "cannot stand beside disable_any_whitespace: true")
    if not isinstance(pattern, str) or not 0 < len(pattern) <= 200:
        raise InvalidConfig(field, r'must be a regular expression of at most 200 characters, like "[ \n]?"')
    if not _WHITESPACE_PATTERN.fullmatch(_REPETITION.sub("", pattern)):
        raise InvalidConfig(field, r"must match nothing but spaces, \t, \n and \r, which are JSON's whitespace")
    return pattern.replace(r"\s", r"[ \t\n\r]")


def _of_regex(options: Mapping[str, Any], field: str) -> Constraint:
    _reject_modifiers(options)
    return Constraint("regex", _text(options["regex"], field, "a regular expression"), field)


def _of_grammar(options: Mapping[str, Any], field: str) -> Constraint:
    _reject_modifiers(options)
    return Constraint("grammar", _text(options["grammar"], field, "a grammar in Lark's or GBNF's syntax"), field)


def _of_choice(options: Mapping[str, Any], field: str) -> Constraint:
    _reject_modifiers(options)
    choices = options["choice"]
    if not isinstance(choices, list) or not 0 < len(choices) <= MAX_CHOICES:
        raise InvalidConfig(field, f"must be a list of 1 to {MAX_CHOICES} strings")
    for index, choice in enumerate(choices):
        _text(choice, f"{field}[{index}]", "a string")
    return Constraint("choice", list(choices), field)


# What they have in common


def _text(value: Any, field: str, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_CONSTRAINT_LENGTH:
        raise InvalidConfig(field, f"must be {what} of 1 to {MAX_CONSTRAINT_LENGTH} characters")
    return value


def _reject_modifiers(options: Mapping[str, Any]) -> None:
    for name in MODIFIERS:
        if options.get(name):
            raise InvalidConfig(f"structured_outputs.{name}", "belongs to json and json_object alone")


def _boolean(value: Mapping[str, Any], field: str, name: str) -> bool:
    flag = value.get(name)
    if flag not in (None, True, False) or isinstance(flag, (int, float)) != isinstance(flag, bool):
        raise InvalidConfig(f"{field}.{name}", "must be true or false")
    return bool(flag)


def _reject_unknown(value: Mapping[str, Any], field: str, known: tuple[str, ...]) -> None:
    for name in value:
        if name not in known:
            raise InvalidConfig(f"{field}.{name[:80]}", f"is no field of it; there are {', '.join(known)}")
