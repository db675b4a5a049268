"""How many threads to compute with: every core's while they are free, fewer while others want them too.

Threads of one computation wait for each other, spinning. Once another process takes one core of two, a token takes
twenty times as long, and the other process, which may be a run, suffers from the spinning. A single thread does not
mind company.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: How long to compute between two looks at it, in seconds.
WINDOW_SECONDS = 0.2

#: When others want its core, a thread has to give it up more often than this a second, and computes less than this
#: share of the time. Either alone proves nothing: a short visit is harmless, and threads without work rest.
CROWDED_RATE, CROWDED_SHARE = 25.0, 0.85

#: How long it must have been quiet before more threads are tried, in seconds: at first, and after many failures.
MIN_QUIET_SECONDS, MAX_QUIET_SECONDS = 0.4, 5.0


class CpuThreads:
    """Sets, through `use`, between 1 and `most` threads for the computations in `measured()`."""

    def __init__(self, max_threads: int, set_threads: Callable[[int], None]) -> None:
        self.count = 1
        self._max_threads = max_threads
        self._set_threads = set_threads
        self._seconds = 0.0
        self._busy = 0.0
        self._preemptions = 0
        self._quiet = 0.0
        self._required_quiet = MIN_QUIET_SECONDS
        set_threads(1)

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Around some computation, however long."""
        began, busy, before = time.monotonic(), time.process_time(), preemptions_so_far()
        yield
        self.observe(time.monotonic() - began, time.process_time() - busy, preemptions_so_far() - before)

    def observe(self, seconds: float, busy: float, preemptions: int) -> None:
        """Take in what so many seconds of computing got: time on all cores, in seconds, and cores taken away."""
        self._seconds += seconds
        self._busy += busy
        self._preemptions += preemptions
        if self._seconds < WINDOW_SECONDS:
            return
        wanted = self.count * self._seconds
        crowded = is_crowded(wanted, self._busy, self._preemptions)
        self._quiet = 0.0 if crowded else self._quiet + self._seconds
        self._seconds, self._busy, self._preemptions = 0.0, 0.0, 0
        if crowded and self.count > 1:
            self._required_quiet = min(self._required_quiet * 2, MAX_QUIET_SECONDS)
            self._set(self.count // 2)
        elif self.count < self._max_threads and self._quiet >= self._required_quiet:
            self._set(min(self.count * 2, self._max_threads))
        elif self._quiet >= MAX_QUIET_SECONDS:
            self._required_quiet = MIN_QUIET_SECONDS

    def _set(self, count: int) -> None:
        self.count, self._quiet = count, 0.0
        self._set_threads(count)


def is_crowded(wanted: float, busy: float, preemptions: int) -> bool:
    """Whether others took cores away: of so many seconds, summed over threads, so many were computed."""
    return preemptions > CROWDED_RATE * wanted and busy < CROWDED_SHARE * wanted


def preemptions_so_far() -> int:
    """How often, so far, a thread of this process had to give up its core."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
