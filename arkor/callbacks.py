"""What reacts to a run: the callbacks, and the context that each of them gets.

Callbacks run inside `wait()`, on the caller's thread, one at a time, in the order of the events. Who calls them,
and what happens when one raises, is the business of `trainer.py`.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

from arkor.chat import Adapter, InferenceRequest
from arkor.client.api import CloudApiClient
from arkor.client.replies import ChatResponse
from arkor.errors import InvalidConfig
from arkor.jobs import TrainingJob

logger = logging.getLogger("arkor")


@frozen
class Infer:
    """Ask one model: the base, a checkpoint or the final adapter of a run."""

    _client: CloudApiClient = field(repr=False)
    adapter: Adapter | None
    base_model: str | None = None

    def __call__(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        stream: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: Any = None,
        response_format: Mapping[str, Any] | None = None,
        structured_outputs: Mapping[str, Any] | None = None,
        abort_signal: threading.Event | None = None,
    ) -> ChatResponse:
        """A chat completion. `messages` are OpenAI's, or a string for one user message; `temperature` 0 is greedy.

        Raises `CloudApiError` for a non-2xx answer.
        """
        request = InferenceRequest(
            messages=[{"role": "user", "content": messages}] if isinstance(messages, str) else messages,
            adapter=self.adapter,
            base_model=self.base_model,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            stream=stream,
            tools=tools,
            tool_choice=tool_choice,
            response_format=response_format,
            structured_outputs=structured_outputs,
        )
        return self._client.chat(request, abort_signal=abort_signal)


@frozen
class StartedContext:
    job: TrainingJob


@frozen(slots=False)  # as `TrainingLog`
class TrainingLogContext:
    """The numbers of one step, each None on steps that lack it; a diverged loss is `float("nan")`."""

    step: int
    loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    epoch: float | None
    samples_per_second: float | None
    job: TrainingJob


@frozen
class CheckpointContext:
    """A checkpoint that was just saved; `infer(messages, …)` talks to it while the run goes on."""

    step: int
    adapter: Adapter
    job: TrainingJob
    infer: Infer = field(repr=False)
    artifacts: tuple[Any, ...] | None = None


@frozen
class CompletedContext:
    job: TrainingJob
    artifacts: tuple[Any, ...]


@frozen
class FailedContext:
    """`error` is the backend's sentence, not an exception."""

    job: TrainingJob
    error: str


@frozen
class TrainerCallbacks:
    """The five moments of a run; each is a plain function of one context, or None."""

    on_started: Callable[[StartedContext], Any] | None = None
    on_log: Callable[[TrainingLogContext], Any] | None = None
    on_checkpoint: Callable[[CheckpointContext], Any] | None = None
    on_completed: Callable[[CompletedContext], Any] | None = None
    on_failed: Callable[[FailedContext], Any] | None = None


MOMENTS = ("on_started", "on_log", "on_checkpoint", "on_completed", "on_failed")


class Listeners:
    """Everything that was passed as `callbacks=`, sorted by moment."""

    def __init__(self, callbacks: Any) -> None:
        found = list(_flatten(callbacks))
        self._by_moment = {moment: [c[moment] for c in found if moment in c] for moment in MOMENTS}

    def wants(self, moment: str) -> bool:
        return bool(self._by_moment[moment])

    def call(self, moment: str, context: Any) -> None:
        """Call each in order. All get the event even if one raises; the first exception is raised at the end."""
        first: Exception | None = None
        for function in self._by_moment[moment]:
            try:
                function(context)
            except Exception as error:  # noqa: PERF203 - a callback may raise anything
                if first is not None:
                    logger.exception("another callback for %s raised too", moment)
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
        yield _checked({str(name): function for name, function in callbacks.items()})
    else:
        found = {moment: getattr(callbacks, moment, None) for moment in MOMENTS}
        if not any(hasattr(callbacks, moment) for moment in MOMENTS):
            raise InvalidConfig("callbacks", f"{type(callbacks).__name__} has none of {', '.join(MOMENTS)}")
        yield _checked(found)


def _checked(functions: Mapping[str, Any]) -> dict[str, Callable[[Any], Any]]:
    for name, function in functions.items():
        if name not in MOMENTS:
            raise InvalidConfig("callbacks", f"there is no {name!r}; {_suggestion(name)}")
        if function is not None and not callable(function):
            raise InvalidConfig(f"callbacks.{name}", f"must be a function, not {type(function).__name__}")
        if inspect.iscoroutinefunction(function):
            raise InvalidConfig(f"callbacks.{name}", "must be a plain function; an async one would never be awaited")
    return {name: function for name, function in functions.items() if function is not None}


def _suggestion(name: str) -> str:
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    nearest = difflib.get_close_matches(snake, MOMENTS, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(MOMENTS)}"
