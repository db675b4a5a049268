"""Crash-safe files: atomic writes, `fsync`, and locks between processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

#: Errors of writing that the operator can fix: a full disk, a quota, a limit, a read-only disk.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def write_atomically(path: Path, data: str | bytes, *, mode: int = 0o600, fsync: bool = True) -> None:
    """Write a whole file, text as UTF-8: readers see the old contents or the new ones."""
    with atomic_writer(path, mode=mode, fsync=fsync) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_writer(path: Path, *, mode: int = 0o600, fsync: bool = True) -> Iterator[IO[bytes]]:
    """Open a temporary file next to `path` that replaces it unless the block raises."""
    path = Path(os.path.realpath(path))
    file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
    try:
        with file:
            os.fchmod(file.fileno(), mode)
            yield file
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        Path(file.name).replace(path)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        raise
    if fsync:
        fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot flush a folder
            raise
    finally:
        os.close(file)


class Lock:
    """An exclusive `flock` on a file, which is created if missing; it ends with the process."""

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        self.path = path
        self._mode = mode
        self._file: int | None = None

    def acquire(self, timeout: float | None = None, *, sleep: Callable[[float], object] = time.sleep) -> bool:
        """Take the lock within `timeout` seconds (0: try once, None: wait), or return False.

        Raises OSError if the file cannot be opened or its file system has no locks.
        """
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, self._mode)
        acquired = False
        try:
            acquired = lock_file(file, timeout, sleep=sleep)
        finally:
            if not acquired:
                os.close(file)
        self._file = file if acquired else None
        return acquired

    def release(self) -> None:
        """Release the lock, also for copies of its descriptor in forked processes."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)

    def __enter__(self) -> Lock:
        if self._file is None:
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_file(file: int, timeout: float | None = 0, *, sleep: Callable[[float], object] = time.sleep) -> bool:
    """Lock an open file like `Lock.acquire`; closing every copy of the descriptor releases it."""
    if timeout is None:
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    deadline = time.monotonic() + timeout
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            return False
        sleep(0.01)


def is_locked(path: Path) -> bool:
    """Return whether a file is locked, by taking a shared lock for an instant. Raises OSError."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
