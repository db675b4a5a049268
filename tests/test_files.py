"""Atomic writes and locks: what a reader and another process see, also after a failure."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from arkor.files import Lock, atomic_writer, fsync_path, is_locked, lock_file, write_atomically

HOLD = "import sys, pathlib, arkor.files as f; f.Lock(pathlib.Path(sys.argv[1])).acquire(); print('held', flush=True); input()"


def test_a_file_is_replaced_as_a_whole_with_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write_atomically(file, "é")
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == ("é".encode(), 0o600)
    write_atomically(file, b"\xff", mode=0o644, fsync=False)
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"\xff", 0o644)
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write_atomically(file, "old")
    with pytest.raises(KeyboardInterrupt), atomic_writer(file) as target:
        target.write(b"new")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real" / "file")
    write_atomically(link, "text")
    assert link.is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "text"
    fsync_path(tmp_path)


def test_a_lock_excludes_other_holders_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    first, second = Lock(path), Lock(path)
    with first:
        assert is_locked(path)
        began = time.monotonic()
        assert not second.acquire(0.05)
        assert time.monotonic() - began >= 0.05
    assert not is_locked(path)
    assert second.acquire(0)
    second.release()
    second.release()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.acquire()
    threading.Timer(0.05, first.release).start()
    assert second.acquire(10)
    second.release()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert is_locked(path)
        child.kill()
    assert not is_locked(path)


def test_a_descriptor_can_be_locked(tmp_path: Path) -> None:
    file = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    try:
        assert lock_file(file)
        assert is_locked(tmp_path / "log")
    finally:
        os.close(file)
    assert not is_locked(tmp_path / "log")
