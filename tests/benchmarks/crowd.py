"""Many watchers of one stream, in one process: a selector over bare sockets that looks for the stamps in the events.

    python -m tests.benchmarks.crowd URL TOKEN COUNT EVENTS

GETs URL, which has its query already, COUNT times. Prints `true` once every watcher has its response's head, and then,
for each of EVENTS events, the seconds from the `time.monotonic_ns()` that is its step to when the last watcher had it.
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
_KEPT = 64  # bytes at the end of what has come, where a stamp may be in two


@define
class Watcher:
    """One connection; the last stamp that it saw, and the bytes in which the next may begin."""

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
    """All of them."""

    selector: selectors.BaseSelector = field(factory=selectors.DefaultSelector)
    count: int = 0

    def join(self, url: str, token: str) -> None:
        """One more watcher, which has its response's head."""
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
        """Seconds until all had it, for each of the next events."""
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
