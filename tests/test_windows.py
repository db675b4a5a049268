"""The client half without what Windows lacks: POSIX-only modules and functions.

A child process blocks these and runs a script, because this interpreter has imported them already.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from arkor import files
from arkor.errors import BackendUnavailable
from tests.fakes.run_server import RunServer, completed
from tests.fakes.sse_server import send

#: Blocks the imports, also those in functions, and removes the functions.
PREAMBLE = """
import os, signal, sys
BLOCKED = {"fcntl", "grp", "pty", "pwd", "readline", "resource", "termios", "tty"}
for name in BLOCKED & set(sys.modules):
    del sys.modules[name]
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
import subprocess, tempfile, uuid  # the standard library itself has other ways on Windows
for name in ("fchmod", "fork", "forkpty", "getuid", "geteuid", "getpgid", "killpg", "register_at_fork", "setsid", "statvfs"):
    delattr(os, name)
del signal.SIGKILL
"""


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    variables = {**os.environ, "PYTHONPATH": str(root), "ARKOR_HOME": str(folder / "home"), **environment}
    command = [sys.executable, "-c", PREAMBLE + code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=variables, check=False, timeout=60)


def test_the_client_imports_submits_and_waits(tmp_path: Path) -> None:
    code = """
import arkor
assert all(getattr(arkor, name) is not None for name in arkor.__all__)
import arkor.callbacks
assert all(getattr(arkor.callbacks, name) is not None for name in arkor.callbacks.__all__)
seen = []
trainer = arkor.Trainer("a run", "m", {"type": "huggingface", "name": "rows"}, base_url=URL,
    credentials=arkor.AnonymousCredentials("secret-token", "anon", URL, "o"), callbacks={"on_completed": seen.append}, progress=False)
print(trainer.wait().job.status, len(seen))
"""
    with RunServer(send(completed(1))) as server:
        done = run(f"URL = {server.url!r}" + code, tmp_path)
    assert (done.stdout, done.returncode) == ("completed 1\n", 0), done.stderr
    assert "POST /v1/jobs" in server.calls


def test_the_command_line_signs_in_and_lists(tmp_path: Path) -> None:
    with RunServer() as server:
        code = """
import click
from arkor.cli.main import COMMANDS, arkor, main
assert all(arkor.get_command(click.Context(arkor), name) for name in COMMANDS)
sys.argv = ['arkor', '--help']
main()
"""
        done = run(code, tmp_path, ARKOR_CLOUD_API_URL=server.url, ARKOR_TOKEN="secret-token")
    assert done.returncode == 0, done.stderr
    assert "endpoints" in done.stdout


@pytest.mark.parametrize("activity", ["find_or_start()", "require_posix('Studio')"])
def test_the_embedded_backend_names_wsl(tmp_path: Path, activity: str) -> None:
    code = f"from arkor.client.local_backend import *; import arkor.client.local_backend as b; sys.platform = 'win32'; b.{activity}"
    done = run(code, tmp_path)
    assert BackendUnavailable.__name__ in done.stderr
    assert "inside WSL" in done.stderr
    assert "ARKOR_CLOUD_API_URL" in done.stderr


class Locks(types.ModuleType):
    """`msvcrt`: one lock for each file and byte, which belongs to a descriptor."""

    LK_NBLCK, LK_UNLCK = 2, 0

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.held: dict[tuple[int, int], int] = {}

    def locking(self, file: int, mode: int, count: int) -> None:
        assert count == 1
        key = (os.fstat(file).st_ino, os.lseek(file, 0, os.SEEK_CUR))
        if mode == self.LK_UNLCK:
            del self.held[key]
        elif key in self.held:
            raise OSError(errno.EACCES, "Permission denied")
        else:
            self.held[key] = file


def test_locks_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    path = tmp_path / "a.lock"
    with pytest.raises(OSError, match="no file locks"):
        files.Lock(path).acquire(0)
    monkeypatch.setitem(sys.modules, "msvcrt", Locks())
    first, second = files.Lock(path), files.Lock(path)
    assert first.acquire(0)
    assert not second.acquire(0.02)
    assert files.is_locked(path)
    first.release()
    assert second.acquire()
