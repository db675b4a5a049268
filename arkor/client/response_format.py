"""Structured output: the JSON schema of a class, and instances parsed from responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from arkor.errors import ArkorError, InvalidConfig
from arkor.formatting import one_line

#: The keywords of a JSON schema that contain one schema, a list of schemas, or schemas by name.
_SINGLE_SUBSCHEMAS = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_LIST_SUBSCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAP_SUBSCHEMAS = ("properties", "$defs", "definitions", "patternProperties")


def build_response_format(response_class: Any) -> dict[str, Any]:
    """Return OpenAI's `response_format` for instances of `response_class`.

    It is strict, so every field is written, unless the class contains a dict, whose keys are not
    known in advance. Raise `InvalidConfig` if the class has no JSON schema.
    """
    schema = _inline_root(_schema_of(response_class))
    strict = _is_closed(schema)
    json_schema = {"name": _name(response_class), "schema": _make_strict(schema) if strict else schema}
    return {"type": "json_schema", "json_schema": {**json_schema, **({"strict": True} if strict else {})}}


def parse_instance(response_class: Any, text: str) -> Any:
    """Return the text as an instance of `response_class`; raise `ArkorError` if it does not fit."""
    try:
        if _is_pydantic(response_class):
            return response_class.model_validate_json(text)
        return msgspec.json.decode(text.encode(), type=response_class)
    except ValueError as error:  # the base of the errors of msgspec and Pydantic
        raise ArkorError(f"the response does not fit {_name(response_class)}: {one_line(str(error))}") from error


def _schema_of(response_class: Any) -> dict[str, Any]:
    if _is_pydantic(response_class):
        schema: dict[str, Any] = response_class.model_json_schema()
        return schema
    try:
        return msgspec.json.schema(response_class)
    except (TypeError, NameError) as error:
        reason = str(error).strip().splitlines()[-1]
        expected = "must be an attrs class, a dataclass, a Pydantic model, or a dict like {'type': 'json_object'}"
        raise InvalidConfig("response_format", f"{expected}: {reason}") from None


def _is_pydantic(response_class: Any) -> bool:
    return hasattr(response_class, "model_json_schema") and hasattr(response_class, "model_validate_json")


def _name(response_class: Any) -> str:
    """Return a name as OpenAI requires it: letters, digits, `_` and `-`, at most 64."""
    name = getattr(response_class, "__name__", str(response_class))
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")[:64] or "answer"


def _inline_root(schema: dict[str, Any]) -> dict[str, Any]:
    """Replace a reference at the root, where msgspec puts one, by the object that it refers to."""
    reference = schema.get("$ref", "")
    if not reference.startswith("#/$defs/"):
        return schema
    return {**schema["$defs"][reference.removeprefix("#/$defs/")], "$defs": schema["$defs"]}


def _is_closed(schema: Any) -> bool:
    """Return whether every object in the schema lists all its keys, as strict mode requires."""
    if not isinstance(schema, Mapping):
        return schema is not True
    types = schema.get("type")
    has_keys = types == "object" or (isinstance(types, list) and "object" in types)
    if has_keys and ("properties" not in schema or schema.get("additionalProperties")):
        return False
    return all(_is_closed(inner) for inner in _subschemas(schema))


def _subschemas(schema: Mapping[str, Any]) -> list[Any]:
    one = [schema[key] for key in _SINGLE_SUBSCHEMAS if key in schema and key != "additionalProperties"]
    several = [inner for key in _LIST_SUBSCHEMAS for inner in schema.get(key, ())]
    return [*one, *several, *(inner for key in _MAP_SUBSCHEMAS for inner in schema.get(key, {}).values())]


def _make_strict(schema: Any) -> Any:
    """Require all keys of each object, forbid others, and drop defaults."""
    if not isinstance(schema, Mapping):
        return schema
    plain = {key: value for key, value in schema.items() if key != "default"}
    for key in plain.keys() & {*_SINGLE_SUBSCHEMAS}:
        plain[key] = _make_strict(plain[key])
    for key in plain.keys() & {*_LIST_SUBSCHEMAS}:
        plain[key] = [_make_strict(inner) for inner in plain[key]]
    for key in plain.keys() & {*_MAP_SUBSCHEMAS}:
        plain[key] = {name: _make_strict(inner) for name, inner in plain[key].items()}
    if "properties" in plain:
        plain |= {"required": list(plain["properties"]), "additionalProperties": False}
    return plain
