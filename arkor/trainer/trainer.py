"""The trainer: describe a run, start it, wait for it, react in callbacks.

`wait()` takes typed events from the pump of `client/streaming/event_stream.py` and hands them, on the caller's thread,
to `dispatcher.py`. Nothing here trains: that is the backend's.
"""

from __future__ import annotations

import inspect
import math
import threading
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
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
from arkor.client.streaming.backoff import ReconnectPolicy
from arkor.client.streaming.connection import StreamEnd
from arkor.client.streaming.event_stream import EventStream
from arkor.display import progress_for, run_progress_of
from arkor.display.run_progress import RunProgress
from arkor.display.status_line import status_for
from arkor.errors import ArkorError, BackendUnavailable, CloudApiError, InvalidConfig, TrainerAborted
from arkor.formatting import quote
from arkor.protocol.chat import Adapter
from arkor.protocol.datasets import DatasetSource, FileDataset
from arkor.protocol.jobs import JobConfig, LoraConfig, TrainingJob
from arkor.protocol.validation import is_finite, text
from arkor.results.check import Check
from arkor.results.training_result import TrainingResult
from arkor.settings import dry_run_from_env
from arkor.trainer.config_builder import absolute_path, build_config, did_you_mean
from arkor.trainer.dispatcher import CallbackErrors, Dispatcher


@frozen
class StartedJob:
    """A run that the backend has accepted, by the id that every list shows."""

    job_id: str


class Trainer:
    """One fine-tuning run, described here, trained by a backend.

    `name` is what lists show; `model` the starter model, an id of the Hugging Face hub, or a folder; `dataset` where
    the rows come from. Every setting that stays None is the backend's to choose:

    - `lora`: rank, scale, longest row in tokens, 4 bits.
    - `max_steps`, `num_train_epochs`: optimizer steps, passes over the data; whichever ends first.
    - `batch_size`: rows per step. `learning_rate`: at its highest. `warmup_steps`: steps, or below 1 a share of them.
    - `optim`, `lr_scheduler_type`, `weight_decay`: as in transformers.
    - `logging_steps`, `save_steps`, `eval_steps`: steps between two logs, checkpoints, evaluations.
    - `dataset_format`, `dataset_split`: how a row is read, which rows are held out. `train_on_responses_only`: learn
      the assistant's words alone. `dry_run`: a few rows and steps through every stage.

    What is about watching it: `callbacks` is a `TrainerCallbacks`, a dict, an object with some of its methods, or a
    list of these; `callback_errors` says what an exception in one means; `abort_signal` ends `wait()` once it is set;
    `progress` False is silence; `reconnect` is how patiently a broken stream is reopened. `base_url` and `credentials`
    name a backend; relative paths lead from `project_dir`, by default the current folder.

    Raises `InvalidConfig` for a value of the wrong type or range and `TypeError` for a keyword that does not exist;
    nothing is sent before `start()`.
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
        warmup_steps: float | None = None,
        logging_steps: int | None = None,
        save_steps: int | None = None,
        eval_steps: int | None = None,
        train_on_responses_only: bool | None = None,
        dataset_format: Mapping[str, Any] | str | None = None,
        dataset_split: Any = None,
        dry_run: bool | None = None,
        callbacks: Any = None,
        callback_errors: CallbackErrors = "reconnect",
        abort_signal: threading.Event | None = None,
        progress: bool | Literal["auto"] = "auto",
        reconnect: ReconnectPolicy | None = None,
        base_url: str | None = None,
        credentials: Credentials | None = None,
        project_dir: str | Path | None = None,
    ) -> None:
        given = locals()
        text("name", name)
        self.name = name
        self._configure_watch(callbacks, callback_errors, abort_signal, progress, reconnect)
        base_folder = self._connect_to(base_url, credentials, project_dir)
        settings = {name: given[name] for name in _SETTINGS}
        self._config: JobConfig | None = build_config(model, dataset, lora, settings, base_folder)

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
        """Watch a run that something else submitted.

        `since` is `"start"` or None (its whole history, then live), `"now"`, or the id of the last event that was seen.
        A backend that does not know `"now"` sends the history all the same.
        """
        text("job_id", job_id)
        text("since", "start" if since is None else since)
        trainer = cls.__new__(cls)
        trainer.name = job_id
        trainer._config = None
        trainer._configure_watch(callbacks, callback_errors, abort_signal, progress, reconnect)
        trainer._connect_to(base_url, credentials, project_dir)
        trainer._attached_to = job_id
        trainer._from_now = since == "now"
        trainer._stream.cursor = None if since in ("start", "now", None) else since
        return trainer

    def _configure_watch(
        self,
        callbacks: Any,
        callback_errors: CallbackErrors,
        abort_signal: threading.Event | None,
        progress: bool | Literal["auto"],
        reconnect: ReconnectPolicy | None,
    ) -> None:
        if callback_errors not in ("reconnect", "raise", "log"):
            raise InvalidConfig("callback_errors", f'must be "reconnect", "raise" or "log", not {callback_errors!r}')
        if abort_signal is not None and (inspect.isclass(abort_signal) or not hasattr(abort_signal, "is_set")):
            raise InvalidConfig("abort_signal", f"must be a threading.Event(), not {quote(abort_signal)}")
        if reconnect is not None and not isinstance(reconnect, ReconnectPolicy):
            raise InvalidConfig("reconnect", f"must be a ReconnectPolicy, not {type(reconnect).__name__}")
        if progress not in ("auto", True, False):
            raise InvalidConfig("progress", f'must be "auto", True or False, not {progress!r}')
        self._registry = CallbackRegistry(callbacks)
        self._callback_errors = callback_errors
        self._abort_signal = abort_signal
        self._progress = progress
        self._stream = EventStream(self._open, reconnect or ReconnectPolicy())
        self._idempotency_key = uuid.uuid4().hex
        self._starting = threading.Lock()
        self._waiting = threading.Lock()
        self._client: CloudApiClient | None = None
        self._attached_to: str | None = None
        self._from_now = False
        self._job: TrainingJob | None = None
        self._dispatcher: Dispatcher | None = None
        self._run_progress: RunProgress | None = None

    def _connect_to(
        self, base_url: str | None, credentials: Credentials | None, project_dir: str | Path | None
    ) -> Path:
        """Remember the backend; the project's folder, absolute."""
        if base_url is not None:
            checked_url(base_url)
        if credentials is not None and not isinstance(credentials, Credentials):
            kind = type(credentials).__name__  # it may well be a token, which is not to be shown
            raise InvalidConfig("credentials", f'must be TokenCredentials("…", "https://…") or its like, not {kind}')
        if not isinstance(project_dir, (str, Path, type(None))):
            raise InvalidConfig("project_dir", f"must be a folder's path, not {quote(project_dir)}")
        self._connect_with = (base_url, credentials, project_dir)
        return Path(absolute_path("project_dir", str(project_dir or "."), Path.cwd()))

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Trainer cannot be pickled or copied; hand on its job_id and use Trainer.attach(job_id)")

    def __repr__(self) -> str:
        return f"Trainer(name={self.name!r}, job_id={self.job_id!r})"

    @property
    def job_id(self) -> str | None:
        """The run's id; None before `start()`."""
        return self._job.id if self._job else self._attached_to

    @property
    def last_event_id(self) -> str | None:
        """The id of the last event that was dispatched, for `attach(since=…)` in another process; None before it."""
        return self._stream.cursor

    # The three verbs

    def start(self) -> StartedJob:
        """Submit the run, once, however often and from however many threads this is called; dispatches nothing.

        Raises `InvalidConfig` or `CloudApiError` when it is refused, `BackendUnavailable` when nobody answers.
        """
        with self._starting:
            if self._job is None:
                self._job = self._submit()
            return StartedJob(self._job.id)

    def wait(self, timeout: float | None = None) -> TrainingResult:
        """Watch the run to its end, calling the callbacks on this thread; starts it if need be.

        Returns for completed, failed and cancelled runs alike; after the end, the same result at once. `timeout` is
        in seconds. Raises `TimeoutError`, `TrainerAborted` (the abort signal), or `StreamLost`; in each case the run
        goes on, and a further `wait()` goes on behind the last event that was dispatched.
        """
        if timeout is not None and timeout != math.inf and not is_finite(timeout):
            raise InvalidConfig("timeout", f"must be seconds, or None, not {quote(timeout)}")
        if not self._waiting.acquire(blocking=False):
            raise ArkorError("wait() of this trainer is already running; one wait() at a time")
        try:
            if self._dispatcher is not None and self._dispatcher.result is not None:
                return self._dispatcher.result
            deadline = Deadline.after(self._abort_signal, timeout)
            if self._job is None:
                self._start_within(deadline)
            deadline.raise_if_expired()
            return self._watch(deadline)
        finally:
            if self._client is not None:
                self._client.close()
            self._waiting.release()

    def cancel(self) -> None:
        """Ask the backend to stop the run; nothing before `start()`. From any thread, from callbacks too.

        Raises `CloudApiError` if the backend refuses (409 when the run has already ended).
        """
        if self.job_id is not None:
            self._connected().cancel_job(self.job_id)

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        adapter: Literal["final", "base"] | int = "final",
        **options: Any,
    ) -> ChatResponse:
        """Talk to the run's model: its final adapter, its base, or the checkpoint of a step.

        `options` are those of `ctx.infer`. Raises `InvalidConfig` for what names no adapter, and `CloudApiError` when
        there is no such one (yet).
        """
        if adapter not in ("final", "base") and type(adapter) is not int:
            raise InvalidConfig(
                "adapter", f'must be "final", "base", or the step of a checkpoint, not {quote(adapter)}'
            )
        job = self._known_job()
        if adapter == "base":
            return Infer(self._connected(), None, job.config.model)(messages, **options)
        chosen = Adapter("final", job.id) if adapter == "final" else Adapter("checkpoint", job.id, adapter)
        return Infer(self._connected(), chosen)(messages, **options)

    def check(self) -> Check:
        """Look at the run without starting it: faults of its data, rows as the model sees them, lengths, time, memory.

        It happens where the run would, takes about half a minute, and a run that is started later knows the estimate.
        Raises `InvalidConfig` or `CloudApiError` for a configuration that cannot be trained, `TrainerAborted`.
        """
        if self._config is None:
            raise ArkorError("check() is for a run that is described here; this trainer watches one that was submitted")
        client = self._connected()
        with status_for(self._progress) as report:
            return client.check(self._uploadable_config(client), say=report, abort_signal=self._abort_signal)

    # Submitting it

    def _connected(self) -> CloudApiClient:
        if self._client is None:
            self._client = connect(*self._connect_with)
        return self._client

    def _known_job(self) -> TrainingJob:
        if self._job is None and self._attached_to is None:
            raise ArkorError("the run has not been started; call start() or wait() first")
        self.start()
        assert self._job is not None  # noqa: S101 - start() has set it
        return self._job

    def _start_within(self, deadline: Deadline) -> None:
        """`start()`, unless the caller is not willing to wait so long."""
        if self._attached_to is None:
            timeout_note = "the run may not have been submitted yet; a further wait() sees to that, once"
            deadline = attrs.evolve(deadline, timeout_note=timeout_note)
        deadline.raise_if_expired()
        deadline.call(self.start)

    def _submit(self) -> TrainingJob:
        client = self._connected()
        if self._attached_to is not None:
            return client.get_job(self._attached_to)
        return client.create_job(self.name, self._uploadable_config(client), idempotency_key=self._idempotency_key)

    def _uploadable_config(self, client: CloudApiClient) -> JobConfig:
        """The configuration as the backend takes it; a file of rows goes there first."""
        config = self._config
        assert config is not None  # noqa: S101 - only attach() leaves it None
        if dry_run_from_env():
            config = attrs.evolve(config, dry_run=True)
        if isinstance(config.dataset_source, FileDataset):
            config = attrs.evolve(config, dataset_source=client.upload_dataset(config.dataset_source.path))
        return config

    # Watching it

    def _open(self, cursor: str | None) -> requests.Response:
        from_now = self._from_now and cursor is None
        return self._connected().open_event_stream(self._known_job().id, last_event_id=cursor, from_now=from_now)

    def _watch(self, deadline: Deadline) -> TrainingResult:
        if self._dispatcher is None:
            self._dispatcher = Dispatcher(
                self._known_job(), self._registry, self._callback_errors, self._connected, self._abort_signal
            )
            self._run_progress = run_progress_of(self._dispatcher.job)
        dispatcher = self._dispatcher
        try:
            result = self._follow(dispatcher, deadline)
        except BaseException as error:
            dispatcher.conclude(error)
            raise
        dispatcher.conclude()
        return dispatcher.result or result

    def _follow(self, dispatcher: Dispatcher, deadline: Deadline) -> TrainingResult:
        """Hand event after event to the callbacks, until the run has ended or one of them wants to leave."""
        dispatcher.stop_reason = None
        events = self._stream.events(deadline)
        display = progress_for(self._progress, dispatcher.job, self._run_progress, dispatcher.history)
        with closing(events), display as progress:
            fault: ArkorError | None = None
            while dispatcher.result is None:
                event = next(events) if fault is None else events.throw(fault)
                if isinstance(event, StreamEnd):
                    fault = self._finish(dispatcher, deadline)
                else:
                    progress.on_event(event)
                    with progress.paused():
                        fault = dispatcher.dispatch(event)
                if dispatcher.stop_reason is not None and dispatcher.result is None:
                    raise TrainerAborted(f"{dispatcher.stop_reason}; {deadline.timeout_note}")
        return dispatcher.result

    def _finish(self, dispatcher: Dispatcher, deadline: Deadline) -> ArkorError | None:
        """The stream is over without a terminal event: only the backend knows how the run stands."""
        try:
            dispatcher.finish(deadline.call(lambda: self._connected().get_job(dispatcher.job.id)))
        except (BackendUnavailable, CloudApiError) as error:
            return error
        return None


if TYPE_CHECKING:
    create_trainer = Trainer
else:

    def create_trainer(*values: Any, **keywords: Any) -> Trainer:
        """The same as `Trainer(…)`, in the spelling of the TypeScript SDK."""
        return Trainer(*values, **keywords)


#: The keywords that go into the `JobConfig` under their own name.
_SETTINGS = [name for name in inspect.signature(Trainer).parameters if name in attrs.fields_dict(JobConfig)]
_SETTINGS.remove("model")
