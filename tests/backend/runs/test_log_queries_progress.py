"""How far a run has come: what it saved and what of it is there, and whether it gets on."""

from __future__ import annotations

from pathlib import Path

import pytest

from arkor.backend.runs.checkpoints import resume_step
from arkor.backend.runs.event_log import LogCorrupted, LogWriter
from arkor.backend.runs.log_queries import present_artifacts, read_log_progress
from arkor.backend.runs.paths import RunFolder
from arkor.protocol.events import CheckpointSaved, Event, TrainingLog, TrainingPreparing, TrainingResumed
from arkor.protocol.jobs import Artifact


def log(step: int) -> Event:
    return TrainingLog("job", "", step, 1.0)


def saved(step: int) -> Event:
    return CheckpointSaved("job", "", step, (Artifact("checkpoint", step, f"checkpoints/{step}", 1),))


def resumed(step: int = 0) -> Event:
    return TrainingResumed("job", "", step)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def write(folder: RunFolder, *events: Event) -> None:
    with LogWriter(folder.events) as writer:
        for event in events:
            writer.append(event)


def test_nothing_yet(folder: RunFolder) -> None:
    progress = read_log_progress(folder)
    assert (progress.step, progress.stalled_resumptions) == (None, 0)
    assert (resume_step(folder, progress.saved), present_artifacts(folder, progress.saved)) == (None, ())


@pytest.mark.parametrize(
    ("events", "fruitless"),
    [
        ([resumed(), resumed()], 2),
        ([log(1), resumed(), TrainingPreparing("job", ""), resumed()], 2),
        ([log(1), resumed(), log(2), resumed()], 1),
        ([resumed(), resumed(), log(1)], 0),
        ([log(5), saved(5), resumed(), saved(5), log(5), resumed()], 2),
        ([log(5), resumed(), saved(6)], 0),
    ],
)
def test_a_resumption_is_fruitless_until_a_new_step_is_reached(
    folder: RunFolder, events: list[Event], fruitless: int
) -> None:
    write(folder, *events)
    assert read_log_progress(folder).stalled_resumptions == fruitless


def test_what_is_gone_is_not_listed(folder: RunFolder) -> None:
    write(folder, saved(2), saved(4), log(5))
    folder.checkpoint(4).mkdir(parents=True)
    progress = read_log_progress(folder)
    assert progress.step == 5
    assert [artifact["step"] for artifact in present_artifacts(folder, progress.saved)] == [4]
    assert resume_step(folder, progress.saved) is None  # it has no training state in it


def test_a_damaged_log_is_told_of(folder: RunFolder) -> None:
    folder.events.write_bytes(b'{"type":"training.log", no\n')
    with pytest.raises(LogCorrupted):
        read_log_progress(folder)
