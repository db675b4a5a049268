"""Validators of settings: each raises `InvalidConfig` and has its rule as JSON Schema."""

from __future__ import annotations

import inspect
import ipaddress
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from attrs import frozen

from arkor.errors import InvalidConfig
from arkor.formatting import quote
from arkor.protocol.row_formats import ROW_FORMATS, fields_of


class Validator(Protocol):
    """Raises `InvalidConfig` for a wrong value of the field `name`; `schema` is its JSON Schema."""

    @property
    def schema(self) -> Mapping[str, Any]: ...

    def __call__(self, name: str, value: Any) -> None: ...


@frozen
class Integer:
    """A whole number from `minimum` to `maximum`, by default the largest of 32 bits."""

    minimum: int
    maximum: int = 2**31 - 1

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}

    def __call__(self, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not self.minimum <= value <= self.maximum:
            default = self.maximum == 2**31 - 1
            bounds = f"of at least {self.minimum}" if default else f"from {self.minimum} to {self.maximum}"
            raise InvalidConfig(name, f"must be a whole number {bounds}, not {quote(value)}")


@frozen
class Number:
    """A finite number `above` a bound, or of at least `minimum`."""

    above: float | None = None
    minimum: float = 0

    @property
    def schema(self) -> Mapping[str, Any]:
        bound = {"minimum": self.minimum} if self.above is None else {"exclusiveMinimum": self.above}
        return {"type": "number", **bound}

    def __call__(self, name: str, value: Any) -> None:
        if not is_finite(value) or (value < self.minimum if self.above is None else value <= self.above):
            bound = f"of at least {self.minimum:g}" if self.above is None else f"above {self.above:g}"
            raise InvalidConfig(name, f"must be a number {bound}, not {quote(value)}")


@frozen
class _FunctionValidator:
    check: Callable[[str, Any], None]
    schema: Mapping[str, Any]

    def __call__(self, name: str, value: Any) -> None:
        self.check(name, value)


def is_finite(value: Any) -> bool:
    """Return whether a value is a number, but no bool, that a float can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of float
        return False


def is_loopback(host: str) -> bool:
    """Return whether a host name or an IP address leads to this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def is_encodable(value: str) -> bool:
    """Return whether a string can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def signature_mismatch(function: Callable[..., Any], arguments: int) -> str | None:
    """Return the signature of a function if it does not accept this number of arguments."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # a builtin without a signature
        return None
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return str(signature)
    return None


@partial(_FunctionValidator, schema={"type": "boolean"})
def boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidConfig(name, f"must be True or False, not {quote(value)}")


@partial(_FunctionValidator, schema={"type": "string", "pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$"})
def text(name: str, value: Any) -> None:
    """Raise `InvalidConfig` for anything but a string that is not blank and can be sent."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidConfig(name, f"must be a non-empty string, not {quote(value)}")
    if "\0" in value:
        raise InvalidConfig(name, "contains a NUL character", "remove it")
    encodable(name, value)


@partial(_FunctionValidator, schema={"type": "array", "items": text.schema, "minItems": 1})
def names(name: str, value: Any) -> None:
    """Check a list of at least one non-empty string."""
    if not isinstance(value, (list, tuple)) or not value:
        raise InvalidConfig(name, f"must be a list of names, not {quote(value)}")
    for number, item in enumerate(value):
        text(f"{name}[{number}]", item)


def encodable(name: str, value: str) -> None:
    """Raise `InvalidConfig` for a string that cannot be written as UTF-8."""
    if not is_encodable(value):
        raise InvalidConfig(name, "contains an unpaired surrogate")


_SHARE: Mapping[str, Any] = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}


@frozen
class Choice:
    """One of some texts."""

    values: tuple[str, ...]

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"enum": self.values}

    def __call__(self, name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in self.values:
            raise InvalidConfig(name, f"must be {' or '.join(map(quote, self.values))}, not {quote(value)}")


_FORMAT_FIELDS = ("type", "columnMapping")


def _format_schema(name: str) -> Mapping[str, Any]:
    """Return the schema of a format; its check also accepts a mapping from columns to fields."""
    fields = {"enum": list(fields_of(name))}
    mapping = {"type": "object", "propertyNames": fields, "additionalProperties": {"type": "string"}}
    properties = {"type": {"const": name}, "columnMapping": mapping}
    return {"type": "object", "properties": properties, "required": ["type"], "additionalProperties": False}


@partial(_FunctionValidator, schema={"anyOf": [_format_schema(name) for name in ROW_FORMATS]})
def dataset_format(name: str, value: Any) -> None:
    """Check `{"type": "alpaca", "columnMapping": {"instruction": "question"}}`."""
    if isinstance(value, str) and value in ROW_FORMATS:
        raise InvalidConfig(name, f'must be an object; write {{"type": "{value}"}}')
    if not isinstance(value, Mapping) or value.get("type") not in [*ROW_FORMATS]:  # it may be unhashable
        kind = value["type"] if isinstance(value, Mapping) and "type" in value else value
        raise InvalidConfig(name, f"must be one of {', '.join(map(repr, ROW_FORMATS))}, not {quote(kind)}")
    if unknown := next((key for key in value if key not in _FORMAT_FIELDS), None):
        raise InvalidConfig(f"{name}.{unknown}", f"is not a field of a format; {' and '.join(_FORMAT_FIELDS)} are")
    if "columnMapping" in value:
        _column_mapping(f"{name}.columnMapping", value["columnMapping"], value["type"])


def _column_mapping(name: str, mapping: Any, format_name: str) -> None:
    if not isinstance(mapping, Mapping) or not all(isinstance(item, str) for pair in mapping.items() for item in pair):
        raise InvalidConfig(name, f"must be an object of names, field to column, not {quote(mapping)}")
    fields = fields_of(format_name)
    for key, column in mapping.items():
        if key not in fields and column not in fields:
            raise InvalidConfig(
                f"{name}.{key}"[:120], f"is not a field of {format_name}; its fields are {', '.join(fields)}"
            )


_SPLIT_FIELDS = {"train": text.schema, "eval": {"anyOf": [{"type": "string"}, _SHARE]}}
_SPLIT_OBJECT = {"type": "object", "properties": _SPLIT_FIELDS, "minProperties": 1, "additionalProperties": False}
#: The form of the managed cloud.
_HOLDOUT_FIELDS = {
    "enabled": {"type": "boolean"},
    "testSize": {"anyOf": [_SHARE, {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}]},
    "seed": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
}
_HOLDOUT = {
    "type": "object",
    "properties": _HOLDOUT_FIELDS,
    "required": ["enabled"],
    "additionalProperties": False,
}


@partial(_FunctionValidator, schema={"anyOf": [text.schema, _SHARE, _SPLIT_OBJECT, _HOLDOUT]})
def dataset_split(name: str, value: Any) -> None:
    """Check a name, a share held out, `{"train": …, "eval": …}` or `{"enabled": …, "testSize": …}`."""
    if isinstance(value, Mapping) and value.keys() & _HOLDOUT_FIELDS.keys():
        _holdout(name, value)
    elif isinstance(value, Mapping):
        if not value or set(value) - {"train", "eval"}:
            raise InvalidConfig(name, f'takes the keys "train" and "eval", not {quote(dict(value))}')
        if "train" in value:
            text(f"{name}.train", value["train"])
        if "eval" in value and not isinstance(value["eval"], str):
            _share(f"{name}.eval", value["eval"])
    elif isinstance(value, str):
        text(name, value)
    else:
        _share(name, value)


def _holdout(name: str, value: Mapping[str, Any]) -> None:
    if unknown := value.keys() - _HOLDOUT_FIELDS.keys():
        raise InvalidConfig(f"{name}.{min(unknown)}", f"is not one of the fields {', '.join(_HOLDOUT_FIELDS)}")
    boolean(f"{name}.enabled", value.get("enabled"))
    size = value.get("testSize", 1)
    if type(size) is int:
        Integer(1)(f"{name}.testSize", size)
    elif not (is_finite(size) and 0 < size < 1):
        raise InvalidConfig(f"{name}.testSize", f"must be a share below 1, or a number of rows, not {quote(size)}")
    Integer(0)(f"{name}.seed", value.get("seed", 0))


def _share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        problem = f"must name a split, or be the share to hold out (between 0 and 1), not {quote(value)}"
        raise InvalidConfig(name, problem)
