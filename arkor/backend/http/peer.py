"""The owner of the process at the other end of a local connection.

Every user of a machine can reach a port on loopback. Linux reveals which process owns a socket;
elsewhere all local callers are treated alike.
"""

from __future__ import annotations

import os

import psutil

from arkor.protocol.validation import is_loopback

Address = tuple[str, int]


def is_own_process(client: Address, server: Address) -> bool:
    """Return whether the `client` end of a connection to us is open in a process of our user."""
    if not psutil.LINUX:
        return is_loopback(client[0])
    for connection in psutil.net_connections("tcp"):
        if connection.pid and (connection.laddr, connection.raddr) == (client, server):
            try:
                return psutil.Process(connection.pid).uids().effective == os.getuid()
            except psutil.NoSuchProcess:
                return False
    return False
