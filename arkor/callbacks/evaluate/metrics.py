"""Metrics: functions that score an answer against the expected one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from arkor.errors import InvalidConfig
from arkor.protocol.validation import signature_mismatch

#: `(answer, expected)` → a score; `expected` is None for a question without an expected answer.
Metric = Callable[[str, "str | None"], float]


def exact_match(answer: str, expected: str | None) -> float:
    """Return 1 if the texts are equal without surrounding white space, else 0."""
    return float(expected is not None and answer.strip() == expected.strip())


def json_valid(answer: str, expected: str | None) -> float:  # noqa: ARG001 - a metric gets both
    """Return 1 if the answer is one JSON document without NaN and Infinity, else 0."""
    try:
        json.loads(answer, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


METRICS: dict[str, Metric] = {"exact_match": exact_match, "json_valid": json_valid}


def resolve_metric(given: Any) -> Metric:
    """Return a metric by its name, or the caller's own function. Raise `InvalidConfig` for anything else."""
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
