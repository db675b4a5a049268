"""What the value of a setting may be: for Python, which says no with a sentence, and beside it as JSON Schema."""

from __future__ import annotations

import inspect
import ipaddress
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from attrs import frozen

from arkor.errors import InvalidConfig
from arkor.formatting import quote


class Validator(Protocol):
    """Raises `InvalidConfig` for a value that is no good; `schema` is the same as JSON Schema, as far as that goes."""

    @property
    def schema(self) -> Mapping[str, Any]: ...

    def __call__(self, name: str, value: Any) -> None: ...


@frozen
class Integer:
    """A whole number from `minimum` to what 32 bits hold."""

    minimum: int

    @property
    def schema(self) -> Mapping[str, Any]:
        return {"type": "integer", "minimum": self.minimum, "maximum": 2**31 - 1}

    def __call__(self, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not self.minimum <= value < 2**31:
            raise InvalidConfig(name, f"must be a whole number of at least {self.minimum}, not {quote(value)}")


@frozen
class Number:
    """A finite number `above` one, or of at least `minimum`."""

    above: float | None = None
    minimum: float | None = None

    @property
    def schema(self) -> Mapping[str, Any]:
        bound = {"minimum": self.minimum} if self.above is None else {"exclusiveMinimum": self.above}
        return {"type": "number", **bound}

    def __call__(self, name: str, value: Any) -> None:
        bound = f"above {self.above:g}" if self.above is not None else f"of at least {self.minimum:g}"
        if not is_finite(value) or not self._within(value):
            raise InvalidConfig(name, f"must be a number {bound}, not {quote(value)}")

    def _within(self, value: float) -> bool:
        return (self.above is None or value > self.above) and (self.minimum is None or value >= self.minimum)


def is_finite(value: Any) -> bool:
    """Whether it is a number, neither True nor False, that a float can hold."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def is_loopback(host: str) -> bool:
    """Return whether a host name or an IP address leads to this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost" or host.lower().endswith(".localhost")


def signature_mismatch(function: Callable[..., Any], arguments: int) -> str | None:
    """The signature of a function that cannot be called with so many arguments; None of one that can, or says none."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # a builtin that does not say
        return None
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return str(signature)
    return None


@frozen
class _SchemaValidator:
    """A check that has its schema beside it."""

    check: Callable[[str, Any], None]
    schema: Mapping[str, Any]

    def __call__(self, name: str, value: Any) -> None:
        self.check(name, value)


def boolean(name: str, value: Any) -> None:
    """Raises `InvalidConfig` for anything but True and False."""
    if not isinstance(value, bool):
        raise InvalidConfig(name, f"must be True or False, not {quote(value)}")


def text(name: str, value: Any) -> None:
    """Raises `InvalidConfig` for what is no string, is blank, or cannot be sent."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InvalidConfig(name, f"must be a non-empty string, not {quote(value)}")
    encodable(name, value)


def encodable(name: str, value: str) -> None:
    """Raises `InvalidConfig` for a string that cannot be written as UTF-8."""
    if not is_encodable(value):
        raise InvalidConfig(name, "holds half of a surrogate pair, which is no character")


def is_encodable(value: str) -> bool:
    """Whether all of it can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


BOOLEAN = _SchemaValidator(boolean, {"type": "boolean"})
TEXT = _SchemaValidator(text, {"type": "string", "pattern": r"^[^\u0000]*[^\s\u0000][^\u0000]*$"})


def _warmup(name: str, value: Any) -> None:
    """Whole steps, or below 1 the share of the run, as in transformers."""
    Number(minimum=0)(name, value)
    if isinstance(value, float) and value >= 1 and not value.is_integer():
        raise InvalidConfig(name, f"must be whole steps, or a share of the run below 1, not {quote(value)}")


DATASET_FORMATS = ("chatml", "sharegpt", "alpaca", "prompt_completion", "text")


def _format(name: str, value: Any) -> None:
    if isinstance(value, str) and value in DATASET_FORMATS:
        raise InvalidConfig(name, f'must be an object; write {{"type": "{value}"}}')
    if not isinstance(value, Mapping) or value.get("type") not in DATASET_FORMATS:
        kind = value["type"] if isinstance(value, Mapping) and "type" in value else value
        raise InvalidConfig(name, f"must be one of {', '.join(map(repr, DATASET_FORMATS))}, not {quote(kind)}")
    if unknown := next((key for key in value if key != "type"), None):
        raise InvalidConfig(f"{name}.{unknown}", f'is no field of a format; write {{"type": "{value["type"]}"}} alone')


def _split(name: str, value: Any) -> None:
    """`"train[:200]"`, `0.1` (the share held out), or `{"train": "train", "eval": "test" | 0.1}`."""
    if isinstance(value, Mapping):
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


def _share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        problem = f"must name a split, or be the share to hold out (between 0 and 1), not {quote(value)}"
        raise InvalidConfig(name, problem)


FORMAT = _SchemaValidator(
    _format,
    {
        "type": "object",
        "properties": {"type": {"enum": DATASET_FORMATS}},
        "required": ["type"],
        "additionalProperties": False,
    },
)
_A_SHARE = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
SPLIT = _SchemaValidator(
    _split,
    {
        "anyOf": [
            TEXT.schema,
            _A_SHARE,
            {
                "type": "object",
                "properties": {"train": TEXT.schema, "eval": {"anyOf": [{"type": "string"}, _A_SHARE]}},
                "minProperties": 1,
                "additionalProperties": False,
            },
        ]
    },
)
WARMUP = _SchemaValidator(_warmup, {"anyOf": [{"type": "integer", "minimum": 0}, _A_SHARE]})
