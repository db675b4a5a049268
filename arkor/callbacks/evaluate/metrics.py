"""How good an answer is: a number for an answer and what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from arkor.errors import InvalidConfig
from arkor.protocol.validation import signature_mismatch

#: `(answer, expected)` → how good the answer is; `expected` is None where a question has none.
Metric = Callable[[str, "str | None"], float]


def exact_match(answer: str, expected: str | None) -> float:
    """1 when they are the same, blanks around them aside; else 0."""
    return float(expected is not None and answer.strip() == expected.strip())


def json_valid(answer: str, expected: str | None) -> float:  # noqa: ARG001 - a metric gets both
    """1 when the answer is JSON and nothing else; NaN and Infinity are none."""
    try:
        json.loads(answer, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


METRICS: dict[str, Metric] = {"exact_match": exact_match, "json_valid": json_valid}


def resolve_metric(given: Any) -> Metric:
    """One of `METRICS` by its name, or the caller's own function. Raises `InvalidConfig`."""
    if isinstance(given, str) and given in METRICS:
        return METRICS[given]
    if not callable(given):
        names = ", ".join(map(repr, METRICS))
        raise InvalidConfig("Evaluate.metric", f"must be {names}, or a function of (answer, expected), not {given!r}")
    if signature := signature_mismatch(given, 2):
        raise InvalidConfig("Evaluate.metric", f"must take (answer, expected), and this one takes {signature}")
    metric: Metric = given
    return metric


def _reject_constant(constant: str) -> None:
    raise ValueError(constant)
