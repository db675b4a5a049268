"""Validation of the `callbacks=` argument, and calls of the callbacks."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from attrs import frozen

from arkor.callbacks import contexts
from arkor.errors import InvalidConfig
from arkor.protocol.validation import signature_mismatch

logger = logging.getLogger("arkor")


@frozen
class TrainerCallbacks:
    """Functions for the events of a run and the end of `wait()`; each takes one context."""

    on_started: Callable[[contexts.StartedContext], Any] | None = None
    on_log: Callable[[contexts.TrainingLogContext], Any] | None = None
    on_checkpoint: Callable[[contexts.CheckpointContext], Any] | None = None
    on_completed: Callable[[contexts.CompletedContext], Any] | None = None
    on_failed: Callable[[contexts.FailedContext], Any] | None = None
    on_finished: Callable[[contexts.FinishedContext], Any] | None = None


CALLBACK_NAMES = tuple(attrs.fields_dict(TrainerCallbacks))


class CallbackRegistry:
    """The callbacks of a trainer, by name. Raise `InvalidConfig` for an invalid `callbacks=`."""

    def __init__(self, callbacks: Any) -> None:
        groups = list(_flatten(callbacks))
        self._by_name = {name: [group[name] for group in groups if name in group] for name in CALLBACK_NAMES}

    def has(self, name: str) -> bool:
        return bool(self._by_name[name])

    def call(self, name: str, context: Any) -> None:
        functions = self._by_name[name]
        if len(functions) == 1:  # the usual case, for each log of a run
            functions[0](context)
        else:
            self.each(name, lambda function: function(context))

    def each(self, name: str, call: Callable[[Callable[[Any], Any]], Any]) -> None:
        """Pass each callback to `call`, even if one raises; then raise the first exception."""
        first: Exception | None = None
        for function in self._by_name[name]:
            try:
                call(function)
            except Exception as error:  # noqa: PERF203 - a callback may raise anything
                if first is not None:
                    logger.exception("another callback for %s raised an exception", name)
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
        methods = [inspect.getattr_static(callbacks, name, None) for name in CALLBACK_NAMES]
        if inspect.isclass(callbacks) and any(map(inspect.isfunction, methods)):
            cls = callbacks.__name__
            raise InvalidConfig("callbacks", f"{cls} is a class", f"write {cls}(…)")
        if not any(hasattr(callbacks, name) for name in CALLBACK_NAMES):
            raise InvalidConfig("callbacks", f"{type(callbacks).__name__} has none of {', '.join(CALLBACK_NAMES)}")
        yield _validate_callbacks({name: getattr(callbacks, name, None) for name in CALLBACK_NAMES})


def _validate_callbacks(functions: Mapping[str, Any]) -> dict[str, Callable[[Any], Any]]:
    given = {name: function for name, function in functions.items() if function is not None}
    for name in functions:
        if name not in CALLBACK_NAMES:
            snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
            nearest = difflib.get_close_matches(snake, CALLBACK_NAMES, n=1)
            remedy = f"did you mean {nearest[0]!r}?" if nearest else f"use {', '.join(CALLBACK_NAMES)}"
            raise InvalidConfig("callbacks", f"{name!r} does not exist", remedy)
    for name, function in given.items():
        _check_function(name, function)
    return given


def _check_function(name: str, function: Any) -> None:
    """Raise `InvalidConfig` for a callback that a call would not execute."""
    field = f"callbacks.{name}"
    if not callable(function):
        raise InvalidConfig(field, f"must be a function, not {type(function).__name__}")
    body = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(body):
        raise InvalidConfig(field, "must be a plain function; an async one would never be awaited")
    if inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(body):
        raise InvalidConfig(field, "must be a plain function; a generator function would never be executed")
    if signature := signature_mismatch(function, 1):
        problem = f"must take one argument, the context, but takes {signature}"
        raise InvalidConfig(field, problem, f"write def {name}(ctx)")
