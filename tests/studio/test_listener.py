"""Where Studio listens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from arkor.errors import ArkorError
from arkor.studio import listener
from arkor.studio.listener import ListenAddress, listen


@pytest.fixture
def free_ports(monkeypatch: pytest.MonkeyPatch) -> int:
    """The first of two ports in a row that are free now, in the place of 4000 and those behind it."""
    for first in range(23_000, 24_000, 2):
        try:
            for port in (first, first + 1):
                listen(port).socket.close()
        except ArkorError:
            continue
        monkeypatch.setattr(listener, "FIRST_PORT", first)
        monkeypatch.setattr(listener, "PORTS", 2)
        return first
    raise AssertionError("no port is free")


def test_the_next_free_one(free_ports: int) -> None:
    first, second = listen(), listen()
    assert (first.port, second.port) == (free_ports, free_ports + 1)
    with pytest.raises(ArkorError, match=f"the ports {free_ports} to {free_ports + 1} are taken; name a free one"):
        listen()
    first.socket.close()
    again = listen()
    assert again.port == free_ports
    for taken in (second, again):
        taken.socket.close()


def test_a_port_that_was_asked_for_is_that_port_or_none(tmp_path: Path) -> None:
    with listen(0).socket as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ArkorError, match=f"port {port} is taken"):
            listen(port)
        command = [sys.executable, "-m", "arkor", "dev", "--port", str(port)]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=30)
    assert ended.returncode == 2
    assert ended.stderr == f"port {port} is taken; name another one, or none and Studio takes a free one\n"


def test_it_is_loopback() -> None:
    with listen(0).socket as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_the_port_of_the_web_stands_in_no_name() -> None:
    with listen(0).socket as sock:
        assert ListenAddress(sock, 80).hosts == {"127.0.0.1", "localhost"}
        assert ListenAddress(sock, 4000).origins == {"http://127.0.0.1:4000", "http://localhost:4000"}
