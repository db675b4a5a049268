"""A run whose model is of the hub: it is asked to load the model, and never again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from attrs import frozen

from tests.fakes.hub import hub_of
from tests.fakes.tcp import TcpListener
from tests.fakes.tiny_model import make_tiny_model

pytestmark = pytest.mark.slow

#: A run of four steps with two checkpoints and evaluations. It waits for a line before the first step.
CODE = """
import sys
from pathlib import Path
from arkor.backend.engine.interface import Run
from arkor.backend.training.trl_engine import TrlEngine
from arkor.protocol.datasets import BlobDataset
from arkor.protocol.jobs import JobConfig
from tests.fakes.memory_recorder import MemoryRecorder

class WaitingRecorder(MemoryRecorder):
    def preparing(self, message):
        print(message, flush=True)

    def started(self, total_steps):
        print("started", flush=True)
        sys.stdin.readline()

home, folder, url = sys.argv[1:]
config = JobConfig("acme/tiny", BlobDataset(url), max_steps=4, batch_size=4, save_steps=2, eval_steps=2)
TrlEngine("float32").train(Run("job", config, Path(folder), Path(home)), WaitingRecorder(Path(folder)))
"""

SHA = "0" * 64


@frozen
class Home:
    """An `ARKOR_HOME` with an uploaded data set, and a cache of the hub."""

    folder: Path

    def train(self, name: str, endpoint: str, when_started: Callable[[], object]) -> list[str]:
        """Run `CODE` against the hub at `endpoint`; return what it has reported."""
        run = self.folder / name
        run.mkdir()
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(self.folder / "hub"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", CODE, str(self.folder), str(run), f"/v1/datasets/{SHA}/rows.jsonl"]
        messages = []
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for line in process.stdout:
                messages.append(line.strip())
                if line == "started\n":
                    when_started()
                    process.stdin.write("\n")
                    process.stdin.flush()
        assert process.returncode == 0, messages
        for adapter in ("checkpoints/2", "checkpoints/4", "final"):
            assert (run / adapter / "adapter_model.safetensors").is_file()
            config = json.loads((run / adapter / "adapter_config.json").read_text())
            assert config["base_model_name_or_path"] == "acme/tiny"
        return messages


@pytest.fixture
def home(tmp_path: Path) -> Home:
    rows = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}] for n in range(12)]
    (tmp_path / "datasets").mkdir()
    data = "\n".join(json.dumps({"messages": messages}) for messages in rows)
    (tmp_path / "datasets" / SHA).write_text(data)
    return Home(tmp_path)


def test_the_hub_is_asked_to_load_a_model_and_never_again(home: Home, tmp_path: Path) -> None:
    at_start: list[int] = []
    with hub_of("acme/tiny", make_tiny_model(tmp_path / "model")) as hub:
        home.train("online", hub.url, lambda: at_start.append(len(hub.requests)))
        assert at_start[0] > 0
        assert [request.target for request in hub.requests[at_start[0] :]] == []
        assert not any("telemetry" in request.target for request in hub.requests)

    port = urlsplit(hub.url).port
    assert port is not None
    message = "The Hugging Face hub cannot be reached: loading acme/tiny from the cache"
    assert message in home.train("closed-port", hub.url, lambda: None)

    connections: list[str] = []
    finished = threading.Event()

    def never_answer(_: object) -> None:
        connections.append("loading" if not at_start[1:] else "training")
        finished.wait(300)

    listener = TcpListener(never_answer, port)
    began = time.monotonic()
    try:
        assert message in home.train("silence", hub.url, lambda: at_start.append(len(connections)))
    finally:
        finished.set()
        listener.close()
    assert set(connections) == {"loading"}
    assert len(connections) <= 2, "one probe, which the library may repeat once"
    assert time.monotonic() - began < 120
