"""The owner of the process at the other end of a connection."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from arkor.backend.http.routes.accounts import is_own_process
from arkor.protocol.validation import is_loopback

linux = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs the socket table of Linux")


@linux
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_socket_of_ours_is_ours_until_it_is_closed(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server:
        listening = server.getsockname()[:2]
        with socket.create_connection(listening) as client:
            tool_choice = client.getsockname()[:2]
            connection, _ = server.accept()
            with connection:
                assert is_own_process(tool_choice, listening)
                assert not is_own_process((host, 1), listening)
                assert not is_own_process(tool_choice, (host, 1))
                client.close()
                assert not is_own_process(tool_choice, listening)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("127.0.0.1.evil.example", False),
        ("2130706433", False),
        ("0x7f.1", False),
    ],
)
def test_what_leads_to_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
