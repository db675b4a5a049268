"""A run whose worker dies comes to the end that it would have come to: the same bytes, each step told once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arkor.backend.inference.messages import GenerationError
from arkor.backend.inference.service import adapter_folder
from arkor.backend.runs.checkpoints import is_resumable, locate, remove_expired
from arkor.backend.runs.paths import STATE_FOLDER, RunFolder
from arkor.backend.workers.worker import EXIT_TERMINATED
from arkor.callbacks import EarlyStopping
from arkor.protocol.chat import Adapter
from arkor.protocol.events import decode_event
from tests.backend.crashing_worker import assert_same, assert_whole, events_of_type, finalize, lines, make_run
from tests.callbacks.replays import replay
from tests.fakes.process_tree import ENVIRONMENT, ProcessTree
from tests.fakes.tiny_model import make_tiny_model

pytestmark = pytest.mark.slow

SCRIPT = {"maxSteps": 6, "saveSteps": 2, "evalSteps": 3}


@pytest.fixture
def schedules(pytestconfig: pytest.Config) -> int:
    """How many deaths to try where all would take too long; 0 leaves it to the test, which then tries a few."""
    return pytestconfig.getoption("--schedules") or 0


@pytest.fixture(scope="module")
def scripted() -> Iterator[ProcessTree]:
    with ProcessTree("scripted") as process_tree:
        yield process_tree


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder where waiting for the disk takes no time, if there is one: thousands of deaths make it long."""
    fast = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=fast)) if os.access(fast, os.W_OK) else tmp_path
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def see_through(process_tree: ProcessTree, folder: RunFolder, **worker_exit: Any) -> None:
    """One death, if it comes to that, and a worker that ends the run."""
    if process_tree.run(folder.path, **worker_exit).code:
        assert_whole(folder)
        finalize(folder)
        assert process_tree.run(folder.path).code == 0, folder.worker_log.read_text()


# The machinery, at every moment


@pytest.mark.parametrize(("kind", "deaths"), [("line", 60), ("touch", 60)])
def test_a_worker_may_die_at_any_moment(
    memory: Path, scripted: ProcessTree, schedules: int, kind: str, deaths: int
) -> None:
    undisturbed = make_run(memory, "undisturbed", **SCRIPT)
    moments = scripted.run(undisturbed.path, **{kind: -1}).ticks
    assert moments > 50
    stride = max(1, moments // (schedules * 10 or deaths))
    for moment in range(1 + random.Random(kind).randrange(stride), moments + 1, stride):
        folder = make_run(memory, f"{kind}-{moment}", **SCRIPT)
        see_through(scripted, folder, **{kind: moment})
        assert_same(folder, undisturbed)
        shutil.rmtree(folder.path)


def test_a_worker_may_die_again_and_again(memory: Path, scripted: ProcessTree, schedules: int) -> None:
    undisturbed = make_run(memory, "undisturbed", **SCRIPT)
    moments = scripted.run(undisturbed.path, line=-1).ticks
    for seed in range(schedules or 6):
        chance = random.Random(seed)
        folder = make_run(memory, f"seed-{seed}", **SCRIPT)
        while scripted.run(folder.path, line=chance.randrange(moments // 4, moments)).code:
            assert_whole(folder)
            finalize(folder)
        assert_same(folder, undisturbed)


def test_a_log_may_be_torn_at_any_byte(memory: Path, scripted: ProcessTree) -> None:
    undisturbed = make_run(memory, "undisturbed", **SCRIPT)
    scripted.run(undisturbed.path)
    size = undisturbed.events.stat().st_size
    for at in range(0, size, size // 25):
        folder = make_run(memory, f"torn-{at}", **SCRIPT)
        shutil.rmtree(folder.path)
        shutil.copytree(undisturbed.path, folder.path)
        os.truncate(folder.events, at)
        finalize(folder)
        assert scripted.run(folder.path).code == 0
        assert_same(folder, undisturbed)


# What is kept


def kept(folder: RunFolder) -> list[int]:
    return sorted(int(path.name) for path in folder.checkpoints.glob("[0-9]*"))


def test_the_newest_two_and_the_best_are_kept(memory: Path, scripted: ProcessTree) -> None:
    folder = make_run(memory, "run", maxSteps=10, saveSteps=2, evalSteps=2)
    assert scripted.run(folder.path).code == 0
    assert kept(folder) == [8, 10]
    assert [event["step"] for event in events_of_type(folder, "checkpoint.saved")] == [2, 4, 6, 8, 10]
    assert [artifact["path"] for artifact in lines(folder)[-1]["artifacts"]] == [
        "checkpoints/8",
        "checkpoints/10",
        "final",
    ]
    assert not list(folder.path.rglob(STATE_FOLDER))
    remove_expired(folder, 0)
    with pytest.raises(
        GenerationError, match=r"has no checkpoint of step 2\. Its checkpoints are of step 8, 10\."
    ) as refusal:
        adapter_folder(folder, Adapter("checkpoint", folder.id, 2))
    assert refusal.value.status == 404


@pytest.mark.parametrize(("setting", "there"), [("1", [10]), ("3", [6, 8, 10]), ("0", [2, 4, 6, 8, 10])])
def test_how_many_are_kept_is_a_setting(memory: Path, setting: str, there: list[int]) -> None:
    folder = make_run(memory, "run", maxSteps=10, saveSteps=2)
    with ProcessTree("scripted", ARKOR_KEEP_CHECKPOINTS=setting) as process_tree:
        assert process_tree.run(folder.path).code == 0
    assert kept(folder) == there


def test_what_is_not_kept_is_retired_for_who_is_slow(memory: Path, scripted: ProcessTree) -> None:
    folder = make_run(memory, "run", maxSteps=30, saveSteps=1)
    assert scripted.run(folder.path).code == 0
    assert kept(folder) == [29, 30]
    assert sorted(int(path.name) for path in folder.retired.glob("[0-9]*")) == list(range(9, 29))
    assert adapter_folder(folder, Adapter("checkpoint", folder.id, 12)) == folder.retired / "12"
    assert locate(folder.checkpoint(30)) == folder.checkpoint(30)
    os.utime(folder.retired / "12", (0, 0))
    remove_expired(folder)
    with pytest.raises(GenerationError):
        adapter_folder(folder, Adapter("checkpoint", folder.id, 12))
    remove_expired(folder, 0)
    assert not folder.retired.exists()


def test_the_best_is_kept_over_a_death(memory: Path, scripted: ProcessTree) -> None:
    """The first evaluation is made to be the best; a worker that comes later knows of it from the log."""
    folder = make_run(memory, "run", model="scripted/crash-once-5", maxSteps=10, saveSteps=2, evalSteps=2)
    assert scripted.run(folder.path).code == 13
    text = folder.events.read_text()
    folder.events.write_text(text.replace(f'"evalLoss":{2 * 0.9**2 * 1.1}', '"evalLoss":0.5'))
    finalize(folder)
    assert scripted.run(folder.path).code == 0
    assert kept(folder) == [2, 8, 10]


def test_without_an_evaluation_the_best_is_that_of_the_lowest_loss(memory: Path, scripted: ProcessTree) -> None:
    """The losses before the first checkpoint are made to be the lowest."""
    folder = make_run(memory, "run", model="scripted/crash-once-5", maxSteps=10, saveSteps=2)
    assert scripted.run(folder.path).code == 13
    text = folder.events.read_text()
    folder.events.write_text(text.replace(f'"loss":{2 * 0.9**2}', '"loss":-9.5'))
    finalize(folder)
    assert scripted.run(folder.path).code == 0
    assert kept(folder) == [2, 8, 10]
    stopping = EarlyStopping()
    replay(stopping, [event for event in map(decode_event, lines(folder)[1:-1]) if event is not None])
    assert stopping.best is not None
    assert stopping.best.step == 2


def test_a_crash_at_the_same_place_is_one_without_progress(memory: Path, scripted: ProcessTree) -> None:
    folder = make_run(memory, "run", model="scripted/crash")
    for _ in range(3):
        assert scripted.run(folder.path).code == 13
        assert finalize(folder) == 2
    assert [event["step"] for event in events_of_type(folder, "training.log")] == [1, 2]


def test_a_damaged_checkpoint_is_passed_over(memory: Path, scripted: ProcessTree) -> None:
    undisturbed = make_run(memory, "undisturbed", **SCRIPT)
    assert scripted.run(undisturbed.path).code == 0
    folder = make_run(memory, "run", **{**SCRIPT, "model": "scripted/crash-once-5"})
    assert scripted.run(folder.path).code == 13
    os.truncate(folder.checkpoint(4) / STATE_FOLDER / "score.json", 3)
    assert not is_resumable(folder.checkpoint(4))
    assert finalize(folder) == 2
    assert scripted.run(folder.path).code == 0
    assert_same(folder, undisturbed)


# Real training


WORDS = ("apple", "stone", "river", "cloud")
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {'ABCD'[number % 4]}?"},
            {"role": "assistant", "content": WORDS[number % 4]},
        ]
    }
    for number in range(22)
]

#: Epochs of five steps; checkpoints within epochs and at their ends, lines of numbers that span both.
TRAINING = {
    "maxSteps": 13,
    "batchSize": 4,
    "learningRate": 0.01,
    "saveSteps": 5,
    "loggingSteps": 2,
    "evalSteps": 5,
    "lrSchedulerType": "cosine",
}


#: Right before the last checkpoint.
LATE = {"touch": 1, "below": "checkpoints/.13.partial"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def model(home: Path) -> Path:
    """With dropout, so that a random number out of place would show."""
    folder = make_tiny_model(home / "model", "gpt2")
    config = json.loads((folder / "config.json").read_text())
    config.update(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def undisturbed(home: Path, model: Path, trainers: ProcessTree) -> RunFolder:
    folder = make_run(home, "undisturbed", CHATS, model=str(model), **TRAINING)
    assert trainers.run(folder.path).code == 0, folder.worker_log.read_text()
    return folder


def start(folder: RunFolder) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "arkor.backend.workers.worker",
        str(folder.path),
        "--home",
        str(folder.path.parent.parent),
    ]
    with folder.worker_log.open("ab") as output:
        environment = {**os.environ, **ENVIRONMENT}
        return subprocess.Popen(command, stdout=output, stderr=output, cwd=folder.path, env=environment)


def test_a_killed_trainer_and_the_next_one(
    home: Path, model: Path, trainers: ProcessTree, undisturbed: RunFolder
) -> None:
    """One process as the supervisor starts it."""
    folder = make_run(home, "killed", CHATS, model=str(model), **TRAINING)
    with start(folder) as process:
        deadline = time.monotonic() + 60
        while b'"step":8' not in folder.events.read_bytes():
            assert time.monotonic() < deadline
            assert process.poll() is None, folder.worker_log.read_text()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert finalize(folder) == 5
    assert trainers.run(folder.path).code == 0, folder.worker_log.read_text()
    assert_same(folder, undisturbed)
    assert events_of_type(folder, "training.resumed") == [
        {"type": "training.resumed", "step": 5, "reason": "the worker was killed by SIGKILL"}
    ]


def test_a_trainer_may_die_whenever_it_touches_a_file(
    home: Path, model: Path, trainers: ProcessTree, undisturbed: RunFolder, schedules: int
) -> None:
    whole = make_run(home, "whole", CHATS, model=str(model), **TRAINING)
    moments = trainers.run(whole.path, touch=-1).ticks
    assert_same(whole, undisturbed)
    for moment in random.Random(7).sample(range(1, moments + 1), min(schedules or 3, moments)):
        folder = make_run(home, f"touch-{moment}", CHATS, model=str(model), **TRAINING)
        see_through(trainers, folder, touch=moment)
        assert_same(folder, undisturbed)


def test_a_trainer_may_die_again_and_again(
    home: Path, model: Path, trainers: ProcessTree, undisturbed: RunFolder, schedules: int
) -> None:
    for seed in range(max(1, schedules // 10)):
        chance = random.Random(seed)
        folder = make_run(home, f"seed-{seed}", CHATS, model=str(model), **TRAINING)
        longest, deaths = 0.6, 0
        while trainers.run(folder.path, seconds=chance.uniform(0.2, longest)).code:
            assert_whole(folder)
            finalize(folder)
            longest, deaths = longest * 1.25, deaths + 1
        assert deaths
        assert_same(folder, undisturbed)


def test_a_machine_may_be_shut_down_whenever(home: Path, model: Path, trainers: ProcessTree, schedules: int) -> None:
    """Batches that go through the model in parts, evaluations and checkpoints may all be left in the middle."""
    rows = [{"text": f"{number} " + "and so on " * 22} for number in range(30)]
    config = {"model": str(model), **TRAINING, "batchSize": 10, "maxSteps": 6, "saveSteps": 2, "evalSteps": 3}
    whole = make_run(home, "whole-day", rows, **config)
    assert trainers.run(whole.path).code == 0
    left = []
    for seed in range(max(1, schedules // 10)):
        chance = random.Random(seed)
        folder = make_run(home, f"day-{seed}", rows, **config)
        for text in ("training.started", '"step":2', '"step":4'):
            left.append(trainers.run(folder.path, stop_at=text, politely=True, delay=chance.uniform(0, 0.4)).code)
            finalize(folder, "the machine was shut down")
        trainers.run(folder.path)
        assert events_of_type(folder, "training.log") == events_of_type(whole, "training.log")
        weights = "adapter_model.safetensors"
        assert (folder.final / weights).read_bytes() == (whole.final / weights).read_bytes()
    assert EXIT_TERMINATED in left


@pytest.mark.parametrize(
    "settings",
    [{"optim": "adafactor"}, {"optim": "sgd", "lrSchedulerType": "warmup_stable_decay"}],
)
def test_every_optimizer_goes_on(home: Path, model: Path, trainers: ProcessTree, settings: dict[str, Any]) -> None:
    config = {"model": str(model), **TRAINING, **settings}
    whole = make_run(home, f"whole-{settings['optim']}", CHATS, **config)
    assert trainers.run(whole.path).code == 0
    folder = make_run(home, f"killed-{settings['optim']}", CHATS, **config)
    assert trainers.run(folder.path, **LATE).code == -signal.SIGKILL
    assert finalize(folder) == 10
    assert trainers.run(folder.path).code == 0
    assert_same(folder, whole)


def killed_late(home: Path, model: Path, trainers: ProcessTree, name: str) -> RunFolder:
    folder = make_run(home, name, CHATS, model=str(model), **TRAINING)
    assert trainers.run(folder.path, **LATE).code == -signal.SIGKILL
    return folder


def test_a_state_is_no_pickle_and_not_kept_for_ever(home: Path, model: Path, trainers: ProcessTree) -> None:
    folder = killed_late(home, model, trainers, "stateful")
    files = {path.name for path in (folder.checkpoint(10) / STATE_FOLDER).iterdir()}
    assert files == {"training.json", "training.safetensors", "trainer_state.json", "files.json"}
    assert not [path for path in folder.path.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]
    finalize(folder)
    assert trainers.run(folder.path).code == 0
    assert not list(folder.path.rglob(STATE_FOLDER))


def test_other_rows_are_not_gone_on_with(home: Path, model: Path, trainers: ProcessTree) -> None:
    folder = killed_late(home, model, trainers, "other-rows")
    job = folder.read_job()
    other = make_run(home, "other", [*CHATS[:-1], CHATS[0]], model=str(model)).read_job()
    job["config"]["datasetSource"] = other["config"]["datasetSource"]
    folder.job.write_text(json.dumps(job))
    finalize(folder)
    assert trainers.run(folder.path).code == 0
    end = lines(folder)[-1]
    assert end["type"] == "training.failed"
    assert end["error"] == (
        "The run cannot resume from its last checkpoint: the rows to train on changed since it started. "
        "Submit it again to train on the current inputs."
    )
