"""The trainer: configure a run, start it, and wait for it while callbacks react to its events.

`wait()` takes events from `client/streaming/event_stream.py` and passes them to `dispatcher.py`, on
the caller's thread. The training itself happens in the backend.
"""

from __future__ import annotations

import inspect
import math
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import requests
from attrs import frozen

from arkor.callbacks.contexts import Infer
from arkor.callbacks.registry import CallbackRegistry
from arkor.client.api import CloudApiClient
from arkor.client.auth.credentials import Credentials
from arkor.client.chat_response import ChatResponse
from arkor.client.connect import connect
from arkor.client.http.deadline import Deadline
from arkor.client.http.urls import checked_url
from arkor.client.streaming.connection import StreamEnd, StreamFault
from arkor.client.streaming.event_stream import EventStream, ReconnectPolicy
from arkor.display import progress_for, run_progress_of, status_for
from arkor.display.run_progress import RunProgress
from arkor.errors import ArkorError, BackendUnavailable, CloudApiError, InvalidConfig, TrainerAborted
from arkor.formatting import quote
from arkor.protocol.chat import Adapter
from arkor.protocol.chat_types import ChatOptions, Messages
from arkor.protocol.datasets import DatasetSource, FileDataset
from arkor.protocol.jobs import JobConfig, LoraConfig, TrainingJob
from arkor.protocol.step_counts import StepCount
from arkor.protocol.validation import is_finite, text
from arkor.results.check import Check
from arkor.results.training_result import TrainingResult
from arkor.settings import dry_run_from_env
from arkor.trainer.config_builder import absolute_path, build_config, did_you_mean
from arkor.trainer.dispatcher import CallbackErrors, Dispatcher

if TYPE_CHECKING:
    from typing_extensions import Unpack  # Python 3.10 does not have it; type checkers do


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
        watcher = _Watcher(
            callbacks, callback_errors, abort_signal, progress, reconnect, backend=(base_url, credentials, project_dir)
        )
        config = build_config(
            model, dataset, lora, watcher.base_folder,
            max_steps=max_steps, num_train_epochs=num_train_epochs, learning_rate=learning_rate, batch_size=batch_size,
            optim=optim, lr_scheduler_type=lr_scheduler_type, weight_decay=weight_decay, warmup_steps=warmup_steps,
            logging_steps=logging_steps, save_steps=save_steps, eval_steps=eval_steps, dry_run=dry_run,
            gpu_types=gpu_types, extra=extra,
            train_on_responses_only=train_on_responses_only, dataset_format=dataset_format, dataset_split=dataset_split,
            on_bad_rows=on_bad_rows,
        )  # fmt: skip
        self._initialize(name, watcher, config=config)

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
        watcher = _Watcher(
            callbacks, callback_errors, abort_signal, progress, reconnect, backend=(base_url, credentials, project_dir)
        )
        watcher.from_now = since == "now"
        watcher.stream.cursor = None if since in ("start", "now", None) else since
        trainer = cls.__new__(cls)
        trainer._initialize(job_id, watcher, attached_to=job_id)
        return trainer

    def _initialize(
        self, name: str, watcher: _Watcher, *, config: JobConfig | None = None, attached_to: str | None = None
    ) -> None:
        """Set the state of a new trainer, which has a `config` or is `attached_to` a run."""
        self.name = name
        self._watcher = watcher
        self._config = config
        self._attached_to = attached_to
        self._idempotency_key = uuid.uuid4().hex
        self._job: TrainingJob | None = None
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
        return self._watcher.stream.cursor

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
            if self._watcher.result is not None:
                return self._watcher.result
            deadline = Deadline.after(self._watcher.abort_signal, timeout)
            if self._job is None:
                self._start_within(deadline)
            deadline.raise_if_expired()
            return self._watcher.watch(self._started_job(), deadline)
        finally:
            self._watcher.disconnect()
            self._waiting.release()

    def cancel(self) -> None:
        """Ask the backend to stop the run; do nothing before `start()`.

        May be called from any thread and from callbacks. Raise `CloudApiError` if the backend
        refuses: with 409 if the run has already ended, except where the cloud accepts that.
        """
        if self.job_id is not None:
            self._watcher.client().cancel_job(self.job_id)

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
        job, client = self._started_job(), self._watcher.client()
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
        watcher = self._watcher
        client = watcher.client()
        with status_for(watcher.progress) as report:
            config = self._uploadable_config(self._config, client)
            return client.check(config, say=report, abort_signal=watcher.abort_signal)

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
        client = self._watcher.client()
        if self._config is None:
            return client.get_job(self._attached_to or "")
        config = self._uploadable_config(self._config, client)
        return client.create_job(self.name, config, idempotency_key=self._idempotency_key)

    def _uploadable_config(self, config: JobConfig, client: CloudApiClient) -> JobConfig:
        """Return the configuration to send, after uploading a dataset file."""
        if dry_run_from_env():
            config = attrs.evolve(config, dry_run=True)
        if isinstance(config.dataset_source, FileDataset):
            config = attrs.evolve(config, dataset_source=client.upload_dataset(config.dataset_source.path))
        return config


class _Watcher:
    """The connection of a trainer to its run: client, event stream, display and dispatcher."""

    def __init__(
        self,
        callbacks: Any,
        callback_errors: CallbackErrors,
        abort_signal: threading.Event | None,
        progress: bool | Literal["auto"],
        reconnect: ReconnectPolicy | None,
        *,
        backend: tuple[str | None, Credentials | None, str | Path | None],
    ) -> None:
        base_url, credentials, project_dir = backend
        if callback_errors not in ("reconnect", "raise", "log"):
            raise InvalidConfig("callback_errors", f'must be "reconnect", "raise" or "log", not {callback_errors!r}')
        if abort_signal is not None and (inspect.isclass(abort_signal) or not hasattr(abort_signal, "is_set")):
            raise InvalidConfig("abort_signal", f"must be a threading.Event(), not {quote(abort_signal)}")
        if reconnect is not None and not isinstance(reconnect, ReconnectPolicy):
            raise InvalidConfig("reconnect", f"must be a ReconnectPolicy, not {type(reconnect).__name__}")
        if progress not in ("auto", True, False):
            raise InvalidConfig("progress", f'must be "auto", True or False, not {progress!r}')
        if base_url is not None:
            checked_url(base_url)
        if credentials is not None and not isinstance(credentials, Credentials):
            kind = type(credentials).__name__  # the value may be a token, which must not be shown
            problem = f'must be TokenCredentials("…", "https://…") or another credentials object, not {kind}'
            raise InvalidConfig("credentials", problem)
        if not isinstance(project_dir, (str, Path, type(None))):
            raise InvalidConfig("project_dir", f"must be a folder's path, not {quote(project_dir)}")
        self.base_folder = Path(absolute_path("project_dir", str(project_dir or "."), Path.cwd()))
        self.abort_signal = abort_signal
        self.progress = progress
        self.from_now = False
        self.stream = EventStream(self._open_stream, reconnect or ReconnectPolicy())
        self._registry = CallbackRegistry(callbacks)
        self._callback_errors = callback_errors
        self._backend = backend
        self._client: CloudApiClient | None = None
        self._dispatcher: Dispatcher | None = None
        self._run_progress = RunProgress()

    @property
    def result(self) -> TrainingResult | None:
        return self._dispatcher.result if self._dispatcher else None

    def client(self) -> CloudApiClient:
        if self._client is None:
            self._client = connect(*self._backend)
        return self._client

    def disconnect(self) -> None:
        if self._client is not None:
            self._client.close()

    def watch(self, job: TrainingJob, deadline: Deadline) -> TrainingResult:
        """Dispatch the events of the run until it ends; raise what `Trainer.wait` raises."""
        if self._dispatcher is None:
            self._dispatcher = Dispatcher(job, self._registry, self._callback_errors, self.client, self.abort_signal)
            self._run_progress = run_progress_of(job)
        dispatcher = self._dispatcher
        try:
            result = self._follow(dispatcher, deadline)
        except BaseException as error:
            dispatcher.conclude(error)
            raise
        dispatcher.conclude()
        return dispatcher.result or result

    def _follow(self, dispatcher: Dispatcher, deadline: Deadline) -> TrainingResult:
        dispatcher.stop_reason = None
        events = self.stream.events(deadline)
        display = progress_for(self.progress, dispatcher.job, self._run_progress, dispatcher.history)
        with closing(events), display as progress:
            while dispatcher.result is None:
                event = next(events)
                if isinstance(event, StreamEnd):
                    fault = self._finish(dispatcher, deadline)
                else:
                    progress.on_event(event)
                    with progress.paused():
                        failure = dispatcher.dispatch(event)
                    fault = StreamFault(failure) if failure else None
                if dispatcher.stop_reason is not None and dispatcher.result is None:
                    raise TrainerAborted(f"{dispatcher.stop_reason}; {deadline.timeout_note}")
                if fault is not None:
                    self.stream.reconnect(fault)
        return dispatcher.result

    def _finish(self, dispatcher: Dispatcher, deadline: Deadline) -> ArkorError | None:
        """Fetch the run's final state after a stream without one; return an error to retry."""
        try:
            dispatcher.finish(deadline.call(lambda: self.client().get_job(dispatcher.job.id)))
        except (BackendUnavailable, CloudApiError) as error:
            return error
        return None

    def _open_stream(self, cursor: str | None) -> requests.Response:
        assert self._dispatcher is not None  # noqa: S101 - watch() has set it
        from_now = self.from_now and cursor is None
        return self.client().open_event_stream(self._dispatcher.job.id, last_event_id=cursor, from_now=from_now)


#: The name of `Trainer` in the TypeScript SDK.
create_trainer = Trainer
