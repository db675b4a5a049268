"""How a process that computes treats the machine: what it does with freed memory, and how its threads wait.

Call both before torch is imported; afterwards they come too late.
"""

from __future__ import annotations

import ctypes
import os
import sys

#: glibc's names for what `mallopt` sets.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


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


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep while they wait for each other.

    On a machine that is busy with other things too, a thread that spins keeps the one it waits for from running: a
    step of the starter model took ten times as long. `OMP_WAIT_POLICY` of the environment has the last word.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
