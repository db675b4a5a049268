"""The wording of progress, and progress as plain lines."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone

import pytest

from arkor.display import progress_for
from arkor.display.plain import PlainProgress
from arkor.display.run_progress import ProgressDisplay, RunProgress
from arkor.errors import InvalidConfig
from arkor.formatting import format_duration, format_loss, one_line
from arkor.protocol.events import (
    CheckpointSaved,
    TrainingCancelled,
    TrainingCompleted,
    TrainingFailedEvent,
    TrainingLog,
    TrainingPreparing,
    TrainingResumed,
    TrainingStarted,
    TrainingWarning,
)
from arkor.trainer.trainer import Trainer

MIDNIGHT = datetime(2026, 1, 1, tzinfo=timezone.utc)


def at(seconds: float) -> str:
    return (MIDNIGHT + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def logged(step: int, loss: float | None = None, seconds: float | None = None) -> TrainingLog:
    return TrainingLog("j", at(step if seconds is None else seconds), step, loss=loss)


def progress_of(*losses: float, total: int = 10, pace: float = 2.0) -> RunProgress:
    run_progress = RunProgress("triage")
    run_progress.update(TrainingStarted("j", at(0), total))
    for step, loss in enumerate(losses, start=1):
        run_progress.update(logged(step, loss, pace * step))
    return run_progress


def test_speed_and_time_left_come_from_the_time_stamps() -> None:
    run_progress = progress_of(3.0, 2.0, 1.0)
    assert run_progress.seconds_per_step == 2.0
    assert (run_progress.speed(), run_progress.time_left(), run_progress.steps()) == ("2.0 s/step", "0:14 left", "3/10")
    assert run_progress.time_left(since_last_step=4) == "0:10 left"
    assert progress_of(3.0, 2.0, pace=0.01).speed() == "100 steps/s"


@pytest.mark.parametrize(
    ("losses", "trend"),
    [
        ((), 0),
        ((1.0,), 0),
        ((2.0, 1.0), -1),
        ((1.0, 2.0), 1),
        ((1.0, 1.001), 0),
        ((2.0, 1.8, 1.0, 0.9), -1),
        ((0.9, 1.0, 1.8, 2.0), 1),
        ((1.0, 2.0, 1.0, 0.5), 0),
        ((0.01, 0.07, 0.03, 0.06, 0.02, 0.06), 0),
        ((1.0, float("nan")), 0),
        ((1e308, -1e308, 1e308, 1e308), 0),
        ((0.0, 0.0), 0),
    ],
)
def test_the_trend_of_the_loss(losses: tuple[float, ...], trend: int) -> None:
    assert progress_of(*losses).trend == trend


def test_a_foreign_time_stamp_only_costs_the_speed() -> None:
    run_progress = RunProgress()
    run_progress.update(TrainingStarted("j", "", 10))
    run_progress.update(TrainingLog("j", "yesterday", 1, loss=1.0))
    assert (run_progress.speed(), run_progress.time_left(), run_progress.duration()) == ("", "", "")


def test_numbers_and_clocks() -> None:
    assert [format_loss(x) for x in (0.5, 0.00002, 12345.6, float("nan"))] == ["0.5000", "2e-05", "1.23e+04", "nan"]
    assert [format_duration(x) for x in (7, 102, 7511)] == ["0:07", "1:42", "2:05:11"]


def test_text_of_a_backend_cannot_break_the_line() -> None:
    run_progress = RunProgress("a\x1b[2Jname")
    run_progress.update(TrainingFailedEvent("j", at(1), "first line\nsecond\r\x1b[31mline"))
    assert run_progress.name == "a [2Jname"
    assert run_progress.phase == "failed: first line second [31mline"


def test_joiners_of_scripts_and_emoji_are_kept() -> None:
    assert one_line("می\u200cخواهم\u202e\n👩\u200d👧") == "می\u200cخواهم 👩\u200d👧"


def lines_of(*events: object, every: float = 0.0) -> list[str]:
    stream = io.StringIO()
    with PlainProgress(stream, RunProgress("triage"), every=every) as progress:
        for event in events:
            progress.on_event(event)  # type: ignore[arg-type]
            with progress.paused():
                pass
    return stream.getvalue().splitlines()


def test_a_run_in_lines() -> None:
    assert lines_of(
        TrainingPreparing("j", at(0), "Loading the model"),
        TrainingStarted("j", at(1), 4),
        logged(1, 2.0, 2),
        logged(2, 1.0, 3),
        CheckpointSaved("j", at(3), 2),
        TrainingCompleted("j", at(5)),
    ) == [
        "triage: Loading the model",
        "triage: training, 4 steps",
        "triage: step 1/4, loss 2.0000, 1.0 s/step, 0:03 left",
        "triage: step 2/4, loss 1.0000 (falling), 1.0 s/step, 0:02 left",
        "triage: checkpoint 2 saved",
        "triage: completed, step 2/4, loss 1.0000 (falling), in 0:04",
    ]


def test_a_run_whose_worker_died() -> None:
    assert lines_of(
        TrainingStarted("j", at(1), 4),
        logged(1, 2.0, 2),
        TrainingWarning("j", at(2), "Checkpoint 1 could not\nbe kept"),
        TrainingResumed("j", at(60), 0, "the worker was killed by SIGKILL"),
        TrainingResumed("j", at(120), 1, "the worker was killed by SIGKILL"),
        logged(2, 1.0, 180),
        logged(3, 1.0, 181),
    ) == [
        "triage: training, 4 steps",
        "triage: step 1/4, loss 2.0000, 1.0 s/step, 0:03 left",
        "triage: warning: Checkpoint 1 could not be kept",
        "triage: starting again: the worker was killed by SIGKILL",
        "triage: resuming from step 1: the worker was killed by SIGKILL",
        "triage: step 2/4, loss 1.0000 (falling)",
        "triage: step 3/4, loss 1.0000 (falling), 1.0 s/step, 0:01 left",
    ]


def test_numbers_are_throttled_but_stages_are_not() -> None:
    events = [logged(step, 1.0) for step in range(1, 1000)]
    assert lines_of(*events, CheckpointSaved("j", at(9), 9), TrainingCancelled("j", at(1000)), every=60) == [
        "triage: step 1, loss 1.0000",
        "triage: checkpoint 9 saved",
        "triage: cancelled, step 999, loss 1.0000",
    ]


def test_a_diverged_loss_is_shown_as_such() -> None:
    assert lines_of(logged(1, float("nan"))) == ["triage: step 1, loss nan"]


def test_a_closed_stream_does_not_hurt() -> None:
    stream = io.StringIO()
    stream.close()
    PlainProgress(stream).on_event(logged(1, 1.0))


@pytest.mark.parametrize("stderr", ["None", "open('/dev/null', 'w'); sys.stderr.close()"])
def test_without_a_stderr_there_is_silence(stderr: str) -> None:
    code = f"import sys; sys.stderr = {stderr}; from arkor.display import progress_for; print(progress_for('auto'))"
    assert "<arkor.display.run_progress.ProgressDisplay object" in subprocess.check_output(
        [sys.executable, "-c", code], text=True
    )


def test_which_display_for_which_setting() -> None:
    assert type(progress_for(False)) is ProgressDisplay
    assert isinstance(progress_for("auto"), PlainProgress)
    with pytest.raises(InvalidConfig, match='progress: must be "auto", True or False'):
        Trainer.attach("j-1", progress="loud")  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_event_that_is_not_shown_costs_next_to_nothing() -> None:
    events = [logged(step, 1.0) for step in range(100_000)]
    with PlainProgress(io.StringIO(), every=60) as progress:
        began = time.process_time()
        for event in events:
            progress.on_event(event)
        assert (time.process_time() - began) / len(events) < 10e-6  # about 1 µs; 20 µs if each were drawn
