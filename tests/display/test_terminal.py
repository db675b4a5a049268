"""The progress line in a real terminal: a child writes to a pty, and a small screen shows what is left standing."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
import textwrap
import time

import pytest

from arkor.display.terminal import TerminalProgress
from arkor.events import TrainingLog

pytestmark = pytest.mark.slow  # real processes, terminals or clocks


SCRIPT = """
import logging, sys, time
from arkor.display import progress_for
from arkor.display.tally import Tally
from arkor.display.terminal import TerminalProgress
from arkor.events import *

def at(seconds):
    return f"2026-01-01T00:{int(seconds) // 60:02}:{seconds % 60:06.3f}Z"

assert isinstance(progress_for("auto"), TerminalProgress)
with TerminalProgress(sys.stderr, Tally("triage")) as progress:
"""


def in_a_terminal(body: str, columns: int = 100, **environment: str) -> str:
    """Everything that the child wrote to its terminal."""
    pid, screen = pty.fork()
    if pid == 0:
        os.environ.update(environment)
        os.execv(sys.executable, [sys.executable, "-c", SCRIPT + textwrap.indent(textwrap.dedent(body), "    ")])
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written = b""
    try:
        while chunk := os.read(screen, 4096):
            written += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(screen)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, written.decode()
    return written.decode()


def left_standing(written: str) -> list[str]:
    """The lines that a terminal shows in the end: a carriage return and an erase begin a line anew."""
    lines = re.split(r"\r?\r\n|\n", written)
    return [line.rsplit("\r\x1b[K", 1)[-1] for line in lines if line]


def test_a_run_leaves_its_last_line_and_every_printed_one() -> None:
    written = in_a_terminal(
        """
        time.sleep(0.3)
        progress.on_event(TrainingPreparing("j", at(0), "Converting the starter model (once, about 20 s)"))
        time.sleep(0.3)
        progress.on_event(TrainingStarted("j", at(1), 20))
        for step in range(1, 21):
            progress.on_event(TrainingLog("j", at(1 + 2 * step), step, loss=2 * 0.8**step))
            with progress.paused():
                if step % 10 == 0:
                    print("an answer at step", step, flush=True)
            time.sleep(0.11)
            if step == 15:
                logging.getLogger("arkor").warning("the stream broke; reconnecting in 1.0 s")
                progress.on_event(TrainingWarning("j", at(1 + 2 * step), "Checkpoint 15 could not be kept"))
            if step == 8:
                progress.on_event(CheckpointSaved("j", at(1 + 2 * step), step))
        progress.on_event(TrainingCompleted("j", at(41)))
        with progress.paused():
            print("compared")
        """
    )
    assert left_standing(written) == [
        "an answer at step 10",
        "the stream broke; reconnecting in 1.0 s",
        "triage: warning: Checkpoint 15 could not be kept",
        "an answer at step 20",
        "triage: completed, step 20/20, loss 0.0231 ↘, in 0:40",
        "compared",
    ]
    assert "triage: waiting to start" in written
    assert "Converting the starter model (once, about 20 s)" in written
    assert re.search(r"triage +45%\|█+. +\| 9/20 steps, loss 0\.2684 ↘, 2\.0 s/step, 0:22 left, checkpoint 8", written)


def test_an_interrupted_run_leaves_the_line_as_it_stood() -> None:
    written = in_a_terminal(
        """
        progress.on_event(TrainingStarted("j", at(0), 10))
        progress.on_event(TrainingLog("j", at(1), 3, loss=1.0))
        progress.close()
        print("^C")
        """
    )
    shown = left_standing(written)
    assert shown[0].startswith("triage  30%|")
    assert shown[1:] == ["^C"]


@pytest.mark.parametrize("columns", [20, 60, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    written = in_a_terminal(
        """
        time.sleep(0.1)
        progress.on_event(TrainingPreparing("j", at(0), "很长的消息" * 30))
        time.sleep(0.3)
        progress.on_event(TrainingStarted("j", at(0), 1000))
        progress.on_event(TrainingLog("j", at(1), 300, loss=1.0))
        time.sleep(0.3)
        """,
        columns=columns,
    )
    drawn = re.split(r"\r\x1b\[K|\r\n", written)
    wide = [sum(2 if "\u4e00" <= letter <= "\u9fff" else 1 for letter in line) for line in drawn]
    assert max(wide) < columns


def test_a_terminal_without_unicode_gets_ascii() -> None:
    written = in_a_terminal(
        """
        progress.on_event(TrainingStarted("j", at(0), 10))
        progress.on_event(TrainingLog("j", at(1), 3, loss=1.0))
        """,
        PYTHONIOENCODING="ascii:strict",
    )
    assert written.isascii()
    assert "30%|###" in written


class Terminal(io.StringIO):
    """Counts what is written to it."""

    encoding = "utf-8"
    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


def test_a_flood_of_events_is_drawn_a_few_times_a_second() -> None:
    stream = Terminal()
    began = time.monotonic()
    with TerminalProgress(stream) as progress:
        for step in range(100_000):
            progress.on_event(TrainingLog("j", "2026-01-01T00:00:00.000Z", step, loss=1.0))
            with progress.paused():
                pass
    assert stream.writes <= 4 + 24 * (time.monotonic() - began)
