"""The trainer: configure a run, start it, and wait for it while callbacks react to its events.

`watcher.py` takes events from `client/streaming/event_stream.py` and passes them to `dispatcher.py`,
on the thread that called `wait()`. The training itself happens in the backend.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs import frozen

from arkor.callbacks.contexts import Infer
from arkor.client.auth.credentials import Credentials
from arkor.client.http.deadline import Deadline
from arkor.client.streaming.reconnect_policy import ReconnectPolicy
from arkor.errors import ArkorError, InvalidConfig
from arkor.formatting import quote
from arkor.protocol.chat import Adapter
from arkor.protocol.chat_types import ChatOptions, Messages
from arkor.protocol.datasets import DatasetSource
from arkor.protocol.jobs import JobConfig, LoraConfig, TrainingJob
from arkor.protocol.step_counts import StepCount
from arkor.protocol.validation import is_finite, text
from arkor.trainer.config_builder import build_config, did_you_mean
from arkor.trainer.watch_options import CallbackErrors, WatchOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack  # Python 3.10 does not have it; type checkers do

    from arkor.client.chat_response import ChatResponse
    from arkor.results.check import Check
    from arkor.results.training_result import TrainingResult
    from arkor.trainer.watcher import Watcher


@frozen
class StartedJob:
    """A run that the backend has accepted."""

    job_id: str


class StartPrevented(BaseException):
    """Raised by `start()` inside `prevent_start()`.

    A BaseException, so that an `except Exception` around the call does not swallow it.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.trainer = trainer


_start_prevented = threading.Event()


@contextmanager
def prevent_start() -> Iterator[None]:
    """Make `start()` of every trainer raise `StartPrevented` inside, on any thread."""
    _start_prevented.set()
    try:
        yield
    finally:
        _start_prevented.clear()


class Trainer:
    """One fine-tuning run: its configuration, its callbacks and its backend.

    `name` appears in lists. `model` is a starter model, an id of the Hugging Face hub, or a folder.
    `dataset` is the source of the rows. The backend chooses every setting left at None:

    - `lora`: the adapter, as a `LoraConfig` or a dict.
    - `max_steps`: optimizer steps. `num_train_epochs`: passes over the data. The first limit ends
      the run.
    - `batch_size`: rows per step. `learning_rate`: the highest step size. `lr_scheduler_type`: the
      learning rate over the run. `warmup_steps`: steps until the highest learning rate; below 1, a
      share of the run.
    - `optim`: the optimizer, by its name in transformers. `weight_decay`: pull of the weights
      towards zero.
    - `logging_steps`: steps between two logs. `save_steps`: steps between two checkpoints.
      `eval_steps`: steps between two evaluations. These and `warmup_steps` may be a share of the run:
      `0.1` or `{"ratio": 0.1}`.
    - `dataset_format`: how a row is read. `dataset_split`: which rows are trained on and held out.
      `train_on_responses_only`: learn the assistant's messages only.
      `on_bad_rows`: refuse data with bad rows, or skip these; "refuse" or "skip".
    - `gpu_types`: the GPUs of the managed cloud that may be used.
    - `dry_run`: a few rows and steps through every stage.
    - `extra`: fields of the configuration that this version does not know, sent unchanged.

    The other arguments concern `wait()`: `callbacks` is a `TrainerCallbacks`, a dict, an object
    with some of its methods, or a list of these; `callback_errors` defines the effect of an
    exception in one; `abort_signal` ends `wait()` when it is set; `progress=False` shows nothing;
    `reconnect` sets the delays and attempts for a broken stream. `base_url` and `credentials`
    select a backend. Relative paths start at `project_dir` (default: the current folder).

    Raise `InvalidConfig` for a value of the wrong type or range, and `TypeError` for an unknown
    keyword. Nothing is sent before `start()`.
    """

    @did_you_mean
    def __init__(
        self,
        name: str,
        model: str,
        dataset: DatasetSource | Mapping[str, Any],
        *,
        lora: LoraConfig | Mapping[str, Any] | None = None,
        max_steps: int | None = None,
        num_train_epochs: float | None = None,
        learning_rate: float | None = None,
        batch_size: int | None = None,
        optim: str | None = None,
        lr_scheduler_type: str | None = None,
        weight_decay: float | None = None,
        warmup_steps: StepCount | None = None,
        logging_steps: StepCount | None = None,
        save_steps: StepCount | None = None,
        eval_steps: StepCount | None = None,
        train_on_responses_only: bool | None = None,
        dataset_format: Mapping[str, Any] | str | None = None,
        dataset_split: Any = None,
        on_bad_rows: Literal["refuse", "skip"] | None = None,
        gpu_types: Sequence[str] | None = None,
        dry_run: bool | None = None,
        extra: Mapping[str, Any] | None = None,
        callbacks: Any = None,
        callback_errors: CallbackErrors = "reconnect",
        abort_signal: threading.Event | None = None,
        progress: bool | Literal["auto"] = "auto",
        reconnect: ReconnectPolicy | None = None,
        base_url: str | None = None,
        credentials: Credentials | None = None,
        project_dir: str | Path | None = None,
    ) -> None:
        text("name", name)
        options = WatchOptions(
            callbacks, callback_errors, abort_signal, progress, reconnect, backend=(base_url, credentials, project_dir)
        )
        config = build_config(
            model, dataset, lora, options.base_folder,
            max_steps=max_steps, num_train_epochs=num_train_epochs, learning_rate=learning_rate, batch_size=batch_size,
            optim=optim, lr_scheduler_type=lr_scheduler_type, weight_decay=weight_decay, warmup_steps=warmup_steps,
            logging_steps=logging_steps, save_steps=save_steps, eval_steps=eval_steps, dry_run=dry_run,
            gpu_types=gpu_types, extra=extra,
            train_on_responses_only=train_on_responses_only, dataset_format=dataset_format, dataset_split=dataset_split,
            on_bad_rows=on_bad_rows,
        )  # fmt: skip
        self._initialize(name, options, config=config)

    @classmethod
    @did_you_mean
    def attach(
        cls,
        job_id: str,
        *,
        callbacks: Any = None,
        since: str | None = "start",
        callback_errors: CallbackErrors = "reconnect",
        abort_signal: threading.Event | None = None,
        progress: bool | Literal["auto"] = "auto",
        reconnect: ReconnectPolicy | None = None,
        base_url: str | None = None,
        credentials: Credentials | None = None,
        project_dir: str | Path | None = None,
    ) -> Trainer:
        """Watch a run that was submitted elsewhere.

        `since` is `"start"` or None (the whole history, then live events), `"now"`, or the id of
        the last event to skip. A backend without support for `"now"` sends the history.
        """
        text("job_id", job_id)
        text("since", "start" if since is None else since)
        options = WatchOptions(
            callbacks, callback_errors, abort_signal, progress, reconnect, backend=(base_url, credentials, project_dir)
        )
        options.from_now = since == "now"
        options.cursor = None if since in ("start", "now", None) else since
        trainer = cls.__new__(cls)
        trainer._initialize(job_id, options, attached_to=job_id)
        return trainer

    def _initialize(
        self, name: str, options: WatchOptions, *, config: JobConfig | None = None, attached_to: str | None = None
    ) -> None:
        """Set the state of a new trainer, which has a `config` or is `attached_to` a run."""
        self.name = name
        self._options = options
        self._config = config
        self._attached_to = attached_to
        self._idempotency_key = uuid.uuid4().hex
        self._job: TrainingJob | None = None
        self._watcher: Watcher | None = None
        self._connecting = threading.Lock()
        self._starting = threading.Lock()
        self._waiting = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Trainer cannot be pickled or copied; pass its job_id on and use Trainer.attach(job_id)")

    def __repr__(self) -> str:
        return f"Trainer(name={self.name!r}, job_id={self.job_id!r})"

    @property
    def job_id(self) -> str | None:
        """The id of the run; None before `start()`."""
        return self._job.id if self._job else self._attached_to

    @property
    def last_event_id(self) -> str | None:
        """The id of the last dispatched event, for `attach(since=…)` in another process."""
        return self._options.cursor if self._watcher is None else self._watcher.stream.cursor

    def start(self) -> StartedJob:
        """Submit the run and return its id. Dispatch no events.

        The run is submitted once, however often and from however many threads this is called. Raise
        `InvalidConfig` or `CloudApiError` if the backend rejects it, `BackendUnavailable` if the
        backend cannot be reached.
        """
        if _start_prevented.is_set():
            raise StartPrevented(self)
        with self._starting:
            if self._job is None:
                self._job = self._submit()
            return StartedJob(self._job.id)

    def wait(self, timeout: float | None = None) -> TrainingResult:
        """Start the run if necessary, and watch it to its end.

        The callbacks are called on this thread. Completed, failed and cancelled runs all have a
        result; after the end, the same result is returned at once. `timeout` is in seconds. Raise
        `TimeoutError`, `TrainerAborted` (abort signal) or `StreamLost`; in each case the run
        continues, and a further `wait()` resumes after the last dispatched event.
        """
        if timeout is not None and timeout != math.inf and not is_finite(timeout):
            raise InvalidConfig("timeout", f"must be seconds, or None, not {quote(timeout)}")
        if not self._waiting.acquire(blocking=False):
            raise ArkorError("wait() of this trainer is already running; call it from one thread at a time")
        try:
            if self._watcher is not None and self._watcher.result is not None:
                return self._watcher.result
            deadline = Deadline.after(self._options.abort_signal, timeout)
            if self._job is None:
                self._start_within(deadline)
            deadline.raise_if_expired()
            return self._connected().watch(self._started_job(), deadline)
        finally:
            if self._watcher is not None:
                self._watcher.disconnect()
            self._waiting.release()

    def cancel(self) -> None:
        """Ask the backend to stop the run; do nothing before `start()`.

        May be called from any thread and from callbacks. Raise `CloudApiError` if the backend
        refuses: with 409 if the run has already ended, except where the cloud accepts that.
        """
        if self.job_id is not None:
            self._connected().client().cancel_job(self.job_id)

    def chat(
        self,
        messages: str | Messages,
        *,
        adapter: Literal["final", "base"] | int = "final",
        **options: Unpack[ChatOptions],
    ) -> ChatResponse:
        """Send messages to the run's final adapter, its base model, or the checkpoint of a step.

        `options` are as in `ctx.infer`. Raise `InvalidConfig` for an invalid `adapter`, and
        `CloudApiError` if that adapter does not exist (yet).
        """
        if adapter not in ("final", "base") and type(adapter) is not int:
            problem = f'must be "final", "base", or the step of a checkpoint, not {quote(adapter)}'
            raise InvalidConfig("adapter", problem)
        if self.job_id is None:
            raise ArkorError("the run has not been started; call start() or wait() first")
        job, client = self._started_job(), self._connected().client()
        if adapter == "base":
            return Infer(client, None, job.config.model)(messages, **options)
        chosen = Adapter("final", job.id) if adapter == "final" else Adapter("checkpoint", job.id, adapter)
        return Infer(client, chosen)(messages, **options)

    def check(self) -> Check:
        """Check the run without starting it: invalid rows, rendered rows, lengths, time and memory.

        The backend does this in about half a minute, and compares the estimate with a run that is
        started later. Raise `InvalidConfig` or `CloudApiError` for a configuration that cannot be
        trained, `TrainerAborted` if the abort signal is set.
        """
        if self._config is None:
            raise ArkorError("check() needs a configuration; this trainer is attached to a run that was submitted")
        return self._connected().check(self._config)

    def _started_job(self) -> TrainingJob:
        self.start()
        assert self._job is not None  # noqa: S101 - start() has set it
        return self._job

    def _start_within(self, deadline: Deadline) -> None:
        """Call `start()`, but raise when the deadline expires first."""
        if self._attached_to is None:
            note = "the run may not have been submitted yet; a further wait() submits it once"
            deadline = attrs.evolve(deadline, timeout_note=note)
        deadline.raise_if_expired()
        deadline.call(self.start)

    def _submit(self) -> TrainingJob:
        watcher = self._connected()
        if self._config is None:
            return watcher.client().get_job(self._attached_to or "")
        return watcher.submit(self.name, self._config, self._idempotency_key)

    def _connected(self) -> Watcher:
        """Return the connection to the backend, which is created on first use."""
        with self._connecting:
            if self._watcher is None:
                from arkor.trainer.watcher import Watcher  # noqa: PLC0415 - loads requests and tenacity

                self._watcher = Watcher(self._options)
            return self._watcher


#: The name of `Trainer` in the TypeScript SDK.
create_trainer = Trainer
