"""A model of a hub: downloaded from a real server on loopback, by a process that knows nothing but its address."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.hub import hub_of
from tests.fakes.tiny_model import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CODE = """
import sys
from pathlib import Path
from arkor.backend.engine import RunError
from arkor.backend.models import load_model, load_tokenizer, local_folder

try:
    folder = local_folder(sys.argv[1], Path(sys.argv[2]), print)
    print(type(load_tokenizer(folder)).__name__, sum(weight.numel() for weight in load_model(folder).parameters()))
except RunError as error:
    print("RunError:", error)
"""


def load(model: str, endpoint: str, home: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hub"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", CODE, model, str(home)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_model_is_downloaded_and_loaded(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    with hub_of("acme/tiny", folder) as endpoint:
        printed = load("acme/tiny", endpoint, tmp_path)
    name, weights = printed.split()[-2:]
    assert "Tokenizer" in name
    assert int(weights) > 0


def test_a_model_that_the_hub_does_not_have_is_a_sentence(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    with hub_of("acme/tiny", folder) as endpoint:
        printed = load("acme/missing", endpoint, tmp_path)
    assert printed.startswith("RunError:")
    assert "acme/missing" in printed
