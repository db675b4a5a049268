"""`arkor chat`: one question, a pipe, a conversation in a terminal."""

from __future__ import annotations

import os
import pty
import select
import sys
import time

import pytest

from tests.cli.conftest import Run

pytestmark = pytest.mark.slow  # every test starts processes of its own


def test_one_question_to_a_run(run: Run, finished: str) -> None:
    done = run("chat", finished, "-m", "Where is my parcel?")
    assert (done.returncode, done.stdout) == (0, "scripted: Where is my parcel?\n")
    assert run("chat", finished[:8], "-m", "Hello").stdout == "scripted: Hello\n"


def test_a_checkpoint_and_a_base_model_answer_too(run: Run, finished: str) -> None:
    assert run("chat", f"{finished}@3", "-m", "Hello").stdout == "scripted: Hello\n"
    assert run("chat", "scripted/model", "-m", "Hello").stdout == "scripted: Hello\n"


def test_a_checkpoint_that_does_not_exist(run: Run, finished: str) -> None:
    done = run("chat", f"{finished}@77", "-m", "Hello")
    assert done.returncode == 2
    assert "77" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_target_the_latest_completed_run_answers(run: Run, finished: str) -> None:
    assert run("chat", "-m", "Hello").stdout == "scripted: Hello\n"


def test_a_question_through_a_pipe(run: Run, finished: str) -> None:
    assert run("chat", typed="Two\nlines\n").stdout == "scripted: Two\nlines\n"
    empty = run("chat", typed="")
    assert empty.returncode == 2
    assert "there is nothing to ask" in empty.stderr


def test_a_conversation(finished: str) -> None:
    with Terminal(sys.executable, "-m", "arkor", "chat") as terminal:
        terminal.expect("> ")
        for typed, answer in (("Hello", "scripted: Hello"), ("/new", ""), ("Again", "scripted: Again")):
            terminal.type(f"{typed}\n")
            terminal.expect(f"{answer}\r\n")
            terminal.expect("> ")
        terminal.type("\n")
        assert terminal.exit_code() == 0


class Terminal:
    """A program in a terminal of its own: what it shows can be waited for, what it reads can be typed."""

    def __init__(self, *command: str) -> None:
        self._pid, self._screen = pty.fork()
        if self._pid == 0:
            os.execv(command[0], command)
        self._shown = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._screen)

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def expect(self, text: str, seconds: float = 30) -> None:
        """Wait until the program has shown this, behind what was expected before."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self._shown:
            ready, _, _ = select.select([self._screen], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} never came, only {self._shown!r}"
            self._shown += os.read(self._screen, 4096)
        self._shown = self._shown.split(text.encode(), 1)[1]

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
