"""`arkor chat`: one question, a pipe, a conversation in a terminal."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from contextlib import suppress

import pytest

from tests.cli.conftest import Run

pytestmark = pytest.mark.slow  # every test starts processes of its own


def test_one_question_to_a_run(run: Run, run_anew: Run, finished: str) -> None:
    done = run_anew("chat", finished, "-m", "Where is my parcel?")
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
    assert "no message: standard input is empty" in empty.stderr


def talk(*pairs: tuple[str, str], target: tuple[str, ...] = (), leave: str = "\x04") -> int:
    """Type each line at the prompt and wait for its answer; then exit. Return the exit code."""
    with Terminal(sys.executable, "-m", "arkor", "chat", *target) as terminal:
        terminal.expect("> ")
        for typed, answer in pairs:
            terminal.type(f"{typed}\n")
            terminal.expect(f"{answer}\r\n")
            terminal.expect("> ")
        terminal.type(leave)
        return terminal.exit_code()


def test_a_conversation(finished: str) -> None:
    assert (
        talk(
            ("Hello", "scripted: Hello"),
            ("", ""),
            ("/new", "Started a new conversation."),
            ("Again", "scripted: Again"),
        )
        == 0
    )


def test_the_system_prompt_is_set_shown_and_taken_away(finished: str) -> None:
    output = talk(
        ("/system", "System prompt: none"),
        ("/system Be brief.", "System prompt: Be brief."),
        ("/system", "System prompt: Be brief."),
        ("/system -", "System prompt: none"),
    )
    assert output == 0


def test_the_model_can_be_changed_and_a_wrong_one_is_said(finished: str) -> None:
    output = talk(
        ("Hello", "scripted: Hello"),
        ("/model scripted/fail", "Chatting with scripted/fail."),
        ("Hello", "as it was asked to. (POST /v1/inference/chat, status 503)"),
        (f"/model {finished}@3", "at step 3."),
        ("Hello", "scripted: Hello"),
        ("/modle x", "put a space before it."),
        (" /etc is a folder", "scripted: /etc is a folder"),
    )
    assert output == 0


@pytest.fixture
def slow_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the backend, which is started afterwards, generate slowly."""
    monkeypatch.setenv("ARKOR_SCRIPTED_TOKEN_SECONDS", "0.05")


def test_ctrl_c_stops_an_answer_and_not_the_program(slow_tokens: None, finished_run: str) -> None:
    with Terminal(sys.executable, "-m", "arkor", "chat") as terminal:
        terminal.expect("> ")
        terminal.type(f"{'word ' * 300}\n")
        terminal.expect("scripted: word")
        terminal.type("\x03")
        terminal.expect("> ")
        terminal.type("half a question")
        terminal.expect("half a question")
        terminal.press_until("\x03", "> ")
        terminal.type("Hello\n")
        terminal.expect("scripted: Hello\r\n> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0


class Terminal:
    """A program in a pseudo-terminal: wait for its output, type its input."""

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
        """Wait until the program prints this, after the text expected before."""
        deadline = time.monotonic() + seconds
        while text.encode() not in self._shown:
            ready, _, _ = select.select([self._screen], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} never came, only {self._shown!r}"
            self._shown += os.read(self._screen, 4096)
        self._shown = self._shown.split(text.encode(), 1)[1]

    def press_until(self, key: str, text: str) -> None:
        """Press a key repeatedly: readline loses a Ctrl-C that arrives before it reads."""
        for _ in range(15):
            self.type(key)
            with suppress(AssertionError):
                return self.expect(text, seconds=2)
        raise AssertionError(f"{text!r} never came, only {self._shown!r}")

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
