"""The connection of a trainer to its backend and its run.

`Trainer` imports this module when it first needs the backend: requests and tenacity, which it loads,
take longer to import than the rest of the client.
"""

from __future__ import annotations

from contextlib import closing

import attrs
import requests

from arkor.client.api import CloudApiClient
from arkor.client.connect import connect
from arkor.client.http.deadline import Deadline
from arkor.client.streaming.connection import StreamEnd, StreamFault
from arkor.client.streaming.event_stream import EventStream
from arkor.display import progress_for, run_progress_of, status_for
from arkor.display.run_progress import RunProgress
from arkor.errors import ArkorError, BackendUnavailable, CloudApiError, TrainerAborted
from arkor.protocol.datasets import FileDataset
from arkor.protocol.jobs import JobConfig, TrainingJob
from arkor.results.check import Check
from arkor.results.training_result import TrainingResult
from arkor.settings import dry_run_from_env
from arkor.trainer.dispatcher import Dispatcher
from arkor.trainer.watch_options import WatchOptions


class Watcher:
    """The client, the event stream, the display and the dispatcher of a trainer."""

    def __init__(self, options: WatchOptions) -> None:
        self.stream = EventStream(self._open_stream, options.reconnect, options.cursor)
        self._options = options
        self._client: CloudApiClient | None = None
        self._dispatcher: Dispatcher | None = None
        self._run_progress = RunProgress()

    @property
    def result(self) -> TrainingResult | None:
        return self._dispatcher.result if self._dispatcher else None

    def client(self) -> CloudApiClient:
        if self._client is None:
            self._client = connect(*self._options.backend)
        return self._client

    def disconnect(self) -> None:
        if self._client is not None:
            self._client.close()

    def check(self, config: JobConfig) -> Check:
        """Check a configuration, after uploading its dataset file, and show the progress."""
        options, client = self._options, self.client()
        with status_for(options.progress) as report:
            return client.check(_uploadable(config, client), say=report, abort_signal=options.abort_signal)

    def submit(self, name: str, config: JobConfig, idempotency_key: str) -> TrainingJob:
        """Submit a run, after uploading its dataset file."""
        client = self.client()
        return client.create_job(name, _uploadable(config, client), idempotency_key=idempotency_key)

    def watch(self, job: TrainingJob, deadline: Deadline) -> TrainingResult:
        """Dispatch the events of the run until it ends; raise what `Trainer.wait` raises."""
        if self._dispatcher is None:
            options = self._options
            self._dispatcher = Dispatcher(
                job, options.registry, options.callback_errors, self.client, options.abort_signal
            )
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
        display = progress_for(self._options.progress, dispatcher.job, self._run_progress, dispatcher.history)
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
        from_now = self._options.from_now and cursor is None
        return self.client().open_event_stream(self._dispatcher.job.id, last_event_id=cursor, from_now=from_now)


def _uploadable(config: JobConfig, client: CloudApiClient) -> JobConfig:
    """Return the configuration to send, after uploading a dataset file."""
    if dry_run_from_env():
        config = attrs.evolve(config, dry_run=True)
    if isinstance(config.dataset_source, FileDataset):
        config = attrs.evolve(config, dataset_source=client.upload_dataset(config.dataset_source.path))
    return config
