"""Everything that was passed as `callbacks=`: checked, and sorted by moment."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import frozen

from arkor.callbacks.contexts import (
    CheckpointContext,
    CompletedContext,
    FailedContext,
    FinishedContext,
    StartedContext,
    TrainingLogContext,
)
from arkor.errors import InvalidConfig
from arkor.protocol.validation import signature_mismatch

logger = logging.getLogger("arkor")


@frozen
class TrainerCallbacks:
    """The five moments of a run, and the end of `wait()`; each is a plain function of one context, or None."""

    on_started: Callable[[StartedContext], Any] | None = None
    on_log: Callable[[TrainingLogContext], Any] | None = None
    on_checkpoint: Callable[[CheckpointContext], Any] | None = None
    on_completed: Callable[[CompletedContext], Any] | None = None
    on_failed: Callable[[FailedContext], Any] | None = None
    on_finished: Callable[[FinishedContext], Any] | None = None


CALLBACK_NAMES = ("on_started", "on_log", "on_checkpoint", "on_completed", "on_failed", "on_finished")


class CallbackRegistry:
    """Everything that was passed as `callbacks=`, sorted by moment."""

    def __init__(self, callbacks: Any) -> None:
        found = list(_flatten(callbacks))
        self._by_name = {name: [c[name] for c in found if name in c] for name in CALLBACK_NAMES}

    def has(self, name: str) -> bool:
        return bool(self._by_name[name])

    def call(self, name: str, context: Any) -> None:
        """Call each in order with `context`; see `each`."""
        self.each(name, lambda function: function(context))

    def each(self, name: str, call: Callable[[Callable[[Any], Any]], Any]) -> None:
        """`call(function)` for each in order, even if one raises; the first exception is raised at the end."""
        first: Exception | None = None
        for function in self._by_name[name]:
            try:
                call(function)
            except Exception as error:  # noqa: PERF203 - a callback may raise anything
                if first is not None:
                    logger.exception("another callback for %s raised too", name)
                first = first or error
        if first is not None:
            raise first


def _flatten(callbacks: Any) -> Iterable[dict[str, Callable[[Any], Any]]]:
    if callbacks is None:
        return
    if isinstance(callbacks, (list, tuple)):
        for item in callbacks:
            yield from _flatten(item)
    elif isinstance(callbacks, Mapping):
        yield _validate_callbacks({str(name): function for name, function in callbacks.items()})
    else:
        _reject_class(callbacks)
        found = {name: getattr(callbacks, name, None) for name in CALLBACK_NAMES}
        if not any(hasattr(callbacks, name) for name in CALLBACK_NAMES):
            raise InvalidConfig("callbacks", f"{type(callbacks).__name__} has none of {', '.join(CALLBACK_NAMES)}")
        yield _validate_callbacks(found)


def _reject_class(callbacks: Any) -> None:
    """A class whose methods want a `self` is a forgotten pair of parentheses."""
    if inspect.isclass(callbacks) and any(
        inspect.isfunction(inspect.getattr_static(callbacks, name, None)) for name in CALLBACK_NAMES
    ):
        raise InvalidConfig("callbacks", f"{callbacks.__name__} is a class; write {callbacks.__name__}(…)")


def _validate_callbacks(functions: Mapping[str, Any]) -> dict[str, Callable[[Any], Any]]:
    for name, function in functions.items():
        if name not in CALLBACK_NAMES:
            raise InvalidConfig("callbacks", f"there is no {name!r}; {_suggestion(name)}")
        if function is not None:
            _check_function(name, function)
    return {name: function for name, function in functions.items() if function is not None}


def _check_function(name: str, function: Any) -> None:
    """Raises `InvalidConfig` for what could not be called, or would do nothing of what its author means by it."""
    field = f"callbacks.{name}"
    if not callable(function):
        raise InvalidConfig(field, f"must be a function, not {type(function).__name__}")
    body = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(body):
        raise InvalidConfig(field, "must be a plain function; an async one would never be awaited")
    if inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(body):
        raise InvalidConfig(field, "must be a plain function; one that yields would never be run")
    if signature := signature_mismatch(function, 1):
        problem = f"must take one argument, the context, and this one takes {signature}; write def {name}(ctx)"
        raise InvalidConfig(field, problem)


def _suggestion(name: str) -> str:
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    nearest = difflib.get_close_matches(snake, CALLBACK_NAMES, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(CALLBACK_NAMES)}"
