"""`arkor serve`: it prints its URL, stops on Ctrl-C, and requires a token on public addresses."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

pytestmark = pytest.mark.slow  # every test starts a process of its own

SERVE = [sys.executable, "-m", "arkor", "serve", "--port", "0"]


def test_it_says_where_it_listens_and_leaves_on_ctrl_c(tmp_path: Path) -> None:
    process = subprocess.Popen([*SERVE, "--home", str(tmp_path / "home")], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr:
        greeting = process.stderr.readline()
        url = next(word for word in greeting.split() if word.startswith("http://127.0.0.1:")).rstrip(";")
        assert str(tmp_path / "home") in greeting
        assert requests.get(f"{url}/healthz", timeout=10).json()["status"] == "ok"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_it_asks_for_a_token_where_other_machines_can_call(tmp_path: Path, host: str) -> None:
    command = [*SERVE, "--host", host, "--home", str(tmp_path / "home")]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "--token-file" in result.stderr
    assert result.stdout == ""


def test_it_takes_a_token_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef")
    options = ["--home", str(tmp_path / "home"), "--host", "0.0.0.0", "--token-file", str(tmp_path / "token")]
    process = subprocess.Popen([*SERVE, *options], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr:
        url = next(word for word in process.stderr.readline().split() if word.startswith("http://")).rstrip(";")
        headers = {"Authorization": "Bearer 0123456789abcdef"}
        assert requests.get(f"{url}/v1/me", headers=headers, timeout=10).status_code == 200
        process.terminate()
        assert process.wait(timeout=10) == 0
