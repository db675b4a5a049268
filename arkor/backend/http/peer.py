"""Whose process is at the other end of a connection on this machine.

Anybody who may log in here can reach a port on loopback. Linux tells whose socket it is that calls; where the system
does not say, nobody is told apart.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from pathlib import Path

from attrs import frozen

Address = tuple[str, int]

_TABLES = {4: Path("/proc/net/tcp"), 6: Path("/proc/net/tcp6")}


@frozen
class _Row:
    """One socket of the system's table; `inode` is 0 for one that its process has closed already."""

    local: str
    remote: str
    uid: int
    inode: int


def is_loopback(host: str) -> bool:
    """Whether this is a name or an address by which only this machine is reached."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_own(client: Address, server: Address) -> bool:
    """Whether `client`, connected to us as `server`, is a socket of the user that we run as."""
    version = ipaddress.ip_address(client[0]).version
    table = _TABLES[version]
    if not table.exists():
        return is_loopback(client[0])
    ends = (_as_in_table(client), _as_in_table(server))
    rows = (_row(line) for line in table.read_text().splitlines()[1:])
    return any((row.local, row.remote) == ends and row.inode and row.uid == os.getuid() for row in rows)


def _row(line: str) -> _Row:
    words = line.split()
    return _Row(words[1], words[2], int(words[7]), int(words[9]))


def _as_in_table(address: Address) -> str:
    """`("127.0.0.1", 80)` → `"0100007F:0050"`: words of four bytes in the machine's own order."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    packed = socket.inet_pton(family, address[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"
