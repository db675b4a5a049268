"""How this process's C library deals with memory between two training steps."""

from __future__ import annotations

import ctypes
import sys

#: glibc's names for what `mallopt` sets.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Keep what is freed for the next step instead of giving it back to the kernel, and say whether that worked.

    A training step frees and asks again for hundreds of megabytes; giving them back each time costs a third of the
    time on a CPU, in page faults. Linux with glibc alone; elsewhere nothing happens. Call it before the first tensor.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    settings = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
    return all([mallopt(name, value) for name, value in settings.items()])
