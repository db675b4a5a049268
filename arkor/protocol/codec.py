"""Convert attrs classes to and from the camelCase JSON of the wire.

Decoding is tolerant: an unknown key goes into the `extra` field of the class, if it has one, and is
written again by encoding. Encoding omits None. Values are checked by the classes, not here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from functools import cache, partial
from typing import Any, TypeVar

import attrs

T = TypeVar("T")

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_JSON_SCALARS = frozenset({str, int, float, bool, type(None)})

#: The values of `nonFinite`, the object that names the numbers which JSON cannot express.
NON_FINITE = ("nan", "inf", "-inf")


@cache
def camel_case(name: str) -> str:
    """`"load_in_4bit"` → `"loadIn4bit"`."""
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


@cache
def _attributes(cls: Any) -> dict[str, str]:
    """Wire name → attribute name of every field that the constructor takes, except `extra`."""
    return {camel_case(f.name): f.name for f in attrs.fields(cls) if f.init and f.name != "extra"}


def to_wire(value: Any) -> Any:
    """Convert an attrs instance, an enum, or plain JSON to plain JSON.

    A field that is NaN or infinite becomes null, and an entry of `nonFinite`.
    """
    if type(value) in _JSON_SCALARS:
        return value
    if attrs.has(type(value)):
        pairs = ((f.name, getattr(value, f.name)) for f in attrs.fields(type(value)))
        known = {camel_case(name): to_wire(item) for name, item in pairs if name != "extra" and item is not None}
        if odd := {key: item for key, item in known.items() if type(item) is float and item - item != 0}:
            known |= dict.fromkeys(odd)
            known["nonFinite"] = {key: "nan" if item != item else str(item) for key, item in odd.items()}
        return {**getattr(value, "extra", {}), **known}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [to_wire(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_wire(item) for key, item in value.items()}
    return value


def from_wire(cls: type[T], data: Mapping[str, Any]) -> T:
    """Convert a JSON object to an instance of `cls`; field converters decode nested classes.

    Raises `TypeError` if a required field is missing.
    """
    fields: Any = cls
    names = _attributes(fields)
    known = {names[key]: item for key, item in data.items() if key in names}
    extra = {key: item for key, item in data.items() if key not in names}
    odd = extra.get("nonFinite")
    if isinstance(odd, Mapping) and all(key in names and data.get(key, 0) is None for key in odd):
        known |= {names[key]: float(word) for key, word in odd.items() if word in NON_FINITE}
        del extra["nonFinite"]
    if extra and "extra" in attrs.fields_dict(fields):
        known["extra"] = extra
    return cls(**known)


def decode_object(cls: type[T], value: Any) -> T | Any:
    """Decode a JSON object; return anything else as it is."""
    return from_wire(cls, value) if isinstance(value, Mapping) else value


def decode_objects(cls: type[T], value: Any) -> tuple[T | Any, ...]:
    """Decode a list of JSON objects and keep its other items; anything but a list becomes empty."""
    return tuple(decode_object(cls, item) for item in value) if isinstance(value, (list, tuple)) else ()


def nested(cls: Any, **options: Any) -> Any:
    """Declare an attrs field that is decoded by `decode_object`."""
    return attrs.field(converter=partial(decode_object, cls), **options)


def nested_list(cls: Any) -> Any:
    """Declare an attrs field that is decoded by `decode_objects` and empty by default."""
    return attrs.field(default=(), converter=partial(decode_objects, cls))


def optional(*types: type) -> Any:
    """Declare an attrs field that keeps a value of one of these types; any other becomes None."""
    return attrs.field(default=None, converter=lambda value: value if type(value) in types else None)


def dumps(value: Any) -> str:
    """Encode as strict JSON on one line. Raises ValueError for NaN and infinity."""
    return _ENCODER.encode(value)


def reject_constant(name: str) -> Any:
    """Refuse NaN and infinity, as the `parse_constant` of a strict JSON decoder."""
    raise ValueError(f"{name} is not a JSON number")
