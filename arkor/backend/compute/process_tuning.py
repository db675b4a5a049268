"""How a process that computes treats the machine: what it does with freed memory, how its threads wait, who goes first.

`prepare_to_compute` and `limit_onednn_cache` are to be called before torch is imported; afterwards they come too late.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import sys
import time
from pathlib import Path
from typing import BinaryIO

import psutil

#: How much lower than a run's the priority of what is not one is; see nice(2).
NICENESS = 5

#: How many shapes oneDNN keeps its work for. With 1 a step of the starter model took twice as long, with 1,024 as long.
CACHED_SHAPES = 32

#: glibc's names for what `mallopt` sets.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def prepare_to_compute() -> None:
    """Make training steps quick and their memory even."""
    keep_freed_memory()
    set_passive_wait()
    limit_onednn_cache()


def keep_freed_memory() -> bool:
    """Keep what is freed for the next step instead of giving it back to the kernel, and say whether that worked.

    A training step frees and asks again for hundreds of megabytes; giving them back each time costs a third of the
    time on a CPU, in page faults. Linux with glibc alone; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
    done = [bool(mallopt(name, value)) for name, value in settings.items()]
    return all(done)


def set_passive_wait() -> None:
    """Let OpenMP's threads sleep while they wait for each other.

    On a machine that is busy with other things too, a thread that spins keeps the one it waits for from running: a
    step of the starter model took ten times as long. `OMP_WAIT_POLICY` of the environment has the last word.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def limit_onednn_cache() -> None:
    """Let oneDNN forget what it prepared for shapes that it has not seen lately.

    On a CPU it keeps kernels and packed weights for 1,024 shapes, and nearly every batch of text is a new one: a run of
    80 steps grew by a gigabyte. The two variables are PyTorch's and oneDNN's; the environment has the last word.
    """
    for variable in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(variable, str(CACHED_SHAPES))


def lower_priority() -> None:
    """Let runs go first, with the processor and, where the system can be told, with memory."""
    os.nice(NICENESS)
    prefer_oom_kill()


def prefer_oom_kill() -> None:
    """Be the first to go, where the system can be told, when there is no memory left."""
    with contextlib.suppress(OSError):  # Linux alone has it
        Path("/proc/self/oom_score_adj").write_text("500")


def claim_stdout() -> BinaryIO:
    """The stdout that is ours alone; what anything else prints goes to stderr from here on."""
    stdout = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return stdout


def peak_memory_bytes() -> int:
    """The most memory that this process has had so far."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on Linux it may be the parent's
    return peak if sys.platform == "darwin" else peak * 1024


def other_process_cpu_seconds() -> float:
    """The processor time of this machine, in seconds, that so far went to anything but this process."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    double_counted = getattr(times, "guest", 0.0) + getattr(
        times, "guest_nice", 0.0
    )  # these are parts of user and nice
    return float(sum(times) - idle - double_counted - time.process_time())
