"""The port that Studio listens on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from arkor.errors import ArkorError
from arkor.studio import server
from arkor.studio.security import ListenAddress
from arkor.studio.server import listen


@pytest.fixture
def free_ports(monkeypatch: pytest.MonkeyPatch) -> int:
    """The first of two free ports, which replace the ports from 4000 on."""
    for first in range(23_000, 24_000, 2):
        try:
            for port in (first, first + 1):
                listen(port).close()
        except ArkorError:
            continue
        monkeypatch.setattr(server, "FIRST_PORT", first)
        monkeypatch.setattr(server, "PORTS", 2)
        return first
    raise AssertionError("no port is free")


def test_the_next_free_one(free_ports: int) -> None:
    first, second = listen(), listen()
    assert [sock.getsockname()[1] for sock in (first, second)] == [free_ports, free_ports + 1]
    with pytest.raises(ArkorError, match=f"the ports {free_ports} to {free_ports + 1} are in use; choose a free one"):
        listen()
    first.close()
    again = listen()
    assert again.getsockname()[1] == free_ports
    for taken in (second, again):
        taken.close()


def test_a_port_that_was_asked_for_is_that_port_or_none(tmp_path: Path) -> None:
    with listen(0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ArkorError, match=f"port {port} is in use"):
            listen(port)
        command = [sys.executable, "-m", "arkor", "dev", "--port", str(port)]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=30)
    assert ended.returncode == 2
    assert ended.stderr == f"port {port} is in use; choose another one, or omit --port to use a free one\n"


def test_it_is_loopback() -> None:
    with listen(0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_the_port_of_the_web_stands_in_no_name() -> None:
    assert ListenAddress(80).hosts == {"127.0.0.1", "localhost"}
    assert ListenAddress(4000).origins == {"http://127.0.0.1:4000", "http://localhost:4000"}
