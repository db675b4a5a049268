"""The contexts that callbacks receive: the current job and the data of the event."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import field, fields_dict, frozen

from arkor.errors import ArkorError, CloudApiError
from arkor.protocol.chat import Adapter, InferenceRequest
from arkor.protocol.chat_types import Constraint, Format, Messages, Tools
from arkor.protocol.jobs import TrainingJob

if TYPE_CHECKING:  # modules that load requests
    from arkor.client.api import CloudApiClient
    from arkor.client.chat_response import ChatResponse
    from arkor.results.training_result import TrainingResult

#: The keywords of `infer` that are fields of the request.
_REQUEST_FIELDS = frozenset(fields_dict(InferenceRequest))


@frozen
class Infer:
    """Send messages to one model: the base model, a checkpoint or the final adapter of a run.

    `abort_signal` is the trainer's; a callback with many requests should check it between them.
    """

    _client: CloudApiClient = field(repr=False)
    adapter: Adapter | None
    base_model: str | None = None
    abort_signal: threading.Event | None = field(default=None, repr=False)

    def __call__(
        self,
        messages: str | Messages,
        *,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int | None = None,
        stream: bool = True,
        tools: Tools | None = None,
        tool_choice: Any = None,
        response_format: Format | type | None = None,
        structured_outputs: Constraint | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        parallel_tool_calls: bool | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[str, float] | None = None,
        n: int | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        enable_thinking: bool | None = None,
        reasoning_effort: str | None = None,
        abort_signal: threading.Event | None = None,
    ) -> ChatResponse:
        """Return a chat completion.

        `messages` have OpenAI's format; a string is one user message. `temperature=0` decodes
        greedily. With a class (attrs, dataclass, Pydantic) as `response_format`, `parsed` of the
        response is an instance of it. `stop` are up to 16 strings that end the answer; the same
        `seed` gives the same text. The other parameters are those of `InferenceRequest`. Raise
        `CloudApiError` for a response without a 2xx status.
        """
        options: dict[str, Any] = {name: value for name, value in locals().items() if name in _REQUEST_FIELDS}
        options["messages"] = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        request = InferenceRequest(adapter=self.adapter, base_model=self.base_model, **options)
        return self._client.chat(request, abort_signal=abort_signal)


def _no_control(*_: str) -> None:
    raise ArkorError("this context was not created by a trainer, so it has no run to control")


@frozen
class RunControl:
    """The actions of a context, set by the trainer."""

    cancel: Callable[[], None] = _no_control
    stop_waiting: Callable[[str], None] = _no_control


@frozen(slots=False)  # without slots, an instance is created twice as fast; there is one per log
class ControlledContext:
    """Base of the contexts of a run that has not ended."""

    _control: RunControl = field(factory=RunControl, repr=False, eq=False, kw_only=True)

    def cancel(self) -> bool:
        """Ask the backend to stop the run. Return False if it refuses since the run has ended.

        The managed cloud may accept the call all the same. `wait()` returns when the run has
        stopped. Raise `CloudApiError` if the backend refuses for another reason.
        """
        try:
            self._control.cancel()
        except CloudApiError as error:
            if error.status != 409:
                raise
            return False
        return True

    def stop_waiting(self, reason: str = "a callback asked for it") -> None:
        """Make `wait()` raise `TrainerAborted` with this reason after the callbacks of this event.

        The run continues, and a further `wait()` resumes after this event.
        """
        self._control.stop_waiting(reason)


@frozen
class StartedContext(ControlledContext):
    """The training begins."""

    job: TrainingJob


@frozen(slots=False)  # as `ControlledContext`
class TrainingLogContext(ControlledContext):
    """The metrics of one step: None for a missing one, `float("nan")` for a diverged loss."""

    step: int
    loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    epoch: float | None
    samples_per_second: float | None
    job: TrainingJob


@frozen
class CheckpointContext(ControlledContext):
    """A checkpoint was saved. `infer(messages, …)` uses it while the training continues."""

    step: int
    adapter: Adapter
    job: TrainingJob
    infer: Infer = field(repr=False)
    artifacts: tuple[Any, ...] | None = None


@frozen
class CompletedContext:
    """The run has completed. `infer(messages, …)` uses its final adapter.

    `metrics` are the last `loss`, the `steps`, the `seconds` and others, as far as they are known;
    None if the backend sent none.
    """

    job: TrainingJob
    artifacts: tuple[Any, ...]
    infer: Infer | None = field(default=None, repr=False)
    metrics: Mapping[str, Any] | None = None


@frozen
class FailedContext:
    """The run has failed. `error` is the backend's message, not an exception.

    `step` is the last step before it, None if the backend did not send it.
    """

    job: TrainingJob
    error: str
    step: int | None = None


@frozen
class FinishedContext:
    """`wait()` is about to return `result` or to raise `error`.

    `result` stays None if the run continues: after a timeout, an abort or Ctrl-C.
    """

    job: TrainingJob
    result: TrainingResult | None = None
    error: BaseException | None = None
