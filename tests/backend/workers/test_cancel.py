"""A worker that is asked to stop does so at once, whatever it is busy with, and keeps what there is."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from arkor.backend.runs.paths import RunFolder
from tests.backend.crashing_worker import events_of_type, lines, make_run
from tests.fakes.http_server import Answer, HttpServer, Request
from tests.fakes.process_tree import ProcessTree
from tests.fakes.tiny_model import make_tiny_model

pytestmark = pytest.mark.slow

#: Each run would take much longer; that it was stopped early shows in its events.
SECONDS = 60.0

MANY = [
    {"messages": [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": "A number."}]}
    for number in range(20_000)
]
LONG = [{"text": f"{number} " + "and so on " * 20} for number in range(200)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def cancelled(trainers: ProcessTree, folder: RunFolder, stop_at: str, delay: float = 0.2) -> dict[str, Any]:
    """Stop the run when its log says so; returns its end."""
    worker_exit = trainers.run(folder.path, stop_at=stop_at, delay=delay)
    assert worker_exit.code == 0, folder.worker_log.read_text()
    assert 0 < worker_exit.seconds < SECONDS
    end = lines(folder)[-1]
    assert (end["type"], end["error"]) == ("training.failed", "Job cancelled"), end
    assert "Traceback" not in folder.worker_log.read_text()
    return end


def test_while_downloading(tmp_path: Path, model: Path, trainers: ProcessTree) -> None:
    def never(_: Request) -> Answer:
        released.wait(600)
        return Answer(None)

    released = threading.Event()
    server = HttpServer(never)
    folder = make_run(tmp_path, "run", model=str(model))
    job = folder.read_job()
    job["config"]["datasetSource"] = {"type": "blob", "url": f"{server.url}/rows.jsonl"}
    folder.job.write_text(json.dumps(job))
    end = cancelled(trainers, folder, "Reading the data")
    released.set()
    assert end["artifacts"] == []


def test_while_loading(tmp_path: Path, model: Path, trainers: ProcessTree) -> None:
    folder = make_run(tmp_path, "run", LONG * 20, model=str(model))
    assert cancelled(trainers, folder, "Loading", delay=0.0)["artifacts"] == []


@pytest.mark.parametrize("stop_at", ["Reading the data", "Tokenizing"])
def test_while_reading_and_tokenizing(tmp_path: Path, model: Path, trainers: ProcessTree, stop_at: str) -> None:
    folder = make_run(tmp_path, "run", MANY * 2, model=str(model))
    assert cancelled(trainers, folder, stop_at)["artifacts"] == []
    assert not events_of_type(folder, "training.started")


def test_while_training(tmp_path: Path, model: Path, trainers: ProcessTree) -> None:
    folder = make_run(tmp_path, "run", LONG, model=str(model), maxSteps=5000, batchSize=2, saveSteps=5000)
    end = cancelled(trainers, folder, '"step":3')
    assert [artifact["step"] for artifact in end["artifacts"]] == [end["step"]]
    assert (folder.checkpoint(end["step"]) / "adapter_model.safetensors").is_file()


def test_while_evaluating(tmp_path: Path, model: Path, trainers: ProcessTree) -> None:
    split = {"train": "train[:2]", "eval": "train[2:]"}
    config = {"maxSteps": 50, "batchSize": 2, "evalSteps": 1, "saveSteps": 1, "datasetSplit": split}
    folder = make_run(tmp_path, "run", LONG * 20, model=str(model), **config)
    end = cancelled(trainers, folder, '"step":1')
    assert not [event for event in events_of_type(folder, "training.log") if "evalLoss" in event]
    assert [artifact["step"] for artifact in end["artifacts"]] == [1]


def test_while_saving(tmp_path: Path, model: Path, trainers: ProcessTree) -> None:
    """With a checkpoint after each step, the worker does little else."""
    folder = make_run(tmp_path, "run", LONG, model=str(model), maxSteps=5000, batchSize=1, saveSteps=1)
    end = cancelled(trainers, folder, '"step":3')
    steps = [event["step"] for event in events_of_type(folder, "checkpoint.saved")]
    assert steps == list(range(1, end["step"] + 1))
    kept = [artifact["step"] for artifact in end["artifacts"]]
    assert kept[-2:] == steps[-2:]
    assert len(kept) <= 3  # the best one, too
    assert sorted(int(path.name) for path in folder.checkpoints.glob("[0-9]*")) == kept
