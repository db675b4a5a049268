"""Settings from environment variables: the home folder and the numeric limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from arkor import InvalidConfig
from arkor.settings import arkor_home, check_limits


def test_the_home_is_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ARKOR_HOME", "runs")
    assert arkor_home() == tmp_path / "runs"
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("~/.arkor", ""):
        monkeypatch.setenv("ARKOR_HOME", value)
        assert arkor_home() == tmp_path / ".arkor"


def test_a_user_without_a_home_folder_must_set_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_HOME", "~nobody-of-that-name/runs")
    with pytest.raises(InvalidConfig, match="ARKOR_HOME: must be set to a folder"):
        arkor_home()


@pytest.mark.parametrize("value", ["many", "-1", "1.5", "1e3", "nan"])
@pytest.mark.parametrize("name", ["ARKOR_KEEP_CHECKPOINTS", "ARKOR_MAX_QUEUED_RUNS", "ARKOR_MAX_STREAMS"])
def test_a_limit_must_be_a_whole_number(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidConfig, match=f"{name}: must be a whole number of at least 0"):
        check_limits()


def test_seconds_may_have_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_SERVING_IDLE_SECONDS", "0.5")
    check_limits()
    for value in ("soon", "-1", "inf", "nan"):
        monkeypatch.setenv("ARKOR_SERVING_IDLE_SECONDS", value)
        with pytest.raises(InvalidConfig, match="ARKOR_SERVING_IDLE_SECONDS: must be seconds"):
            check_limits()


def test_the_engine_must_be_a_known_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "auto", "transformers", "llama.cpp"):
        monkeypatch.setenv("ARKOR_SERVING_ENGINE", value)
        check_limits()
    monkeypatch.setenv("ARKOR_SERVING_ENGINE", "llamacpp")
    with pytest.raises(InvalidConfig, match=r"must be one of auto, transformers, llama\.cpp, not 'llamacpp'"):
        check_limits()


def test_a_backend_names_the_wrong_variable(tmp_path: Path) -> None:
    environment = {**os.environ, "ARKOR_HOME": str(tmp_path / "home"), "ARKOR_MAX_STREAMS": "many"}
    command = [sys.executable, "-m", "arkor.backend"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "ARKOR_MAX_STREAMS: must be a whole number of at least 0, not 'many'\n"
