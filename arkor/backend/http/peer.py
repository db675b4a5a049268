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
class _SocketEntry:
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


def is_own_process(client: Address, server: Address) -> bool:
    """Whether `client`, connected to us as `server`, is a socket of the user that we run as."""
    version = ipaddress.ip_address(client[0]).version
    table = _TABLES[version]
    if not table.exists():
        return is_loopback(client[0])
    addresses = (_proc_net_address(client), _proc_net_address(server))
    entries = (_parse_entry(line) for line in table.read_text().splitlines()[1:])
    return any(
        (entry.local, entry.remote) == addresses and entry.inode and entry.uid == os.getuid() for entry in entries
    )


def _parse_entry(line: str) -> _SocketEntry:
    fields = line.split()
    return _SocketEntry(fields[1], fields[2], int(fields[7]), int(fields[9]))


def _proc_net_address(address: Address) -> str:
    """`("127.0.0.1", 80)` → `"0100007F:0050"`: words of four bytes in the machine's own order."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    packed = socket.inet_pton(family, address[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"
