"""`arkor serve`: a backend in the foreground."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import requests

from tests.cli.conftest import ARKOR, Run

pytestmark = pytest.mark.slow  # every test starts processes of its own


def test_it_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    home = tmp_path / "served"
    command = [*ARKOR, "serve", "--port", "0", "--home", str(home)]
    serving = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = wait_for(home / "backend.json")["url"]
        assert requests.get(f"{url}/healthz", timeout=10).json()["status"] == "ok"
    finally:
        serving.send_signal(signal.SIGINT)
        _, said = serving.communicate(timeout=20)
    assert serving.returncode == 0
    assert str(home) in said
    assert "Traceback" not in said


def wait_for(file: Path) -> dict[str, str]:
    for _ in range(300):
        if file.exists():
            return json.loads(file.read_text())  # type: ignore[no-any-return]
        time.sleep(0.1)
    raise AssertionError(f"{file} never came")


@pytest.mark.parametrize("port", ["70000", "http"])
def test_a_port_that_is_none(run: Run, port: str) -> None:
    done = run("serve", "--port", port)
    assert done.returncode == 2
    assert "--port" in done.stderr


def test_a_home_that_is_a_file(run: Run, project: Path) -> None:
    (project / "file").write_text("")
    done = run("serve", "--home", "file")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
