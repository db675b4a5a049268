"""Early stopping: its conditions, its effect, and the best checkpoint."""

from __future__ import annotations

import logging
import math
import random
import subprocess
import sys
from typing import Any

import pytest

from arkor import CloudApiError, InvalidConfig, Trainer, TrainerAborted, callbacks
from arkor.callbacks import EarlyStopping, StartedContext, TrainingLogContext
from arkor.errors import ArkorError, BackendUnavailable
from arkor.protocol.best_checkpoint import BestCheckpointTracker
from tests.callbacks.replays import Client, checkpoint, completed, log, logs, replay
from tests.conftest import Backend

HUB = {"type": "huggingface", "name": "some/rows"}


def stopped_at(stopping: EarlyStopping, losses: Any) -> int | None:
    """Return the step at which a run with these losses is stopped; check that it is stopped once."""
    client = Client()
    replay(stopping, logs(losses), client)
    assert client.cancelled == (stopping.stopped is not None)
    return int(stopping.stopped.split(":")[0].removeprefix("step ")) if stopping.stopped else None


# The documented conditions


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_always_stops(odd: float) -> None:
    stopping = EarlyStopping()
    assert stopped_at(stopping, [2.0, 1.0, odd, 0.5]) == 3
    assert stopping.stopped == f"step 3: the loss is {odd}"


def test_logs_without_a_loss_are_passed_over() -> None:
    assert stopped_at(EarlyStopping(ceiling=5, patience=2), [None, 1.0, None, None, None, 2.0, None, 3.0, 4.0]) == 8


def test_a_ceiling() -> None:
    assert stopped_at(EarlyStopping(ceiling=5.0), [4.0, 5.0, 5.1, 9.0]) == 3
    assert stopped_at(EarlyStopping(ceiling=5.0), [4.0, 5.0]) is None


def test_a_smoothed_ceiling_lets_one_bad_step_pass() -> None:
    outlier = [1.0] * 9 + [30.0] + [1.0] * 30
    assert stopped_at(EarlyStopping(ceiling=5.0, window=10), outlier) is None
    assert stopped_at(EarlyStopping(ceiling=5.0), outlier) == 10


def test_a_smoothed_ceiling_waits_until_its_window_is_full() -> None:
    assert stopped_at(EarlyStopping(ceiling=5.0, window=10), [9.0] * 9) is None
    assert stopped_at(EarlyStopping(ceiling=5.0, window=10), [9.0] * 10) == 10


def test_patience_counts_values_without_improvement() -> None:
    assert stopped_at(EarlyStopping(patience=3), [3.0, 2.0, 2.5, 2.4, 2.3]) == 5
    assert stopped_at(EarlyStopping(patience=3), [3.0, 2.0, 2.5, 2.4, 1.9, 2.5, 2.4]) is None
    assert stopped_at(EarlyStopping(patience=30), [1.0] * 30) is None
    assert stopped_at(EarlyStopping(patience=30), [1.0] * 31) == 31  # equal is not an improvement


def test_an_improvement_has_to_be_larger_than_min_delta() -> None:
    creeping = [1.0 - 0.01 * step for step in range(20)]
    assert stopped_at(EarlyStopping(patience=3), creeping) is None
    assert stopped_at(EarlyStopping(patience=3, min_delta=0.5), creeping) == 4


def test_patience_is_smoothed_by_the_window_too() -> None:
    noisy = [1.0, 3.0, 0.9, 2.9, 0.8, 2.8, 0.7, 2.7, 0.6]
    assert stopped_at(EarlyStopping(patience=1), noisy) == 2
    assert stopped_at(EarlyStopping(patience=1, window=2), noisy) is None
    assert stopped_at(EarlyStopping(patience=2, window=2), [1.0, 2.0, 3.0, 4.0, 5.0]) == 4


def test_on_eval_loss_the_training_loss_may_do_what_it_likes_but_diverge() -> None:
    events = [log(1, 1.0), log(1, None, 2.0), log(2, 9.0), log(2, None, 2.5), log(3, 9.0)]
    stopping = EarlyStopping(on="eval_loss", ceiling=3, patience=1)
    replay(stopping, events)
    assert (stopping.stopped or "").startswith("step 2: the eval_loss has not improved on 2")
    diverged = EarlyStopping(on="eval_loss")
    replay(diverged, [log(1, 1.0, 2.0), log(2, math.nan)])
    assert diverged.stopped == "step 2: the loss is nan"
    unmeasurable = EarlyStopping(on="eval_loss")
    replay(unmeasurable, [log(1, 1.0, math.nan)])
    assert unmeasurable.stopped == "step 1: the eval_loss is nan"
    not_asked = EarlyStopping()
    replay(not_asked, [log(1, 1.0, math.nan)])
    assert not_asked.stopped is None


# Determinism


def test_the_same_log_gives_the_same_decision_whoever_watches() -> None:
    rng = random.Random(7)
    for _ in range(200):
        losses = [rng.choice([None, rng.gauss(2, 1), math.nan if rng.random() < 0.02 else 1.0]) for _ in range(60)]
        events = [log(step, loss) if step % 10 else checkpoint(step) for step, loss in enumerate(losses, 1)]
        settings: dict[str, Any] = {
            "ceiling": rng.choice([None, 3.0]), "window": rng.randint(1, 5), "patience": rng.choice([None, 4])
        }  # fmt: skip
        first, reused = EarlyStopping(**settings), EarlyStopping(**settings)
        replay(first, events)
        replay(reused, logs([5.0, 4.0, 3.0, math.nan]))
        replay(reused, events)
        assert (first.stopped, first.best) == (reused.stopped, reused.best)


# Stopping a run


def test_a_run_that_ended_in_the_same_moment_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    client = Client([CloudApiError(409, None, "the run has ended")])
    replay(EarlyStopping(), logs([math.nan, math.nan]), client)
    assert client.cancelled == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]  # the decision only


@pytest.mark.parametrize("refusal", [CloudApiError(503, None, "not now"), BackendUnavailable("nobody is there")])
def test_a_transient_failure_is_retried_at_the_next_log(refusal: Exception, caplog: pytest.LogCaptureFixture) -> None:
    client = Client([refusal, refusal])
    replay(EarlyStopping(), logs([math.nan, 1.0, 1.0, 1.0]), client)
    assert client.cancelled == 3
    assert sum("trying again" in record.getMessage() for record in caplog.records) == 2


def test_a_refusal_is_final(caplog: pytest.LogCaptureFixture) -> None:
    client = Client([CloudApiError(403, None, "not yours to stop")])
    replay(EarlyStopping(), logs([math.nan, 1.0, 1.0]), client)
    assert client.cancelled == 1
    assert "could not be stopped: not yours to stop" in caplog.text


def test_watching_an_eval_loss_of_a_run_without_evaluations_warns(caplog: pytest.LogCaptureFixture) -> None:
    replay(EarlyStopping(on="eval_loss"), [])
    assert "set eval_steps" in caplog.text


def make(**settings: Any) -> Trainer:
    return Trainer(**{"name": "a run", "model": "some-model", "dataset": HUB, "progress": False, **settings})


def test_it_stops_a_real_run_and_the_wait_for_it(slow_backend: Backend) -> None:
    stopping = EarlyStopping(patience=2, window=2, min_delta=0.5)
    trainer = make(max_steps=1000, save_steps=2, callbacks=[stopping])
    result = trainer.wait(timeout=30)
    assert result.job.status == "cancelled"
    assert stopping.stopped
    assert result.best is not None
    assert result.best.step in [artifact.step for artifact in result.artifacts]
    assert result.best == stopping.best
    assert trainer.chat("Hi", adapter=result.best.step).text() == "scripted: Hi"


def test_the_wait_alone_can_be_ended(slow_backend: Backend) -> None:
    steps: list[int] = []
    stopping = EarlyStopping(ceiling=1.0, cancel=False)
    trainer = make(max_steps=8, callbacks=[stopping, {"on_log": lambda ctx: steps.append(ctx.step)}])
    with pytest.raises(
        TrainerAborted, match=r"early stopping at step 1: .* above the ceiling of 1; the run itself continue"
    ):
        trainer.wait()
    assert steps == [1]
    result = trainer.wait(timeout=30)
    assert result.job.status == "completed"
    assert steps == list(range(1, 9))


WATCH = """
import sys
from arkor import Trainer
from arkor.callbacks import EarlyStopping
stopping = EarlyStopping(patience=3, min_delta=0.3)
result = Trainer.attach(sys.argv[1], callbacks=stopping, progress=False).wait(timeout=30)
print(result.job.status, stopping.stopped.split(":")[0], result.best.step)
"""


def test_a_second_process_stops_a_run_and_a_third_comes_to_the_same_decision(slow_backend: Backend) -> None:
    job_id = make(max_steps=1000, save_steps=2).start().job_id
    watchers = [
        subprocess.run([sys.executable, "-c", WATCH, job_id], capture_output=True, text=True, timeout=60, check=False)
        for _ in range(2)
    ]
    assert [watcher.returncode for watcher in watchers] == [0, 0], watchers[0].stderr
    assert watchers[0].stdout.startswith("cancelled step ")
    assert watchers[0].stdout == watchers[1].stdout


# The best checkpoint


def test_the_best_by_eval_loss_is_that_of_its_own_step() -> None:
    stopping = EarlyStopping(on="eval_loss")
    events = [log(2, None, 2.0), checkpoint(2), log(3, None, 0.1), log(4, None, 1.0), checkpoint(4), log(6, None, 1.0)]
    dispatcher = replay(stopping, [*events, checkpoint(6)])
    assert stopping.best is not None
    assert (stopping.best.step, stopping.best.value, stopping.best.metric) == (4, 1.0, "eval_loss")
    assert stopping.best.adapter.step == 4
    assert completed(dispatcher, there=[4, 6]).best == stopping.best


def test_the_best_by_loss_is_by_the_mean_since_the_checkpoint_before() -> None:
    stopping = EarlyStopping()
    events = [
        log(1, 2.0),
        log(2, 2.0),
        checkpoint(2),
        log(3, 0.1),
        log(4, 1.1),
        checkpoint(4),
        log(5, 1.0),
        checkpoint(5),
    ]
    dispatcher = replay(stopping, events)
    assert stopping.best is not None
    assert (stopping.best.step, stopping.best.value) == (4, pytest.approx(0.6))
    assert completed(dispatcher, there=[4, 5]).best == stopping.best


def test_the_result_names_only_existing_checkpoints() -> None:
    stopping = EarlyStopping()
    dispatcher = replay(stopping, [event for step in (1, 2, 3) for event in (log(step, step), checkpoint(step))])
    best = completed(dispatcher, there=[2, 3]).best
    assert best is not None
    assert best.step == 2


def test_a_run_without_checkpoints_has_no_best() -> None:
    assert completed(replay(EarlyStopping(), logs([1.0])), there=[]).best is None
    assert completed(replay(EarlyStopping(on="eval_loss"), [log(1, 1.0), checkpoint(1)]), there=[1]).best is None


def test_non_finite_values_are_ignored() -> None:
    tracker = BestCheckpointTracker()
    for step, loss in ((1, math.inf), (2, 3.0), (3, math.nan)):
        tracker.log(step, loss, None)
        tracker.checkpoint(step)
    assert tracker.best("loss") == (3.0, 2)


# Invalid arguments, contexts without a trainer


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"ceiling": "5"}, "ceiling"),
        ({"ceiling": math.nan}, "ceiling"),
        ({"ceiling": 10**400}, "ceiling"),
        ({"window": 0}, "window"),
        ({"window": 1.5}, "window"),
        ({"patience": 0}, "patience"),
        ({"patience": True}, "patience"),
        ({"min_delta": -1}, "min_delta"),
        ({"on": "accuracy"}, "on"),
        ({"cancel": 1}, "cancel"),
    ],
)
def test_wrong_values_are_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidConfig) as wrong:
        EarlyStopping(**settings)
    assert wrong.value.field == f"EarlyStopping.{name}"


def test_a_context_without_a_trainer_cannot_stop_a_run() -> None:
    job = replay([], []).job
    stopping = EarlyStopping(ceiling=5)
    stopping.on_started(StartedContext(job))
    stopping.on_log(TrainingLogContext(1, 2.0, None, None, None, None, job))
    assert stopping.stopped is None
    with pytest.raises(ArkorError, match="no run to control"):
        stopping.on_log(TrainingLogContext(2, 9.0, None, None, None, None, job))


def test_forgotten_parentheses_are_named() -> None:
    with pytest.raises(InvalidConfig, match=r"EarlyStopping is a class; write EarlyStopping\(…\)"):
        make(callbacks=[EarlyStopping])

    class Namespace:
        @staticmethod
        def on_log(ctx: TrainingLogContext) -> None:
            pass

    make(callbacks=Namespace)


def test_ready_made_callbacks_are_imported_on_first_use() -> None:
    code = "import sys; from arkor import Trainer; print(*sorted(name[16:] for name in sys.modules if name.startswith('arkor.callbacks.')))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "contexts registry\n"
    code = "from arkor.callbacks import *; print(EarlyStopping.__name__, Evaluate.__name__, Notify.__name__, Report.__name__)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "EarlyStopping Evaluate Notify Report\n"
    with pytest.raises(AttributeError, match="has no attribute 'EarlyStoping'"):
        _ = callbacks.EarlyStoping  # type: ignore[attr-defined]
