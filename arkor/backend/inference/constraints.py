"""`response_format` and `structured_outputs` of a request → the constraint on its answer, or what is wrong with them.

What is decided here needs no model; how an answer is held to a constraint is in `grammar.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from arkor.backend.inference.json_schema import InvalidSchema, check_schema, closed
from arkor.backend.inference.messages import Constraint
from arkor.errors import InvalidConfig
from arkor.protocol.chat import InferenceRequest

KINDS = ("json", "regex", "choice", "grammar", "json_object")
MODIFIERS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")

#: The longest regex or grammar, in characters; how many choices there may be.
LONGEST, MOST_CHOICES = 100_000, 10_000

#: Between two tokens of JSON: enough to look nice, and never so much that an answer is nothing else.
WHITESPACE = r"[ \t\n\r]{0,12}"

_TIMES = re.compile(r"\{\d+(,\d*)?\}|\(\?:")
_BLANK = re.compile(r"([ \t\n\r\[\]()*+?|]|\\[ntrs]|\\x(20|09|0[aAdD]))*")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def constraint_of(wanted: InferenceRequest) -> Constraint | None:
    """None when the answer is free. Raises `InvalidConfig`, for a schema `InvalidSchema`."""
    formatted = None if wanted.response_format is None else _of_response_format(wanted.response_format)
    if wanted.structured_outputs is None:
        return formatted
    structured = _of_structured_outputs(wanted.structured_outputs)
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
    _only(value, "response_format", ("type", "json_schema") if kind == "json_schema" else ("type",))
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint("json", {"type": "object"}, "response_format", WHITESPACE)
    return _of_json_schema(value.get("json_schema"))


def _of_json_schema(value: Any) -> Constraint:
    field = "response_format.json_schema"
    if not isinstance(value, Mapping) or "schema" not in value:
        raise InvalidConfig(field, 'must be an object like {"name": "answer", "schema": {…}, "strict": true}')
    _only(value, field, ("name", "description", "schema", "strict"))
    if not isinstance(value.get("name"), str) or not _NAME.fullmatch(value["name"]):
        raise InvalidConfig(f"{field}.name", "must be 1 to 64 letters, digits, _ or -")
    strict = _switch(value, field, "strict")
    check_schema(f"{field}.schema", value["schema"], strict=strict)
    return Constraint("json", dict(value["schema"]), f"{field}.schema", WHITESPACE)


# structured_outputs


def _of_structured_outputs(value: Any) -> Constraint:
    field = "structured_outputs"
    if not isinstance(value, Mapping):
        raise InvalidConfig(field, 'must be an object like {"choice": ["yes", "no"]}')
    said = {name: one for name, one in value.items() if one is not None and one != {"json_object": False}.get(name)}
    _only(said, field, (*KINDS, *MODIFIERS))
    kinds = [name for name in KINDS if name in said]
    if len(kinds) != 1:
        got = " and ".join(kinds) or "none"
        raise InvalidConfig(field, f"must have exactly one of {', '.join(KINDS)}; there is {got}")
    [kind] = kinds
    return {
        "json": _of_json,
        "json_object": _of_json,
        "regex": _of_regex,
        "choice": _of_choice,
        "grammar": _of_grammar,
    }[kind](said, f"{field}.{kind}")


def _of_json(said: Mapping[str, Any], field: str) -> Constraint:
    if "json" in said:
        schema = _parsed(said["json"], field)
        check_schema(field, schema, strict=False)
    elif said["json_object"] is True:
        schema = {"type": "object"}
    else:
        raise InvalidConfig(field, "must be true")
    if _switch(said, "structured_outputs", "disable_additional_properties"):
        schema = closed(schema)
    return Constraint("json", dict(schema), field, _whitespace(said))


def _parsed(schema: Any, field: str) -> Any:
    """A schema may come as a string of JSON, too."""
    if not isinstance(schema, str):
        return schema
    try:
        return json.loads(schema)
    except (ValueError, RecursionError):
        raise InvalidSchema(field, "must be a JSON schema: an object, or one as a string of JSON") from None


def _whitespace(said: Mapping[str, Any]) -> str:
    disabled = _switch(said, "structured_outputs", "disable_any_whitespace")
    pattern = said.get("whitespace_pattern")
    if pattern is None:
        return "" if disabled else WHITESPACE
    field = "structured_outputs.whitespace_pattern"
    if disabled:
        raise InvalidConfig(field, "cannot stand beside disable_any_whitespace: true")
    if not isinstance(pattern, str) or not 0 < len(pattern) <= 200:
        raise InvalidConfig(field, r'must be a regular expression of at most 200 characters, like "[ \n]?"')
    if not _BLANK.fullmatch(_TIMES.sub("", pattern)):
        raise InvalidConfig(field, r"must match nothing but spaces, \t, \n and \r, which are JSON's whitespace")
    return pattern.replace(r"\s", r"[ \t\n\r]")


def _of_regex(said: Mapping[str, Any], field: str) -> Constraint:
    _no_modifiers(said)
    return Constraint("regex", _text(said["regex"], field, "a regular expression"), field)


def _of_grammar(said: Mapping[str, Any], field: str) -> Constraint:
    _no_modifiers(said)
    return Constraint("grammar", _text(said["grammar"], field, "a grammar in Lark's or GBNF's syntax"), field)


def _of_choice(said: Mapping[str, Any], field: str) -> Constraint:
    _no_modifiers(said)
    choices = said["choice"]
    if not isinstance(choices, list) or not 0 < len(choices) <= MOST_CHOICES:
        raise InvalidConfig(field, f"must be a list of 1 to {MOST_CHOICES} strings")
    for index, choice in enumerate(choices):
        _text(choice, f"{field}[{index}]", "a string")
    return Constraint("choice", list(choices), field)


# What they have in common


def _text(value: Any, field: str, what: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST:
        raise InvalidConfig(field, f"must be {what} of 1 to {LONGEST} characters")
    return value


def _no_modifiers(said: Mapping[str, Any]) -> None:
    for name in MODIFIERS:
        if said.get(name):
            raise InvalidConfig(f"structured_outputs.{name}", "belongs to json and json_object alone")


def _switch(value: Mapping[str, Any], field: str, name: str) -> bool:
    switch = value.get(name)
    if switch not in (None, True, False) or isinstance(switch, (int, float)) != isinstance(switch, bool):
        raise InvalidConfig(f"{field}.{name}", "must be true or false")
    return bool(switch)


def _only(value: Mapping[str, Any], field: str, known: tuple[str, ...]) -> None:
    for name in value:
        if name not in known:
            raise InvalidConfig(f"{field}.{name[:80]}", f"is no field of it; there are {', '.join(known)}")
