"""Reports: each metric is written once, and a failing tracker does not end the wait."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arkor import BlobDataset, InvalidConfig, Trainer
from arkor.callbacks import Report
from arkor.callbacks.report.trackers import MLFLOW_PACKAGES, require_module, settings_of
from arkor.protocol.codec import from_wire
from arkor.protocol.jobs import TrainingJob
from tests.callbacks.replays import completed, log, logs, replay
from tests.conftest import Backend
from tests.fakes.run_server import JOB

HUB = {"type": "huggingface", "name": "some/rows"}
HEAD = "job_id,step,loss,eval_loss,learning_rate,epoch,samples_per_second"


def make(**settings: Any) -> Trainer:
    return Trainer(**{"name": "a run", "model": "some-model", "dataset": HUB, "progress": False, **settings})


# Files


def test_a_csv_file_has_a_row_per_log(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "run.CSV"
    completed(replay(Report(file), [*logs([2.0, None, math.nan]), log(3, None, -math.inf)]), [])
    assert file.read_text() == f"{HEAD}\nj,1,2.0,,,,\nj,3,nan,,,,\nj,3,,-inf,,,\n"


def test_a_file_of_json_lines_is_strict_json(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    completed(replay(Report(str(file)), [*logs([2.0]), log(2, math.nan, 1.5)]), [])
    rows = [json.loads(line, parse_constant=pytest.fail) for line in file.read_text().splitlines()]
    assert rows == [
        {"job_id": "j", "step": 1, "loss": 2.0},
        {"job_id": "j", "step": 2, "loss": None, "eval_loss": 1.5, "nonFinite": {"loss": "nan"}},
    ]


@pytest.mark.parametrize("name", ["run.csv", "run.jsonl"])
def test_a_run_reported_twice_is_in_the_file_once(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    completed(replay(Report(file), logs([2.0, 1.0])), [])
    first = file.read_bytes()
    file.write_bytes(first.replace(b"j,", b"other,").replace(b'"j"', b'"other"') + first.split(b"\n", 1)[1])
    completed(replay(Report(file), logs([2.0, 1.0, 0.5])), [])
    rows = file.read_text().splitlines()
    assert sum("other" in row for row in rows) == 2
    assert len(rows) == 5 + name.endswith("csv")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["run.csv", "run.jsonl"])
def test_a_torn_row_is_rewritten(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    completed(replay(Report(file), logs([2.0, 1.0])), [])
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        completed(replay(Report(file), logs([2.0, 1.0])), [])
        assert file.read_bytes() == whole


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl"])
@pytest.mark.parametrize("text", ["name,salary\nme,5\n", "a letter", '[{"a": 1}]\n', '{"a": 1}\n', "\xff\xfe"])
def test_a_foreign_file_is_not_modified(name: str, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / name
    file.write_bytes(text.encode("latin-1"))
    completed(replay(Report(file), logs([2.0, 1.0])), [])
    assert file.read_bytes() == text.encode("latin-1")
    assert len(caplog.records) == 1
    assert "is not a metrics file" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_full_disk_ends_the_report_but_not_the_wait(
    backend: Backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    steps: list[int] = []
    callbacks = [Report(tmp_path / "file" / "run.csv"), {"on_log": lambda ctx: steps.append(ctx.step)}]
    assert make(max_steps=3, callbacks=callbacks).wait().job.status == "completed"
    assert steps == [1, 2, 3]
    assert sum("failed and is disabled for this run" in record.getMessage() for record in caplog.records) == 1


WATCH = """
import sys
from arkor import Trainer
from arkor.callbacks import Report
Trainer.attach(sys.argv[1], callbacks=[Report("run.csv"), Report("run.jsonl")], progress=False).wait()
"""


def test_a_second_process_reports_a_run_that_goes_on(slow_backend: Backend, tmp_path: Path) -> None:
    job_id = make(max_steps=6).start().job_id
    for _ in range(2):
        subprocess.run([sys.executable, "-c", WATCH, job_id], check=True, timeout=60, cwd=tmp_path)
    rows = list(csv.DictReader((tmp_path / "run.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == list("123456")
    assert float(rows[2]["loss"]) == pytest.approx(2 * 0.9**3)
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 6


# Trackers


def events_in(file: Path) -> Iterator[Any]:
    """Parse TFRecord framing: length (8 bytes), checksum (4), event, checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415 - optional

    data = file.read_bytes()
    while data:
        end = 12 + int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12:end])
        data = data[end + 4 :]


def test_tensorboard_gets_every_number_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    for _ in range(2):
        completed(replay(Report("tensorboard", folder=tmp_path), [*logs([2.0, 1.0]), log(2, None, 1.5)]), [])
    (file,) = (tmp_path / "j").iterdir()
    values = [(event.step, value) for event in events_in(file) for value in event.summary.value]
    assert [(step, value.tag, value.simple_value) for step, value in values] == [
        (1, "train/loss", 2.0),
        (2, "train/loss", 1.0),
        (2, "eval/loss", 1.5),
    ]


def test_a_missing_package_is_named_with_its_install_command() -> None:
    with pytest.raises(InvalidConfig, match=r"Report\.to: needs the package wandb; install it: pip install wandb"):
        require_module("a_library_that_is_nowhere", package="wandb")


def test_the_documentation_has_the_install_command_of_the_error() -> None:
    page = Path(__file__).parents[3] / "docs" / "recipes" / "reports.md"
    assert f"`pip install {MLFLOW_PACKAGES}`" in page.read_text("utf-8")


@pytest.mark.parametrize("to", ["run.txt", "tensorbord", "", 5, None])
def test_an_invalid_destination_is_rejected(to: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"'tensorboard', 'wandb', 'mlflow', 'trackio', or a file that ends"):
        Report(to)


def test_invalid_options_are_rejected() -> None:
    pytest.importorskip("tensorboardX")
    with pytest.raises(InvalidConfig, match="project"):
        Report("tensorboard", project="x")
    with pytest.raises(InvalidConfig, match="takes no options"):
        Report("run.csv", folder="x")


def test_a_tracker_sees_settings_and_no_secrets() -> None:
    config = {
        **JOB["config"],
        "maxSteps": 5,
        "datasetSplit": {"eval": 0.1},
        "datasetSource": {
            "type": "blob",
            "url": "https://me:s3cret@host/rows.jsonl?sig=s3cret#s3cret",
            "token": "s3cret",
        },
    }
    job: TrainingJob = from_wire(TrainingJob, {**JOB, "config": config})
    assert isinstance(job.config.dataset_source, BlobDataset)
    assert settings_of(job) == {
        "model": "m",
        "max_steps": 5,
        "dataset_split": '{"eval": 0.1}',
        "dataset": "https://host/rows.jsonl",
        "job_id": "j",
    }
