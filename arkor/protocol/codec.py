"""attrs classes ⇄ the camelCase JSON of the wire.

Decoding is tolerant: a key that the class does not know goes into its `extra` field, if it has one, and comes
out again on encoding. Encoding leaves out what is None. Checking values is the business of the classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar

import attrs

T = TypeVar("T")

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
#: How `nonFinite` spells the numbers that JSON does not have.
NON_FINITE = ("nan", "inf", "-inf")
_JSON_SCALARS = frozenset({str, int, float, bool, type(None)})


@cache
def camel_case(name: str) -> str:
    """`"load_in_4bit"` → `"loadIn4bit"`."""
    head, *rest = name.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)


@cache
def _names(cls: Any) -> dict[str, str]:
    """Wire name → attribute name of every field that the constructor takes, `extra` aside."""
    return {camel_case(f.name): f.name for f in attrs.fields(cls) if f.init and f.name != "extra"}


def to_wire(value: Any) -> Any:
    """An attrs instance, an enum, or plain JSON → plain JSON.

    A number that is not finite becomes null, and its name is added to `nonFinite`.
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
    """A JSON object → an instance of `cls`; nested classes are the `converter`s of their fields.

    Raises `TypeError` when a required field is missing.
    """
    fields: Any = cls
    names = _names(fields)
    known = {names[key]: item for key, item in data.items() if key in names}
    extra = {key: item for key, item in data.items() if key not in names}
    odd = extra.get("nonFinite")
    if isinstance(odd, Mapping) and all(key in names and data.get(key, 0) is None for key in odd):
        known |= {names[key]: float(word) for key, word in odd.items() if word in NON_FINITE}
        del extra["nonFinite"]
    if extra and "extra" in attrs.fields_dict(fields):
        known["extra"] = extra
    return cls(**known)


def dumps(value: Any) -> str:
    """Compact strict JSON on one line: never `NaN`, which strict parsers reject (raises ValueError)."""
    return _ENCODER.encode(value)
