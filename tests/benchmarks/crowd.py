"""Many clients of one event stream, in one process: a selector over sockets that reads the
timestamps of events.

    python -m tests.benchmarks.crowd URL TOKEN COUNT EVENTS

Requests URL (with query) COUNT times. Prints `true` when every client has received the response
header. Then prints, for each of EVENTS events, the seconds from its timestamp (`step` is a
`time.monotonic_ns()`) until the last client has it.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import sys
import time
from urllib.parse import urlsplit

from attrs import define, field

_STAMP = re.compile(rb'"step":(\d+)[,}]')
_KEPT = 64  # bytes kept at the end, as a timestamp may be split


@define
class Watcher:
    """A connection, its last timestamp, and the bytes that may be the start of the next."""

    socket: socket.socket
    rest: bytes = b""
    seen: int = 0

    def new_stamps(self) -> list[int]:
        data = self.rest + self.socket.recv(1 << 20)
        stamps = [int(stamp) for stamp in _STAMP.findall(data) if int(stamp) > self.seen]
        self.seen = max([self.seen, *stamps])
        self.rest = data[-_KEPT:]
        return stamps


@define
class Crowd:
    """All clients."""

    selector: selectors.BaseSelector = field(factory=selectors.DefaultSelector)
    count: int = 0

    def join(self, url: str, token: str) -> None:
        """Add a client that has received its response header."""
        to = urlsplit(url)
        watching = socket.create_connection((to.hostname, to.port))
        request = f"GET {to.path}?{to.query} HTTP/1.1\r\nHost: {to.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n"
        watching.sendall(request.encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += watching.recv(1)
        assert b" 200 " in head.split(b"\r\n")[0], head
        self.selector.register(watching, selectors.EVENT_READ, Watcher(watching))
        self.count += 1

    def lags(self, events: int) -> list[float]:
        """Return the seconds until all clients have received it, for each of the next events."""
        had: dict[int, int] = {}
        lags: list[float] = []
        while len(lags) < events:
            for key, _ in self.selector.select():
                for stamp in key.data.new_stamps():
                    had[stamp] = had.get(stamp, 0) + 1
                    if had[stamp] == self.count:
                        lags.append((time.monotonic_ns() - stamp) / 1e9)
        return lags


def main() -> None:
    url, token, count, events = sys.argv[1:]
    crowd = Crowd()
    for _ in range(int(count)):
        crowd.join(url, token)
    print(json.dumps(True), flush=True)
    print(json.dumps(crowd.lags(int(events))), flush=True)


if __name__ == "__main__":
    main()
