"""A small model that is really trained, while its server and its worker die: the same bytes in the end."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define, field

from arkor.backend.runs.event_log import is_finished
from tests.backend.caller import LOCAL, Caller, owner
from tests.backend.crashing_worker import assert_same
from tests.conftest import start_backend
from tests.fakes.process_tree import ENVIRONMENT
from tests.fakes.tiny_model import make_tiny_model
from tests.kills.schedule import FaultSchedule, Watcher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: Some fifty steps a second.
STEPS, SAVE_STEPS = 100, 20
KILL_POINTS = 2
FEW = 1


@define
class Training(FaultSchedule):
    """A home whose runs are trained by the real engine."""

    model: Path = field(kw_only=True)

    def serve(self) -> Caller:
        if self.server is None or self.server.process.poll() is not None:
            self.server = start_backend(self.home, anew=True)
        return owner(self.server)

    def train(self) -> None:
        caller = self.serve()
        rows = "\n".join(json.dumps({"text": f"{number} and so on"}) for number in range(40))
        answer = caller.call("POST", "/v1/datasets", params={**LOCAL, "filename": "rows.jsonl"}, data=rows.encode())
        source = {"type": "blob", "url": answer.json()["dataset"]["url"]}
        settings = {"maxSteps": STEPS, "saveSteps": SAVE_STEPS, "evalSteps": 40, "batchSize": 2, "learningRate": 1e-2}
        self.jobs.append(caller.submit(model=str(self.model), datasetSource=source, **settings))
        self.watchers.append(Watcher(self.home, self.jobs[-1]))

    @property
    def logged(self) -> int:
        return self.folders()[-1].events.read_bytes().count(b'"training.log"')

    def die(self) -> None:
        """Once there has been progress, so that it is not given up."""
        self.serve()
        before, deadline = self.logged, time.monotonic() + 120
        while self.logged == before and not is_finished(self.folders()[-1].events):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(self.rng.uniform(0, 0.5))
        self.rng.choice([self.kill_server, self.kill_worker, self.kill_both, self.kill_in_a_checkpoint])()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "gpt2")


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    """The same run undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        here = Training(tmp_path_factory.mktemp("peace") / "home", random.Random(0), model=model)
        try:
            here.train()
            here.wait_until_finished(120)
            yield here
        finally:
            here.clean_up()


def test_the_adapter_is_the_same_to_the_last_bit(
    seed: int, model: Path, undisturbed: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    here = Training(tmp_path / "home", random.Random(seed), model=model)
    try:
        here.train()
        for _ in range(KILL_POINTS):
            here.die()
        here.wait_until_finished(120)
        assert_same(here.folders()[0], undisturbed.folders()[0])
        assert any("killed" in line for line in here.log_lines)
        ids = [int(frame.id or 0) for frame in here.watchers[0].frames]
        assert ids == sorted(set(ids))
    except BaseException:
        print(f"seed {seed}", *here.log_lines, sep="\n")
        raise
    finally:
        here.clean_up()
