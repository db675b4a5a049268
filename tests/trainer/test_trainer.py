"""The trainer as a script uses it, with a real backend and its scripted engine."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import arkor
from arkor import (
    ArkorError,
    CloudApiError,
    FileDataset,
    InvalidConfig,
    JobConfig,
    LoraConfig,
    ReconnectPolicy,
    Trainer,
    TrainerAborted,
    TrainerCallbacks,
    TrainingFailed,
    create_trainer,
)
from arkor.callbacks import FinishedContext
from arkor.callbacks.contexts import Infer
from arkor.client.connect import connect
from arkor.protocol.chat_types import ChatOptions
from tests.conftest import Backend


@pytest.fixture
def backend(backend_env: Backend) -> Backend:
    """One backend for all tests of this file, which leave it unchanged."""
    return backend_env


HUB = {"type": "huggingface", "name": "some/rows"}
QUICK = ReconnectPolicy(initial_delay=0.01, max_delay=0.05)


def make(**settings: Any) -> Trainer:
    return Trainer(
        **{"name": "a run", "model": "some-model", "dataset": HUB, "progress": False, "reconnect": QUICK, **settings}
    )


def yielding(ctx: Any) -> Iterator[Any]:
    yield ctx


class Notes:
    """Callbacks as an object; records every event."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.threads: set[int] = set()

    def _note(self, what: str) -> None:
        self.seen.append(what)
        self.threads.add(threading.get_ident())

    def on_started(self, ctx: arkor.StartedContext) -> None:
        assert ctx.job.status == "running"
        self._note("started")

    def on_log(self, ctx: arkor.TrainingLogContext) -> None:
        assert ctx.loss == pytest.approx(2 * 0.9**ctx.step)
        self._note(f"log {ctx.step}")

    def on_checkpoint(self, ctx: arkor.CheckpointContext) -> None:
        assert (ctx.adapter.kind, ctx.adapter.step, ctx.adapter.job_id) == ("checkpoint", ctx.step, ctx.job.id)
        self._note(f"checkpoint {ctx.step}")

    def on_completed(self, ctx: arkor.CompletedContext) -> None:
        assert ctx.job.status == "completed"
        self._note("completed")


def test_a_run_from_start_to_end(backend: Backend) -> None:
    notes = Notes()
    trainer = make(max_steps=4, save_steps=2, callbacks=notes)
    assert trainer.job_id is None
    result = trainer.wait()
    assert notes.seen == ["started", "log 1", "log 2", "checkpoint 2", "log 3", "log 4", "checkpoint 4", "completed"]
    assert notes.threads == {threading.get_ident()}
    assert result.job.status == "completed"
    assert result.job.id == trainer.job_id
    assert [artifact.kind for artifact in result.artifacts] == ["checkpoint", "checkpoint", "final"]
    assert result.raise_for_status() is result
    assert trainer.wait() is result


def test_callbacks_in_all_their_shapes(backend: Backend) -> None:
    seen: list[str] = []
    callbacks = [
        {"on_started": lambda ctx: seen.append("dict")},
        TrainerCallbacks(on_started=lambda ctx: seen.append("class")),
        [{"on_started": lambda ctx: seen.append("nested")}],
    ]
    make(max_steps=1, callbacks=callbacks).wait()
    assert seen == ["dict", "class", "nested"]


def test_start_submits_once_from_many_threads(backend: Backend) -> None:
    trainer = make(name="ten threads", max_steps=1)
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.append(trainer.start().job_id)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(ids) == {trainer.job_id}
    assert [job.name for job in connect().list_jobs()].count("ten threads") == 1


def test_a_failed_run_returns_and_says_why(backend: Backend) -> None:
    errors: list[str] = []
    result = make(model="scripted/fail", callbacks={"on_failed": lambda ctx: errors.append(ctx.error)}).wait()
    assert result.job.status == "failed"
    assert errors == [result.job.error]
    assert "fails by design" in errors[0]
    with pytest.raises(TrainingFailed, match="fails by design"):
        result.raise_for_status()


def test_the_contexts_of_the_end_have_metrics_and_step(backend: Backend) -> None:
    ends: list[Any] = []
    callbacks = {"on_completed": ends.append, "on_failed": ends.append}
    make(max_steps=4, callbacks=callbacks).wait()
    make(model="scripted/crash", max_steps=4, save_steps=2, callbacks=callbacks).wait(timeout=30)
    completed, failed = ends
    assert (completed.metrics["steps"], completed.metrics["totalSteps"]) == (4, 4)
    assert completed.metrics["loss"] == completed.metrics["finalLoss"] == pytest.approx(2 * 0.9**4)
    assert failed.step == 2


def test_forms_of_the_managed_cloud_and_fields_that_are_not_known(backend: Backend) -> None:
    logged: list[int] = []
    extra = {"newField": {"inner_name": [1, None]}}
    trainer = make(
        max_steps=20,
        eval_steps={"ratio": 0.25},
        save_steps=0.5,
        logging_steps={"steps": 20},
        dataset_split={"enabled": True, "testSize": 0.1, "seed": 7},
        train_on_responses_only={"enabled": False},
        gpu_types=["l4"],
        extra=extra,
        callbacks={"on_log": lambda log: logged.append(log.step)},
    )
    trainer.wait()
    config = connect().get_job(trainer.job_id or "").config
    assert config.extra == extra
    assert (config.eval_steps, config.save_steps, config.logging_steps) == (0.25, 0.5, 20)
    assert (config.train_on_responses_only, config.gpu_types) == (False, ["l4"])
    assert logged == [5, 10, 15, 20, 20]


def test_a_worker_that_dies_is_a_failed_run(backend: Backend) -> None:
    result = make(model="scripted/crash").wait(timeout=30)
    assert result.job.status == "failed"
    assert "13" in (result.job.error or "")


def test_a_diverged_loss_is_nan(backend: Backend) -> None:
    losses: list[float | None] = []
    make(learning_rate=1e6, max_steps=2, callbacks={"on_log": lambda ctx: losses.append(ctx.loss)}).wait()
    assert [math.isnan(loss or 0) for loss in losses] == [True, True]


def test_cancel_from_inside_a_callback(slow_backend: Backend) -> None:
    trainer = make(max_steps=1000)

    def stop(ctx: arkor.TrainingLogContext) -> None:
        if ctx.step == 3:
            trainer.cancel()

    trainer = make(max_steps=1000, callbacks={"on_log": stop})
    began = time.monotonic()
    result = trainer.wait()
    assert result.job.status == "cancelled"
    assert time.monotonic() - began < 30
    with pytest.raises(CloudApiError) as refused:
        trainer.cancel()
    assert refused.value.status == 409
    with pytest.raises(TrainingFailed):
        result.raise_for_status()


def test_cancel_before_start_is_nothing() -> None:
    make().cancel()


def test_an_abort_leaves_the_run_going_and_the_next_wait_goes_on(slow_backend: Backend) -> None:
    steps: list[int] = []
    abort = threading.Event()

    def note(ctx: arkor.TrainingLogContext) -> None:
        steps.append(ctx.step)
        if ctx.step == 3:
            abort.set()

    trainer = make(max_steps=12, callbacks={"on_log": note}, abort_signal=abort)
    with pytest.raises(TrainerAborted):
        trainer.wait()
    assert steps == [1, 2, 3]
    abort.clear()
    assert trainer.wait().job.status == "completed"
    assert steps == list(range(1, 13))


def test_a_timeout_leaves_the_run_going(slow_backend: Backend) -> None:
    steps: list[int] = []
    trainer = make(max_steps=12, callbacks={"on_log": lambda ctx: steps.append(ctx.step)})
    trainer.start()
    with pytest.raises(TimeoutError):
        trainer.wait(timeout=0.5)
    assert trainer.wait(timeout=30).job.status == "completed"
    assert steps == list(range(1, 13))


def test_only_one_wait_at_a_time(slow_backend: Backend) -> None:
    trainer = make(max_steps=20)
    trainer.start()
    thread = threading.Thread(target=trainer.wait)
    thread.start()
    time.sleep(0.3)
    with pytest.raises(ArkorError, match="already running"):
        trainer.wait()
    thread.join()


def raising_at(step: int, seen: list[int]) -> Any:
    def on_log(ctx: arkor.TrainingLogContext) -> None:
        seen.append(ctx.step)
        if ctx.step == step:
            raise RuntimeError("my mistake")

    return on_log


@pytest.mark.parametrize("mode", ["reconnect", "log"])
def test_an_exception_in_a_callback_is_logged_and_skipped(
    mode: Any, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    result = make(max_steps=5, callbacks={"on_log": raising_at(2, seen)}, callback_errors=mode).wait()
    assert result.job.status == "completed"
    assert seen == [1, 2, 3, 4, 5]
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].exc_info is not None
    trace = errors[0].exc_info[2]
    assert trace is not None
    assert trace.tb_frame.f_code.co_name == "on_log", "what is shown begins in the callback"
    assert any("reconnecting" in record.getMessage() for record in caplog.records) == (mode == "reconnect")


def test_an_exception_is_raised_where_that_was_asked_for(backend: Backend) -> None:
    seen: list[int] = []
    trainer = make(max_steps=5, callbacks={"on_log": raising_at(2, seen)}, callback_errors="raise")
    with pytest.raises(RuntimeError, match="my mistake"):
        trainer.wait()
    assert trainer.wait().job.status == "completed"
    assert seen == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("mode", ["reconnect", "log", "raise"])
def test_an_exception_on_the_terminal_event_does_not_cost_the_result(mode: Any, backend: Backend) -> None:
    def fail(ctx: arkor.CompletedContext) -> None:
        raise RuntimeError("too late")

    trainer = make(max_steps=1, callbacks={"on_completed": fail}, callback_errors=mode)
    if mode == "raise":
        with pytest.raises(RuntimeError):
            trainer.wait()
    result = trainer.wait()
    assert result.job.status == "completed"
    assert result.artifacts


def test_all_callbacks_get_an_event_even_if_one_raises(backend: Backend) -> None:
    seen: list[int] = []
    second = {"on_log": lambda ctx: seen.append(ctx.step)}
    make(max_steps=3, callbacks=[{"on_log": raising_at(2, [])}, second], callback_errors="log").wait()
    assert seen == [1, 2, 3]


def test_attach_sees_the_whole_history(backend: Backend) -> None:
    first = make(max_steps=3)
    first.wait()
    notes = Notes()
    attached = Trainer.attach(first.job_id or "", callbacks=notes, progress=False)
    assert attached.start().job_id == first.job_id
    result = attached.wait()
    assert notes.seen[0] == "started"
    assert notes.seen[-1] == "completed"
    assert [line for line in notes.seen if line.startswith("log")] == ["log 1", "log 2", "log 3"]
    assert result.job.name == "a run"


def test_another_process_goes_on_behind_the_last_event(backend: Backend) -> None:
    def stop_at_two(ctx: arkor.TrainingLogContext) -> None:
        first.append(ctx.step)
        if ctx.step == 2:
            enough.set()

    first, second, enough = list[int](), list[int](), threading.Event()
    trainer = make(max_steps=4, callbacks={"on_log": stop_at_two}, abort_signal=enough)
    assert trainer.last_event_id is None
    with pytest.raises(TrainerAborted):
        trainer.wait()
    seen = trainer.last_event_id
    assert trainer.job_id
    assert seen
    later = Trainer.attach(
        trainer.job_id, since=seen, progress=False, callbacks={"on_log": lambda ctx: second.append(ctx.step)}
    )
    later.wait()
    assert (first, second) == ([1, 2], [3, 4])


def test_attach_from_now_leaves_the_history_out(slow_backend: Backend) -> None:
    enough = threading.Event()
    watch_five = {"on_log": lambda ctx: enough.set() if ctx.step == 5 else None}
    first = make(max_steps=30, abort_signal=enough, callbacks=watch_five)
    with pytest.raises(TrainerAborted):
        first.wait()
    steps: list[int] = []
    attached = Trainer.attach(
        first.job_id or "", since="now", progress=False, callbacks={"on_log": lambda ctx: steps.append(ctx.step)}
    )
    assert attached.wait().job.status == "completed"
    assert steps
    assert steps[0] > 5
    assert steps == list(range(steps[0], 31))


def test_infer_and_chat_reach_the_model(backend: Backend) -> None:
    answers: list[str] = []
    trainer = make(max_steps=2, callbacks={"on_checkpoint": lambda ctx: answers.append(ctx.infer("Hello").text())})
    trainer.wait()
    assert answers == ["scripted: Hello", "scripted: Hello"]
    question = [{"role": "user", "content": "Hi there"}]
    assert trainer.chat(question).text() == "scripted: Hi there"
    assert trainer.chat(question, adapter="base", stream=False).text() == "scripted: Hi there"
    assert trainer.chat(question, adapter=1).text() == "scripted: Hi there"
    sampled = trainer.chat(
        question,
        n=2,
        logprobs=True,
        top_logprobs=1,
        stop=["<a>"] * 16,
        presence_penalty=0.5,
        frequency_penalty=0.5,
        logit_bias={"5": -100},
        enable_thinking=False,
        reasoning_effort="low",
    )
    assert [message["content"] for message in sampled.messages] == ["scripted: Hi there"] * 2
    assert [token["token"] for token in sampled.logprobs] == ["scripted: ", "Hi ", "there"]
    assert "enable_thinking has no effect" in sampled.metadata["notes"]
    with pytest.raises(CloudApiError, match=r"^n: must be a whole number from 1 to 4"):
        trainer.chat(question, n=5)
    with pytest.raises(CloudApiError) as missing:
        trainer.chat(question, adapter=77)
    assert missing.value.status == 404


def test_chat_before_start_says_so() -> None:
    with pytest.raises(ArkorError, match="not been started"):
        make().chat("hello")


def test_a_file_is_uploaded(backend: Backend, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "hello"}\n')
    result = make(dataset=FileDataset(str(file)), max_steps=1).wait()
    assert result.job.config.dataset_source.url.startswith("/v1/datasets/")


def test_a_file_that_is_not_there(backend: Backend) -> None:
    with pytest.raises(InvalidConfig, match=r"nowhere\.jsonl"):
        make(dataset=FileDataset("nowhere.jsonl")).wait()


def test_the_backend_of_this_machine_is_started_on_first_use(tmp_path: Path) -> None:
    trainer = make(model=str(tmp_path / "no-such-model"))
    with pytest.raises(CloudApiError, match="no-such-model"):
        trainer.start()


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"maxSteps": 3}, TypeError, "did you mean 'max_steps'"),
        ({"learning_rat": 3}, TypeError, "did you mean 'learning_rate'"),
        ({"max_steps": "many"}, InvalidConfig, "max_steps: must be a whole number"),
        ({"max_steps": 0}, InvalidConfig, "at least 1"),
        ({"max_steps": True}, InvalidConfig, "max_steps"),
        ({"learning_rate": -1}, InvalidConfig, "learning_rate: must be a number above 0"),
        ({"learning_rate": math.nan}, InvalidConfig, "learning_rate"),
        ({"num_train_epochs": 0}, InvalidConfig, "num_train_epochs"),
        ({"warmup_steps": 2.5}, InvalidConfig, "warmup_steps"),
        ({"eval_steps": 1.5}, InvalidConfig, "eval_steps: must be whole steps of at least 1, or a share"),
        ({"eval_steps": {"steps": 1, "ratio": 0.5}}, InvalidConfig, 'eval_steps: takes either "steps" or "ratio"'),
        ({"eval_steps": {"steps": 0}}, InvalidConfig, "eval_steps: must be whole steps of at least 1"),
        ({"eval_steps": {"ratio": 1.1}}, InvalidConfig, "eval_steps.ratio: must be a share of the run, at most 1"),
        ({"eval_steps": {}}, InvalidConfig, "eval_steps"),
        ({"extra": {"maxSteps": 3}}, InvalidConfig, "extra.maxSteps: is known to this version; write it as max_steps"),
        ({"extra": {"lora_r": 3}}, InvalidConfig, "write it as lora.r"),
        ({"extra": [1]}, InvalidConfig, "extra: must be a dict"),
        ({"extra": {"a": {1, 2}}}, InvalidConfig, "extra: cannot be written as JSON"),
        ({"gpu_types": "l4"}, InvalidConfig, "gpu_types: must be a list of names, not 'l4'"),
        (
            {"dataset_format": {"type": "alpaca", "column_mapping": {"question": "q"}}},
            InvalidConfig,
            "dataset_format.columnMapping.question: is not a field of alpaca; its fields are instruction, output",
        ),
        ({"dataset_split": {"enabled": True, "testSize": 0}}, InvalidConfig, "dataset_split.testSize"),
        ({"dataset_split": {"enabled": "yes"}}, InvalidConfig, "dataset_split.enabled"),
        ({"dataset_split": {"enabled": True, "eval": 0.1}}, InvalidConfig, "dataset_split.eval"),
        ({"train_on_responses_only": {"enabled": 1}}, InvalidConfig, "train_on_responses_only"),
        ({"model": ""}, InvalidConfig, "model"),
        ({"name": " "}, InvalidConfig, "name"),
        ({"dataset": "rows.jsonl"}, InvalidConfig, '{"type": "file", "path": \'rows.jsonl\'}'),
        ({"dataset": 3}, InvalidConfig, "dataset: must be"),
        ({"reconnect": 3}, InvalidConfig, "must be a ReconnectPolicy"),
        ({"progress": "yes"}, InvalidConfig, "progress"),
        ({"dataset": {"type": "ftp"}}, InvalidConfig, "dataset.type"),
        ({"dataset": {"type": "file"}}, InvalidConfig, "dataset.path: is missing"),
        ({"dataset": {"type": "blob", "url": "rows.jsonl"}}, InvalidConfig, "http://"),
        ({"dataset_format": "chat"}, InvalidConfig, "chatml"),
        ({"dataset_format": {"type": {}}}, InvalidConfig, "chatml"),
        ({"dataset_format": {"type": "chatml", "column": "m"}}, InvalidConfig, "dataset_format.column"),
        ({"dataset_split": 2}, InvalidConfig, "dataset_split"),
        ({"lora": {"r": 0, "alpha": 1}}, InvalidConfig, "lora.r"),
        ({"lora": {"r": 8}}, InvalidConfig, "lora.alpha: is missing"),
        ({"lora": {"r": 8, "alpha": 8, "rank": 1}}, InvalidConfig, "lora.rank"),
        ({"dry_run": 1}, InvalidConfig, "dry_run"),
        ({"on_bad_rows": "ignore"}, InvalidConfig, "on_bad_rows"),
        ({"callbacks": {"onLog": print}}, InvalidConfig, "did you mean 'on_log'"),
        ({"callbacks": {"on_log": 3}}, InvalidConfig, "must be a function"),
        ({"callbacks": object()}, InvalidConfig, "has none of"),
        ({"callback_errors": "ignore"}, InvalidConfig, "callback_errors"),
        ({"abort_signal": True}, InvalidConfig, "threading.Event"),
        ({"abort_signal": threading.Event}, InvalidConfig, "threading.Event()"),
        ({"lr": 3}, TypeError, "did you mean 'learning_rate'"),
        ({"epochs": 3}, TypeError, "did you mean 'num_train_epochs'"),
        ({"max_length": 512}, TypeError, "lora=LoraConfig(r=…, alpha=…, max_length=…)"),
        ({"loraAlpha": 8}, TypeError, "lora=LoraConfig(r=…, alpha=…)"),
        ({"name": "\ud800"}, InvalidConfig, "name: contains an unpaired surrogate"),
        ({"model": "./a\0b"}, InvalidConfig, "model: contains a NUL"),
        ({"model": "~nobody-of-that-name/m"}, InvalidConfig, "model: ~nobody-of-that-name/m begins with a home folder"),
        ({"dataset": {"type": "file", "path": None}}, InvalidConfig, "dataset.path: must be a non-empty string"),
        ({"dataset": FileDataset(3)}, InvalidConfig, "dataset.path: must be a non-empty string"),  # type: ignore[arg-type]
        ({"dataset": Path("rows.jsonl")}, InvalidConfig, '{"type": "file", "path": \'rows.jsonl\'}'),
        ({"dataset": [{"messages": []}]}, InvalidConfig, "write them into a file"),
        ({"callbacks": {"on_log": lambda step, loss: None}}, InvalidConfig, "but takes (step, loss)"),
        ({"callbacks": {"on_log": lambda: None}}, InvalidConfig, "must take one argument"),
        ({"callbacks": {"on_log": yielding}}, InvalidConfig, "a generator function would never be executed"),
        ({"base_url": "backend"}, InvalidConfig, "base_url: must be a URL"),
        ({"credentials": "ark_secret"}, InvalidConfig, "TokenCredentials"),
        ({"project_dir": 3}, InvalidConfig, "project_dir: must be a folder's path"),
    ],
)
def test_a_mistake_is_named_at_construction(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        make(**settings)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "function", [print, [].append, functools.partial(print, "log"), lambda *ctx: None, Notes().on_log]
)
def test_whatever_takes_one_argument_is_a_callback(function: Any) -> None:
    make(callbacks={"on_log": function})


def test_a_token_as_credentials_is_not_shown() -> None:
    with pytest.raises(InvalidConfig) as refused:
        make(credentials="ark_secret")
    assert "ark_secret" not in str(refused.value)


def test_paths_are_those_of_the_project(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "link").symlink_to("project")
    trainer = make(model="./base", dataset=FileDataset(Path("rows.jsonl")), project_dir=tmp_path / "link")
    assert trainer._config is not None
    assert trainer._config.model == str(tmp_path / "project" / "base")
    assert trainer._config.dataset_source.path == str(tmp_path / "link" / "rows.jsonl")


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_trainer_is_one_and_says_how_to_have_another(copied: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"Trainer\.attach\(job_id\)"):
        copied(make())


@pytest.mark.parametrize("timeout", ["3", math.nan, True])
def test_a_timeout_is_in_seconds(timeout: Any) -> None:
    with pytest.raises(InvalidConfig, match="timeout: must be seconds"):
        make().wait(timeout)


def test_a_wait_that_ends_before_the_run_was_submitted_says_so(backend: Backend) -> None:
    over = threading.Event()
    over.set()
    with pytest.raises(TrainerAborted, match="may not have been submitted yet"):
        make(abort_signal=over).wait()
    trainer = make()
    with pytest.raises(TimeoutError, match="may not have been submitted yet"):
        trainer.wait(timeout=0)
    assert trainer.job_id is None
    trainer.start()
    with pytest.raises(TimeoutError, match="the run itself continues"):
        trainer.wait(timeout=0)
    assert trainer.wait().job.status == "completed"


@pytest.mark.parametrize("adapter", ["finall", None, True, 1.5, [7]])
def test_an_adapter_that_is_none_is_refused(adapter: Any, backend: Backend) -> None:
    with pytest.raises(InvalidConfig, match='adapter: must be "final", "base", or the step of a checkpoint'):
        Trainer.attach("j").chat("Hello", adapter=adapter)


@pytest.mark.parametrize(("field", "value"), [("job_id", None), ("job_id", ""), ("since", 3), ("since", "")])
def test_what_is_attached_to_is_named_by_text(field: str, value: Any) -> None:
    with pytest.raises(InvalidConfig, match=f"{field}: must be a non-empty string"):
        Trainer.attach(**{"job_id": "j", field: value})


def test_every_call_says_which_keyword_was_meant() -> None:
    with pytest.raises(TypeError, match=r"Trainer\.attach\(\) has no keyword 'callback'; did you mean 'callbacks'\?"):
        Trainer.attach("j", callback={})  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Trainer\.attach\(\) has no keyword 'lr'$"):
        Trainer.attach("j", lr=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Trainer\(\) has no keyword 'maxSteps'; did you mean 'max_steps'\?"):
        create_trainer("a run", "a model", HUB, maxSteps=3)
    assert "unknown" not in inspect.signature(Trainer).parameters


def test_an_async_callback_is_refused() -> None:
    async def on_log(ctx: arkor.TrainingLogContext) -> None: ...

    with pytest.raises(InvalidConfig, match="plain function"):
        make(callbacks={"on_log": on_log})


def test_the_seeds_spelling() -> None:
    trainer = create_trainer(name="x", model="m", dataset=HUB, lora=LoraConfig(r=8, alpha=16))
    assert isinstance(trainer, Trainer)
    assert trainer.name == "x"


def test_a_token_never_shows() -> None:
    trainer = make(dataset={"type": "blob", "url": "https://example.com/rows.jsonl", "token": "s3cret"})
    assert "s3cret" not in repr(trainer)
    assert "s3cret" not in repr(trainer._config)


def test_chat_has_the_options_of_infer() -> None:
    assert list(ChatOptions.__annotations__) == list(inspect.signature(Infer.__call__).parameters)[2:]


def test_the_docstring_describes_each_setting_as_declared() -> None:
    documentation = " ".join((Trainer.__doc__ or "").split())
    keywords = inspect.signature(Trainer).parameters
    declared = {
        f.name: f.metadata["doc"] for f in attrs.fields(JobConfig) if f.name in keywords and "doc" in f.metadata
    }
    assert len(declared) == 17
    assert [name for name, doc in declared.items() if f"`{name}`: {doc}" not in documentation] == []


# The end of wait(), and control from a context


class Ends:
    """Records how each `wait()` ended."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, Any]] = []

    def on_finished(self, ctx: FinishedContext) -> None:
        self.seen.append((ctx.result and str(ctx.result.job.status), type(ctx.error)))


def test_every_end_of_a_wait_is_told(slow_backend: Backend) -> None:
    ends, enough = Ends(), threading.Event()
    trainer = make(max_steps=12, callbacks=[ends, {"on_log": lambda ctx: enough.set()}], abort_signal=enough)
    trainer.start()
    with pytest.raises(TrainerAborted):
        trainer.wait()
    enough.clear()
    with pytest.raises(TimeoutError):
        trainer.wait(timeout=0)  # on_finished is not called for a wait that never began to watch
    result = make_attached(trainer, ends).wait()
    assert ends.seen == [(None, TrainerAborted), ("completed", type(None))]
    assert result.job.status == "completed"


def make_attached(trainer: Trainer, callbacks: Any, **settings: Any) -> Trainer:
    return Trainer.attach(trainer.job_id or "", callbacks=callbacks, progress=False, reconnect=QUICK, **settings)


def test_what_on_finished_returns_is_the_result(backend: Backend) -> None:
    def add(name: str) -> Any:
        return {"on_finished": lambda ctx: attrs.evolve(ctx.result, artifacts=(*ctx.result.artifacts, name))}

    trainer = make(max_steps=1, callbacks=[add("one"), {"on_finished": lambda ctx: "nothing of it"}, add("two")])
    result = trainer.wait()
    assert result.artifacts[-2:] == ("one", "two")
    assert trainer.wait() is result


@pytest.mark.parametrize("mode", ["reconnect", "log", "raise"])
def test_an_exception_in_on_finished_costs_neither_result_nor_the_other_error(mode: Any, backend: Backend) -> None:
    def fail(ctx: FinishedContext) -> None:
        raise RuntimeError("at the very end")

    trainer = make(max_steps=1, callbacks={"on_finished": fail}, callback_errors=mode)
    if mode == "raise":
        with pytest.raises(RuntimeError, match="at the very end"):
            trainer.wait()
    assert trainer.wait().job.status == "completed"
    aborted = threading.Event()
    both = {"on_log": lambda ctx: aborted.set(), "on_finished": fail}
    with pytest.raises(TrainerAborted):
        make_attached(trainer, both, callback_errors=mode, abort_signal=aborted).wait()


def test_a_context_can_stop_its_run(slow_backend: Backend) -> None:
    accepted: list[bool] = []
    watched = make(max_steps=1000)
    watched.start()
    result = make_attached(watched, {"on_log": lambda ctx: accepted.append(ctx.cancel())}).wait()
    assert result.job.status == "cancelled"
    assert accepted[0] is True
    again = make_attached(watched, {"on_started": lambda ctx: accepted.append(ctx.cancel())})
    assert again.wait().job.status == "cancelled"
    assert accepted[-1] is False  # the run had ended already; not an error


def test_on_completed_can_ask_the_final_adapter(backend: Backend) -> None:
    answers: list[str] = []
    make(max_steps=1, callbacks={"on_completed": lambda ctx: answers.append(ctx.infer("Hello").text())}).wait()
    assert answers == ["scripted: Hello"]
