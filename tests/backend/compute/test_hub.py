"""Download a model from a Hugging Face hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.hub import hub_of
from tests.fakes.tiny_model import make_tiny_model

pytestmark = pytest.mark.slow

CODE = """
import sys
from pathlib import Path
from arkor.backend.engine.interface import RunError
from arkor.backend.compute.models import load_model, load_tokenizer, local_folder

home, *models = sys.argv[1:]
for model in models:
    try:
        folder = local_folder(model, Path(home), print)
        print(type(load_tokenizer(folder)).__name__, sum(weight.numel() for weight in load_model(folder).parameters()))
    except RunError as error:
        print("RunError:", error)
"""


def load(endpoint: str, home: Path, *models: str) -> list[str]:
    """Load the models in a process; return its output lines."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hub"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", CODE, str(home), *models]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()


def test_a_model_is_downloaded_and_a_missing_one_is_reported(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model")
    with hub_of("acme/tiny", folder) as hub:
        *_, loaded, missing = load(hub.url, tmp_path, "acme/tiny", "acme/missing")
    name, weights = loaded.split()
    assert "Tokenizer" in name
    assert int(weights) > 0
    assert missing.startswith("RunError:")
    assert "acme/missing" in missing
