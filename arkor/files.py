"""Crash-safe files: atomic writes, `fsync`, and locks between processes.

The client uses this module on Windows, too, where folders cannot be flushed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

#: The byte of a file that is locked on Windows, which reads and writes never reach.
_LOCK_OFFSET = 2**31 - 2

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
            if hasattr(os, "fchmod"):
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
    if sys.platform == "win32" and path.is_dir():
        return
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
                _unlock(file)
            os.close(file)

    def __enter__(self) -> Lock:
        if self._file is None:
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_file(file: int, timeout: float | None = 0, *, sleep: Callable[[float], object] = time.sleep) -> bool:
    """Lock an open file like `Lock.acquire`; closing every copy of the descriptor releases it."""
    if timeout is None and fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        if _try_lock(file):
            return True
        if deadline is not None and time.monotonic() >= deadline:
            return False
        sleep(0.01)


def is_locked(path: Path) -> bool:
    """Return whether a file is locked, by taking a shared lock for an instant. Raises OSError."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(file, shared=True)
    finally:
        os.close(file)


def _try_lock(file: int, *, shared: bool = False) -> bool:
    """Lock an open file if it is free; return whether it was. Raises OSError without locks."""
    if fcntl is not None:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
    msvcrt = _windows_locks()
    os.lseek(file, _LOCK_OFFSET, os.SEEK_SET)
    try:
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EDEADLK):
            raise
        return False
    return True


def _unlock(file: int) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
        return
    msvcrt = _windows_locks()
    os.lseek(file, _LOCK_OFFSET, os.SEEK_SET)
    msvcrt.locking(file, msvcrt.LK_UNLCK, 1)


def _windows_locks() -> Any:
    """Return the module `msvcrt`; raise OSError on a system without it."""
    try:
        import msvcrt  # noqa: PLC0415 - exists on Windows only
    except ImportError:
        raise OSError(errno.ENOTSUP, "this system has no file locks") from None
    return msvcrt
