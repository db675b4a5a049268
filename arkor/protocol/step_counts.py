"""Settings that count steps: a number of steps, or a share of the run.

A number below 1 is a share, as in transformers. `{"steps": n}` and `{"ratio": r}`, the form of the
managed cloud, mean the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from arkor.errors import InvalidConfig
from arkor.formatting import quote
from arkor.protocol.validation import Integer, is_finite

#: A number of steps, a share of the run below 1, or an object.
StepCount = float | Mapping[str, float]


@frozen
class StepCountValidator:
    """A whole number of at least `minimum`, a share of the run, or an object with one of them."""

    minimum: int

    @property
    def schema(self) -> Mapping[str, Any]:
        steps, bound = Integer(self.minimum).schema, "minimum" if self.minimum == 0 else "exclusiveMinimum"
        ratio = {"type": "number", bound: 0, "maximum": 1}
        share = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
        objects = [
            {"type": "object", "properties": {name: inner}, "required": [name], "additionalProperties": False}
            for name, inner in (("steps", steps), ("ratio", ratio))
        ]
        return {"anyOf": [steps, share, *objects]}

    def __call__(self, name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            self._check_object(name, value)
        elif isinstance(value, bool) or not self._is_number(value):
            least = "0" if self.minimum == 0 else "1"
            problem = f"must be whole steps of at least {least}, or a share of the run below 1, not {quote(value)}"
            raise InvalidConfig(name, problem)

    def _is_number(self, value: Any) -> bool:
        if not is_finite(value) or value < 0 or value >= 2**31:
            return False
        return 0 < value < 1 or (value >= self.minimum and float(value).is_integer())

    def _check_object(self, name: str, value: Mapping[str, Any]) -> None:
        if set(value) not in ({"steps"}, {"ratio"}):
            raise InvalidConfig(name, f'takes either "steps" or "ratio", not {quote(dict(value))}')
        if "steps" in value:
            Integer(self.minimum)(f"{name}.steps", value["steps"])
            return
        ratio = value["ratio"]
        if not is_finite(ratio) or not (0 < ratio <= 1 or (ratio == 0 and self.minimum == 0)):
            raise InvalidConfig(f"{name}.ratio", f"must be a share of the run, at most 1, not {quote(ratio)}")


def simplified(value: Any) -> Any:
    """Return the number that an object stands for; the whole run has none. Keep anything else."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return int(value) if isinstance(value, float) and value >= 1 and value.is_integer() else value
    (kind, number), *_ = value.items()
    if kind == "steps" and type(number) is int:
        return number
    if kind == "ratio" and is_finite(number) and 0 <= number < 1:
        return float(number) if number else 0
    return value


def as_object(value: Any) -> Mapping[str, float]:
    """Return a checked value as `{"steps": n}` or `{"ratio": r}`."""
    if isinstance(value, Mapping):
        return value
    return {"ratio": value} if 0 < value < 1 else {"steps": int(value)}


def steps_of(value: Any, total: int, rounded: Callable[[float], int] = math.ceil) -> int:
    """Return the number of steps in a run of `total` steps."""
    count = as_object(value)
    return int(count["steps"]) if "steps" in count else rounded(count["ratio"] * total)
