"""JSON Schemas of requests and responses, and the check of a request against its schema.

A schema is JSON Schema in which an attrs class of `arkor/protocol` may stand for the object of its
fields, by their names on the wire. Bounds and patterns that annotations cannot express are in the
field's `metadata`: either under `"schema"` or as the attribute `schema` of its `"check"`.

`check` understands `enum`, strings, integers, booleans and objects. Of an attrs class it checks the
field names, and of everything else nothing: the code that decodes those checks the values. Patterns
are anchored at both ends, lengths are without surrounding white space. The `description` of a
schema completes the sentence "must be …".
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any

import attrs
from attrs import frozen
from starlette.requests import Request

from arkor.backend.http.errors import invalid_field
from arkor.formatting import quote
from arkor.protocol.codec import camel_case

Schema = Any

STRING: Schema = {"type": "string"}
TEXT: Schema = {"type": "string", "minLength": 1}
BOOLEAN: Schema = {"type": "boolean"}
EVENTS: Schema = {"description": "Server-sent events."}
FILE: Schema = {"type": "string", "format": "binary"}


def string_schema(description: str, **rules: Any) -> Schema:
    return {"type": "string", "description": description, **rules}


def name_schema(max_length: int) -> Schema:
    """A string that is more than white space; the route strips the white space around it."""
    description = f"a non-empty string of at most {max_length} characters"
    return string_schema(description, maxLength=max_length, pattern=r"^[^\u0000]*[^\s\u0000][^\u0000]*$")


def object_schema(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    """An object of these fields and no others, by their names on the wire."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def array_schema(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def any_of(*schemas: Schema) -> Schema:
    """Return a schema that accepts what one of these accepts."""
    different = [schema for number, schema in enumerate(schemas) if schema not in schemas[:number]]
    return {"anyOf": different} if len(different) > 1 else different[0]


@cache
def class_schema(cls: Any) -> dict[str, Any]:
    """The schema of an attrs class: fields without a default are required, others may be null."""
    hints = typing.get_type_hints(cls)
    fields = [item for item in attrs.fields(cls) if item.name != "extra"]
    properties = {camel_case(item.name): _field_schema(item, hints[item.name]) for item in fields}
    required = [camel_case(item.name) for item in fields if item.default is attrs.NOTHING or not item.init]
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if "extra" not in attrs.fields_dict(cls):
        schema["additionalProperties"] = False
    if cls.__doc__ and "\n" not in cls.__doc__:
        schema["description"] = cls.__doc__
    return schema


def _field_schema(item: attrs.Attribute[Any], hint: Any) -> Schema:
    if not item.init:  # the discriminator, like `type` of the data sets
        return {"const": item.default}
    declared = item.metadata.get("schema", getattr(item.metadata.get("check"), "schema", None))
    schema = declared if declared is not None else type_schema(hint)
    optional = item.default is None and declared is not None
    return any_of(schema, {"type": "null"}) if optional else schema


_TYPE_NAMES: Mapping[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def type_schema(hint: Any) -> Schema:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _TYPE_NAMES:
        return {"type": _TYPE_NAMES[hint]}
    if origin in (typing.Union, types.UnionType):
        return any_of(*map(type_schema, arguments))
    if isinstance(origin, type):
        return {"type": "object"} if issubclass(origin, Mapping) else array_schema(type_schema(arguments[0]))
    if typing.is_typeddict(hint):
        return {"type": "object"}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    return hint if isinstance(hint, type) and attrs.has(hint) else {}


# Checking a request


@frozen
class Parameter:
    """A value in the query, in a header (`where="header"`) or in the path."""

    name: str
    schema: Schema
    description: str
    required: bool = False
    where: str = "query"

    def read(self, request: Request) -> Any:
        """Return the value in the query or header, None if it is absent or blank. Raises a 400.

        White space around it is removed.
        """
        sent = request.headers if self.where == "header" else request.query_params
        value: Any = sent.get(self.name, "").strip() or None
        if value is None:
            if self.required:
                raise invalid_field(self.name, f"is missing in the {self.where}")
            return None
        reject_nul(value, self.name)
        if self.schema["type"] == "integer" and value.isascii() and value.isdigit() and len(value) <= 10:
            value = int(value)
        check(self.schema, value, self.name)
        return value

    def describe(self) -> dict[str, Any]:
        entry = {"name": self.name, "in": self.where, "description": self.description}
        return {**entry, "required": self.required, "schema": self.schema}


def reject_nul(value: Any, field: str = "") -> None:
    """Raise a 400 for a NUL character in a JSON value, which not every database can store.

    `field` is the name of the value; the error names the part of it.
    """
    pending = [(field, value)]
    while pending:  # not recursive, as JSON may be nested as deeply as the decoder permits
        name, part = pending.pop()
        if isinstance(part, str) and "\0" in part:
            raise invalid_field(name, "contains a NUL character (\\u0000)", "remove it")
        if isinstance(part, Mapping):
            for key, item in part.items():
                if "\0" in key:
                    raise invalid_field(name or quote(key), "has a key that contains a NUL character", "remove it")
                pending.append((f"{name}.{key}" if name else key, item))
        elif isinstance(part, list):
            pending.extend((f"{name}[{index}]", item) for index, item in enumerate(part))


def check(schema: Schema, value: Any, field: str = "") -> None:
    """Raise a 400 for the first part of the value that does not match; `field` is its name."""
    if isinstance(schema, type):
        _check_names(class_schema(schema), value, field)
    elif "properties" in schema:
        _check_names(schema, value, field)
        for name, inner in schema["properties"].items():
            if name in value:
                check(inner, value[name], f"{field}.{name}" if field else name)
    elif not _matches(schema, value):
        raise invalid_field(field, f"must be {schema.get('description') or _expectation(schema)}")


def _check_names(schema: Mapping[str, Any], value: Any, field: str) -> None:
    if not isinstance(value, Mapping):
        raise invalid_field(field, "must be an object")
    prefix = f"{field}." if field else ""
    known = schema["properties"]
    for name in value:
        if name not in known and schema.get("additionalProperties") is False:
            suggestions = difflib.get_close_matches(name[:80], known, n=1)
            hint = f"did you mean {suggestions[0]}?" if suggestions else f"the fields are {', '.join(known)}"
            raise invalid_field(prefix + name[:80], "is not a field of this request", hint)
    for name in schema["required"]:
        if value.get(name) is None:
            raise invalid_field(prefix + name, "is missing")


def _matches(schema: Mapping[str, Any], value: Any) -> bool:
    if "enum" in schema:
        return any(value == option and isinstance(value, bool) == isinstance(option, bool) for option in schema["enum"])
    kinds = schema.get("type", "")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not {"string", "integer", "boolean", "null"}.issuperset(kinds):
        return True
    if value is None:
        return "null" in kinds
    if isinstance(value, str) and "string" in kinds:
        length = len(value.strip())
        in_bounds = schema.get("minLength", 0) <= length <= schema.get("maxLength", length)
        return in_bounds and re.fullmatch(schema.get("pattern", r"(?s:.*)"), value) is not None
    if type(value) is int and "integer" in kinds:
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    return isinstance(value, bool) and "boolean" in kinds


def _expectation(schema: Mapping[str, Any]) -> str:
    """`'"cli" or "web"'`, `"a whole number from 1 to 1000"`."""
    if "enum" in schema:
        return " or ".join(f'"{option}"' for option in schema["enum"] if option is not None)
    kind = schema["type"]
    if "integer" in kind:
        return f"a whole number from {schema['minimum']} to {schema['maximum']}"
    if "boolean" in kind:
        return "true or false"
    return f"a string of at most {schema['maxLength']} characters" if "maxLength" in schema else "a string"
