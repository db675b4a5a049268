"""Process settings for computing: freed memory, idle threads, priority, threads under load.

Call `prepare_to_compute` and `limit_onednn_cache` before torch is imported; later calls have no
effect.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

#: The nice(2) increment of processes that must not slow down a run.
NICENESS = 5

#: Shapes for which oneDNN caches kernels. With 1, a step of the starter model takes twice as long
#: as with 32 or 1,024.
CACHED_SHAPES = 32

#: Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8

#: `CpuThreads` reconsiders the number of threads after this many seconds of computing.
WINDOW_SECONDS = 0.2

#: A thread competes for its core if it is preempted more often than this per second and runs for
#: less than this share of the time. Both must hold: short preemptions are harmless, and threads
#: without work also run less.
CROWDED_RATE, CROWDED_SHARE = 25.0, 0.85

#: Seconds without competition before more threads are tried: at first, and after repeated failures.
MIN_QUIET_SECONDS, MAX_QUIET_SECONDS = 0.4, 5.0


def prepare_to_compute() -> None:
    """Make training steps fast and their memory use constant."""
    keep_freed_memory()
    # OpenMP threads sleep while they wait for each other. On a busy machine, spinning threads keep
    # the others from running: a step of the starter model took ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    limit_onednn_cache()


def keep_freed_memory() -> None:
    """Keep freed memory for the next step instead of returning it to the kernel. Requires glibc.

    A training step frees and allocates hundreds of megabytes. Returning them costs a third of the
    time on a CPU, in page faults.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # musl does not have it
        mallopt = ctypes.CDLL(None).mallopt
        for name, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20)):
            mallopt(name, value)


def limit_onednn_cache() -> None:
    """Limit oneDNN's cache to `CACHED_SHAPES`, unless the environment sets a limit.

    By default it caches kernels and packed weights for 1,024 shapes. Nearly every batch of text has
    a new shape: a run of 80 steps on a CPU grew by a gigabyte. The first variable is PyTorch's, the
    second oneDNN's.
    """
    for variable in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(CACHED_SHAPES))


def lower_priority() -> None:
    """Give runs precedence over this process for CPU time, and on Linux for memory."""
    os.nice(NICENESS)
    prefer_oom_kill()


def prefer_oom_kill() -> None:
    """Make this process the first to be killed when memory runs out (Linux only)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def peak_memory_bytes() -> int:
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on Linux it may be the parent's
    return peak if sys.platform == "darwin" else peak * 1024


def other_process_cpu_seconds() -> float:
    """Return the CPU time that this machine has spent on all other processes."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # also counted in user and nice
    return float(sum(times) - idle - guests - time.process_time())


def preemptions_so_far() -> int:
    """Return how often a thread of this process was preempted."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def is_crowded(wanted: float, busy: float, preemptions: int) -> bool:
    """Whether other processes took cores away.

    `wanted` is the elapsed time times the number of threads, `busy` the CPU time, both in seconds.
    """
    return preemptions > CROWDED_RATE * wanted and busy < CROWDED_SHARE * wanted


class CpuThreads:
    """Adjusts the number of threads, 1 to `max_threads`, to the load during `measured()`.

    The threads of one computation wait for each other, spinning. If another process takes one of
    two cores, a token takes twenty times as long, and the other process, which may be a run, is
    slowed down as well. A single thread is not affected.
    """

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
        """Observe the computation in the `with` block."""
        began, busy, before = time.monotonic(), time.process_time(), preemptions_so_far()
        yield
        self.observe(time.monotonic() - began, time.process_time() - busy, preemptions_so_far() - before)

    def observe(self, seconds: float, busy: float, preemptions: int) -> None:
        """Add a measurement (elapsed seconds, CPU seconds); adjust the threads once a window."""
        self._seconds += seconds
        self._busy += busy
        self._preemptions += preemptions
        if self._seconds < WINDOW_SECONDS:
            return
        crowded = is_crowded(self.count * self._seconds, self._busy, self._preemptions)
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
