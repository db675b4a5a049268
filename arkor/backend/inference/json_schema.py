"""JSON schemas of a request: what of them can be honoured, and what `strict` demands of them.

Whether one can be satisfied, and at what cost, is found out in `grammar.py`. Nothing is ever fetched.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from arkor.errors import InvalidConfig

#: Schemas inside a schema: how many, and how deep.
MAX_SCHEMAS, MAX_DEPTH = 10_000, 48

_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SUBSCHEMAS = ("items", "additionalProperties", "additionalItems")

_ASSERTIONS = (
    "type",
    "enum",
    "const",
    "required",
    "minProperties",
    "maxProperties",
    "minItems",
    "maxItems",
    "pattern",
    "minLength",
    "maxLength",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "$ref",
)

#: Say nothing of what is valid.
_ANNOTATIONS = (
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "nullable",
    "discriminator",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "$schema",
    "$id",
    "id",
    "$anchor",
    "$comment",
    "$vocabulary",
)

#: Would be ignored by the library, so that what comes out might not be valid.
_UNSUPPORTED = (
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "extends",
    "disallow",
    "divisibleBy",
)

_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")

_KNOWN = (*_SCHEMA_MAPS, *_SCHEMA_LISTS, *_SUBSCHEMAS, *_ASSERTIONS, *_ANNOTATIONS)


class InvalidSchema(InvalidConfig):
    """A schema that cannot be honoured; `field` leads to the place in it."""


def check_schema(name: str, schema: Any, *, strict: bool) -> None:
    """Raise `InvalidSchema` for what cannot be honoured, or for what `strict` forbids; `name` is the field it is in."""
    if not isinstance(schema, Mapping):
        raise InvalidSchema(name, "must be a JSON schema, which is an object")
    for count, (path, part) in enumerate(_walk_schemas(name, schema)):
        if count >= MAX_SCHEMAS:
            raise InvalidSchema(name, f"has more than {MAX_SCHEMAS} schemas in it")
        _check_keywords(path, part, root=schema)
        if strict:
            _check_strict(path, part)


def close_objects(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with every object in it closed to further properties."""
    return dict(_close(schema))


def _close(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    inner = {
        name: {key: _close(part) for key, part in value.items()}
        if name in _SCHEMA_MAPS and isinstance(value, Mapping)
        else [_close(part) for part in value]
        if isinstance(value, list) and (name in _SCHEMA_LISTS or name in _SUBSCHEMAS)
        else _close(value)
        if name in _SUBSCHEMAS
        else value
        for name, value in schema.items()
    }
    return {**inner, "additionalProperties": False} if _is_object(schema) else inner


# What is in a schema


def _walk_schemas(name: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema in a schema, itself first, with the path to it."""
    waiting: list[tuple[str, Any, int]] = [(name, schema, 0)]
    while waiting:
        path, part, depth = waiting.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, Mapping):
            raise InvalidSchema(path, "must be a schema: an object, true or false")
        if depth > MAX_DEPTH:
            raise InvalidSchema(name, f"is nested more than {MAX_DEPTH} schemas deep")
        yield path, part
        waiting += [(f"{path}.{inner}", one, depth + 1) for inner, one in _children(path, part)]


def _children(path: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in schema.items():
        if name in _SCHEMA_MAPS:
            if not isinstance(value, Mapping):
                raise InvalidSchema(f"{path}.{name}", "must be an object of schemas")
            yield from ((f"{name}.{key[:60]}", part) for key, part in value.items())
        elif name in _SCHEMA_LISTS or (name == "items" and isinstance(value, list)):
            if not isinstance(value, list):
                raise InvalidSchema(f"{path}.{name}", "must be a list of schemas")
            yield from ((f"{name}[{index}]", part) for index, part in enumerate(value))
        elif name in _SUBSCHEMAS:
            yield name, value


def _check_keywords(path: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> None:
    for name, value in schema.items():
        if name in _UNSUPPORTED and value not in (False, {}, []):
            raise InvalidSchema(f"{path}.{name}", "is a keyword that an answer cannot be held to here; leave it out")
        if name not in _KNOWN and name not in _UNSUPPORTED and not name.startswith("x-"):
            suggestions = difflib.get_close_matches(name[:80], _KNOWN, n=1, cutoff=0.8)
            if suggestions:
                raise InvalidSchema(
                    f"{path}.{name[:80]}", f"is no keyword of JSON Schema; did you mean {suggestions[0]}?"
                )
    if "type" in schema:
        _check_type(path, schema["type"])
    _check_count(path, schema)
    ref = schema.get("$ref")
    if ref is not None and not (isinstance(ref, str) and (ref.startswith("#") or "$id" in root)):
        raise InvalidSchema(f"{path}.$ref", 'must be a reference into the schema itself ("#/…"); nothing is fetched')


def _check_type(path: str, types: Any) -> None:
    for kind in types if isinstance(types, list) else [types]:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise InvalidSchema(f"{path}.type", f"must be one of {', '.join(_TYPES)}, or a list of them")


def _check_count(path: str, schema: Mapping[str, Any]) -> None:
    """In an open object a name may come twice, which counts once."""
    minimum, required = schema.get("minProperties"), schema.get("required")
    guaranteed = len(required) + 1 if isinstance(required, list) else 1
    is_open = schema.get("additionalProperties") is not False or "patternProperties" in schema
    if isinstance(minimum, (int, float)) and minimum > guaranteed and is_open:
        raise InvalidSchema(f"{path}.minProperties", "cannot be held in an object that is open to further properties")


def _is_object(schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("type")
    listed = kinds if isinstance(kinds, list) else [kinds]
    return "object" in listed or "properties" in schema or "additionalProperties" in schema


def _check_strict(path: str, schema: Mapping[str, Any]) -> None:
    if not _is_object(schema):
        return
    if schema.get("additionalProperties") is not False:
        raise InvalidSchema(path, "lacks additionalProperties: false, which strict demands of every object")
    required = schema.get("required")
    listed = required if isinstance(required, list) else []
    missing = [name for name in schema.get("properties", {}) if name not in listed]
    if missing:
        raise InvalidSchema(
            path, f"must name every property in required, which strict demands; {missing[0]!r} is missing"
        )
