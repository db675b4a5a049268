"""Runs whose workers die: what a supervisor does between two workers, and what must be true in the end."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from arkor.backend.runs.checkpoints import is_resumable, resume_step
from arkor.backend.runs.event_log import LogWriter
from arkor.backend.runs.log_queries import read_resume_point
from arkor.backend.runs.paths import STATE_FOLDER, RunFolder, create_run, prepare
from arkor.protocol.events import TrainingResumed, now

#: What differs between two runs that are the same.
FREE = ("timestamp", "jobId", "samplesPerSecond")


def make_run(home: Path, name: str, rows: list[dict[str, Any]] | None = None, **config: Any) -> RunFolder:
    """A run that nobody has begun."""
    prepare(home)
    data = "\n".join(json.dumps(row) for row in rows or []).encode()
    digest = hashlib.sha256(data).hexdigest()
    (home / "datasets" / digest).write_bytes(data)
    source = {"type": "blob", "url": f"/v1/datasets/{digest}/rows.jsonl"}
    job = {"id": name, "name": name, "config": {"model": "m", "datasetSource": source, **config}}
    return create_run(home, job, None)


def finalize(folder: RunFolder, reason: str = "the worker was killed by SIGKILL") -> int:
    """What the supervisor does when a worker is dead; returns the step that the run goes on from."""
    with LogWriter(folder.events, wait=True) as log:
        step = resume_step(folder, read_resume_point(folder).saved) or 0
        if not log.tail.terminal:
            log.append(TrainingResumed(folder.id, now(), step, reason), sync=True)
    return step


def lines(folder: RunFolder) -> list[dict[str, Any]]:
    """The log, each line of which must be whole."""
    data = folder.events.read_bytes()
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.splitlines()]


def events_of_type(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    """The events of one type, without what is free to differ."""
    return [{k: v for k, v in line.items() if k not in FREE} for line in lines(folder) if line["type"] == kind]


def assert_same(folder: RunFolder, undisturbed: RunFolder) -> None:
    """The run has come to the very end that the other one came to, and its log tells of the same way there."""
    for kind in ("training.started", "training.log", "checkpoint.saved"):
        assert events_of_type(folder, kind) == events_of_type(undisturbed, kind)
    (end,), (other,) = events_of_type(folder, "training.completed"), events_of_type(undisturbed, "training.completed")
    for metrics in (end["metrics"], other["metrics"]):
        for measured in ("seconds", "totalTime", "memory_bytes"):
            metrics.pop(measured, None)
    assert end == other
    assert lines(folder)[-1]["type"] == "training.completed"
    weights = "adapter_model.safetensors"
    assert (folder.final / weights).read_bytes() == (undisturbed.final / weights).read_bytes()
    there = {f"checkpoints/{path.name}" for path in folder.checkpoints.iterdir() if not path.name.startswith(".")}
    assert there | {"final"} == {artifact["path"] for artifact in end["artifacts"]}


def assert_whole(folder: RunFolder) -> None:
    """Right after a death: whatever the log lists and is there can be answered from, and gone on from if it is new."""
    complete = folder.events.read_bytes().rpartition(b"\n")[0]
    listed = [json.loads(line)["step"] for line in complete.splitlines() if b'"checkpoint.saved"' in line]
    for step in listed:
        at = folder.checkpoint(step)
        if at.is_dir():
            assert (at / "adapter_model.safetensors").is_file()
            assert is_resumable(at) or not (at / STATE_FOLDER).exists()
    if listed and not folder.final.exists():
        assert is_resumable(folder.checkpoint(listed[-1]))
