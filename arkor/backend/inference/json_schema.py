"""Validate the JSON schemas of a request: reject what cannot be enforced or is not strict.

Whether a schema can be satisfied, and at what cost, is tested in `grammar.py`. References are never
fetched.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from arkor.errors import InvalidConfig

#: Limits: subschemas of a schema, and their depth.
MAX_SCHEMAS, MAX_DEPTH = 10_000, 48

_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SUBSCHEMAS = ("items", "additionalProperties", "additionalItems")

_ASSERTIONS = """
    type enum const required minProperties maxProperties minItems maxItems pattern minLength
    maxLength format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf $ref
""".split()  # noqa: SIM905 - a list would take a line per keyword

#: Keywords that do not restrict the valid values.
_ANNOTATIONS = """
    title description default examples example deprecated readOnly writeOnly nullable
    discriminator contentEncoding contentMediaType contentSchema $schema $id id $anchor $comment
    $vocabulary
""".split()  # noqa: SIM905 - a list would take a line per keyword

#: Keywords that llguidance ignores, so that invalid answers would be generated.
_UNSUPPORTED = """
    not if then else contains minContains maxContains uniqueItems dependentRequired
    dependentSchemas dependencies propertyNames unevaluatedItems unevaluatedProperties
    $dynamicRef $dynamicAnchor $recursiveRef $recursiveAnchor extends disallow divisibleBy
""".split()  # noqa: SIM905 - a list would take a line per keyword

_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")

_KNOWN = (*_SCHEMA_MAPS, *_SCHEMA_LISTS, *_SUBSCHEMAS, *_ASSERTIONS, *_ANNOTATIONS)


class InvalidSchema(InvalidConfig):
    """A schema that cannot be enforced; `field` is the path to the error."""


def check_schema(name: str, schema: Any, *, strict: bool) -> None:
    """Raise `InvalidSchema` if the schema in field `name` cannot be enforced."""
    if not isinstance(schema, Mapping):
        raise InvalidSchema(name, "must be a JSON schema: an object")
    for count, (path, part) in enumerate(_walk_schemas(name, schema)):
        if count >= MAX_SCHEMAS:
            raise InvalidSchema(name, f"contains more than {MAX_SCHEMAS} schemas")
        _check_keywords(path, part, root=schema)
        if strict:
            _check_strict(path, part)


def close_objects(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with `additionalProperties: false` in every object."""
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


def _walk_schemas(name: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the schema and all its subschemas with their paths."""
    waiting: list[tuple[str, Any, int]] = [(name, schema, 0)]
    while waiting:
        path, part, depth = waiting.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, Mapping):
            raise InvalidSchema(path, "must be a schema: an object, true or false")
        if depth > MAX_DEPTH:
            raise InvalidSchema(name, f"is nested more than {MAX_DEPTH} levels deep")
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
            raise InvalidSchema(f"{path}.{name}", "is not supported", "leave it out")
        if name not in _KNOWN and name not in _UNSUPPORTED and not name.startswith("x-"):
            suggestions = difflib.get_close_matches(name[:80], _KNOWN, n=1, cutoff=0.8)
            if suggestions:
                raise InvalidSchema(
                    f"{path}.{name[:80]}", "is not a keyword of JSON Schema", f"did you mean {suggestions[0]}?"
                )
    if "type" in schema:
        _check_type(path, schema["type"])
    _check_count(path, schema)
    ref = schema.get("$ref")
    if ref is not None and not (isinstance(ref, str) and (ref.startswith("#") or "$id" in root)):
        raise InvalidSchema(f"{path}.$ref", 'must be a reference into the schema itself ("#/…")')


def _check_type(path: str, types: Any) -> None:
    for kind in types if isinstance(types, list) else [types]:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise InvalidSchema(f"{path}.type", f"must be one of {', '.join(_TYPES)}, or a list of them")


def _check_count(path: str, schema: Mapping[str, Any]) -> None:
    """Reject `minProperties` of open objects: a name that is written twice counts once."""
    minimum, required = schema.get("minProperties"), schema.get("required")
    guaranteed = len(required) + 1 if isinstance(required, list) else 1
    is_open = schema.get("additionalProperties") is not False or "patternProperties" in schema
    if isinstance(minimum, (int, float)) and minimum > guaranteed and is_open:
        raise InvalidSchema(
            f"{path}.minProperties", "cannot be enforced in an object that allows additional properties"
        )


def _is_object(schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("type")
    listed = kinds if isinstance(kinds, list) else [kinds]
    return "object" in listed or "properties" in schema or "additionalProperties" in schema


def _check_strict(path: str, schema: Mapping[str, Any]) -> None:
    if not _is_object(schema):
        return
    if schema.get("additionalProperties") is not False:
        raise InvalidSchema(path, "lacks additionalProperties: false, which strict requires of every object")
    required = schema.get("required")
    listed = required if isinstance(required, list) else []
    missing = [name for name in schema.get("properties", {}) if name not in listed]
    if missing:
        raise InvalidSchema(
            path, f"must list every property in required, as strict requires; {missing[0]!r} is missing"
        )
