"""A class of yours → the JSON schema that an answer must fit; the answer → an instance of it.

Attrs classes, dataclasses, TypedDicts and their like are read by msgspec; a Pydantic model speaks for itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from arkor.errors import ArkorError, InvalidConfig

#: Where a JSON schema holds further schemas: one, a list of them, or some by name.
_SINGLE_SUBSCHEMAS = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_LIST_SUBSCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAP_SUBSCHEMAS = ("properties", "$defs", "definitions", "patternProperties")


def build_response_format(response_class: Any) -> dict[str, Any]:
    """OpenAI's `response_format` that makes every answer an instance of `response_class`.

    It is strict, every field written out, unless `response_class` has a place for keys that nobody knows beforehand
    (a dict).
    Raises `InvalidConfig` for what no JSON can stand for.
    """
    schema = _inline_root(_schema_of(response_class))
    strict = _is_closed(schema)
    described = {"name": _name(response_class), "schema": _make_strict(schema) if strict else schema}
    return {"type": "json_schema", "json_schema": {**described, **({"strict": True} if strict else {})}}


def parse_instance(response_class: Any, text: str) -> Any:
    """The answer as an instance of `response_class`. Raises `ArkorError` for one that does not fit."""
    import msgspec  # noqa: PLC0415 - a tenth of the time that importing arkor takes, for those who want it

    try:
        if _is_pydantic(response_class):
            return response_class.model_validate_json(text)
        return msgspec.json.decode(text.encode(), type=response_class)
    except ValueError as error:  # msgspec's and Pydantic's errors are both
        reason = " ".join(str(error).split())
        raise ArkorError(f"the answer does not fit {_name(response_class)}: {reason}") from error


def _schema_of(response_class: Any) -> dict[str, Any]:
    import msgspec  # noqa: PLC0415 - see above

    if _is_pydantic(response_class):
        schema: dict[str, Any] = response_class.model_json_schema()
        return schema
    try:
        return msgspec.json.schema(response_class)
    except (TypeError, NameError) as error:
        reason = str(error).strip().splitlines()[-1]
        wanted = "must be an attrs class, a dataclass, a Pydantic model, or a dict like {'type': 'json_object'}"
        raise InvalidConfig("response_format", f"{wanted}: {reason}") from None


def _is_pydantic(response_class: Any) -> bool:
    return hasattr(response_class, "model_json_schema") and hasattr(response_class, "model_validate_json")


def _name(response_class: Any) -> str:
    """As OpenAI wants it: letters, digits, `_` and `-`, at most 64."""
    return (
        re.sub(r"[^A-Za-z0-9_-]+", "_", getattr(response_class, "__name__", str(response_class))).strip("_")[:64]
        or "answer"
    )


def _inline_root(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema with an object at its root, where msgspec puts a reference to one."""
    reference = schema.get("$ref", "")
    if not reference.startswith("#/$defs/"):
        return schema
    return {**schema["$defs"][reference.removeprefix("#/$defs/")], "$defs": schema["$defs"]}


def _is_closed(schema: Any) -> bool:
    """Whether every object in it names all its keys, which strict mode demands."""
    if not isinstance(schema, Mapping):
        return schema is not True
    if "object" in _types(schema) and ("properties" not in schema or schema.get("additionalProperties")):
        return False
    return all(_is_closed(inner) for inner in _subschemas(schema))


def _types(schema: Mapping[str, Any]) -> list[Any]:
    types = schema.get("type")
    return types if isinstance(types, list) else [types]


def _subschemas(schema: Mapping[str, Any]) -> list[Any]:
    one = [schema[key] for key in _SINGLE_SUBSCHEMAS if key in schema and key != "additionalProperties"]
    several = [inner for key in _LIST_SUBSCHEMAS for inner in schema.get(key, ())]
    return [*one, *several, *(inner for key in _MAP_SUBSCHEMAS for inner in schema.get(key, {}).values())]


def _make_strict(schema: Any) -> Any:
    """Strict: each object has all its keys and no others; a default is the class's business, not the model's."""
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
