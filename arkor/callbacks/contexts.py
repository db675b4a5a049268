"""What each callback gets: one context, with the job as it stands and what the moment brings.

Who calls the callbacks, and what happens when one raises, is the business of `trainer/dispatcher.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from arkor.callbacks.run_control import ControlledContext
from arkor.client.api import CloudApiClient
from arkor.client.chat_response import ChatResponse
from arkor.protocol.chat import Adapter, InferenceRequest
from arkor.protocol.jobs import TrainingJob
from arkor.results.training_result import TrainingResult


@frozen
class Infer:
    """Ask one model: the base, a checkpoint or the final adapter of a run.

    `abort_signal` is the trainer's own abort signal: whoever asks for long looks at it in between.
    """

    _client: CloudApiClient = field(repr=False)
    adapter: Adapter | None
    base_model: str | None = None
    abort_signal: threading.Event | None = field(default=None, repr=False)

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
        response_format: Mapping[str, Any] | type | None = None,
        structured_outputs: Mapping[str, Any] | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        abort_signal: threading.Event | None = None,
    ) -> ChatResponse:
        """A chat completion. `messages` are OpenAI's, or a string for one user message; `temperature` 0 is greedy.

        With a class (attrs, dataclass, Pydantic) as `response_format`, the reply's `parsed` is an instance of it.
        `stop` are up to four strings that end the answer; the same `seed` gives the same text.
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
            stop=stop,
            seed=seed,
        )
        return self._client.chat(request, abort_signal=abort_signal)


@frozen
class StartedContext(ControlledContext):
    """The first step is about to be taken."""

    job: TrainingJob


@frozen(slots=False)  # made twice as fast as one with slots, and of these there are many
class TrainingLogContext(ControlledContext):
    """The numbers of one step, each None on steps that lack it; a diverged loss is `float("nan")`."""

    step: int
    loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    epoch: float | None
    samples_per_second: float | None
    job: TrainingJob


@frozen
class CheckpointContext(ControlledContext):
    """A checkpoint that was just saved; `infer(messages, …)` talks to it while the run goes on."""

    step: int
    adapter: Adapter
    job: TrainingJob
    infer: Infer = field(repr=False)
    artifacts: tuple[Any, ...] | None = None


@frozen
class CompletedContext:
    """The run has come to its end; `infer(messages, …)` talks to its final adapter."""

    job: TrainingJob
    artifacts: tuple[Any, ...]
    infer: Infer | None = field(default=None, repr=False)


@frozen
class FailedContext:
    """`error` is the backend's sentence, not an exception."""

    job: TrainingJob
    error: str


@frozen
class FinishedContext:
    """`wait()` is about to return `result`, or to raise `error`.

    `result` is None while the run goes on: after a timeout, an abort, a Ctrl-C.
    """

    job: TrainingJob
    result: TrainingResult | None = None
    error: BaseException | None = None
