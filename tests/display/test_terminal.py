"""The progress line in a real terminal: a child process writes to a pty that an emulator displays."""

from __future__ import annotations

import io
import re
import textwrap
import time
from typing import Any

import pytest

from arkor.display.terminal import TerminalProgress
from arkor.protocol.events import TrainingLog
from tests.fakes.screen import Screen

pytestmark = pytest.mark.slow  # real processes, terminals or clocks


SCRIPT = """
import logging, sys, time
from arkor.display import progress_for
from arkor.display.run_progress import RunProgress
from arkor.display.terminal import TerminalProgress
from arkor.protocol.events import *

def at(seconds):
    return f"2026-01-01T00:{int(seconds) // 60:02}:{seconds % 60:06.3f}Z"

assert isinstance(progress_for("auto"), TerminalProgress)
with TerminalProgress(sys.stderr, RunProgress("triage")) as progress:
"""


def in_a_terminal(body: str, columns: int = 100, **settings: Any) -> Screen:
    """Return the screen after a child has executed `body` with the open display `progress`."""
    return Screen(SCRIPT + textwrap.indent(textwrap.dedent(body), "    "), columns, **settings)


def test_a_run_leaves_its_last_line_and_every_printed_one() -> None:
    screen = in_a_terminal(
        """
        time.sleep(0.6)
        progress.on_event(TrainingPreparing("j", at(0), "Converting the starter model (once, about 20 s)"))
        time.sleep(0.6)
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
    assert screen.lines() == [
        "an answer at step 10",
        "the stream broke; reconnecting in 1.0 s",
        "triage: warning: Checkpoint 15 could not be kept",
        "an answer at step 20",
        "triage: completed, step 20/20, loss 0.0231 ↘, in 0:40",
        "compared",
    ]
    assert "triage: waiting to start" in screen.written
    assert "Converting the starter model (once, about 20 s)" in screen.written
    line = r"triage +\d+%\|█+.? *\| \d+/20 steps, loss \d\.\d{4} ↘, 2\.0 s/step, 0:\d\d left, checkpoint 8"
    assert re.search(line, screen.written)


def test_an_interrupted_run_leaves_the_line_as_it_stood() -> None:
    screen = in_a_terminal(
        """
        progress.on_event(TrainingStarted("j", at(0), 10))
        progress.on_event(TrainingLog("j", at(1), 3, loss=1.0))
        progress.close()
        print("^C")
        """
    )
    shown = screen.lines()
    assert shown[0].startswith("triage  30%|")
    assert shown[1:] == ["^C"]


@pytest.mark.parametrize("columns", [12, 20, 40, 80, 200])
def test_a_line_never_needs_a_second_one(columns: int) -> None:
    screen = in_a_terminal(
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
    assert {len(lines) for _, lines in screen.moments} == {1}


def test_the_reason_of_a_failure_is_not_cut() -> None:
    screen = in_a_terminal(
        """
        progress.on_event(TrainingStarted("j", at(0), 30))
        progress.on_event(TrainingLog("j", at(1), 3, loss=1.0))
        time.sleep(0.4)
        progress.on_event(TrainingFailedEvent("j", at(2), "out of memory; a smaller batch_size needs less"))
        """,
        columns=40,
    )
    output = "triage: failed: out of memory; a smaller batch_size needs less, step 3/30, loss 1.0000 →, in 0:02"
    assert screen.written.endswith(f"\r\x1b[K{output}\r\n")
    assert screen.lines() == [output[:40], output[40:80].rstrip(), output[80:]]


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (40, r"triage  10%\|.{4,}\| 3/30, loss 1\.0000"),
        (60, r"triage  10%\|.{4,}\| 3/30 steps, loss 1\.0000 →, 0:09 left"),
        (80, r"triage  10%\|.{4,}\| 3/30 steps, loss 1\.0000 →, 3 steps/s, 0:09 left, checkpoint 3"),
    ],
)
def test_a_narrow_terminal_keeps_the_most_important_facts(columns: int, line: str) -> None:
    screen = in_a_terminal(
        """
        progress.on_event(TrainingStarted("j", at(0), 30))
        progress.on_event(TrainingLog("j", at(1), 3, loss=1.0))
        progress.on_event(CheckpointSaved("j", at(1), 3))
        """,
        columns=columns,
    )
    assert re.fullmatch(line, screen.lines()[0])


def test_the_line_takes_the_width_that_the_window_has_now() -> None:
    def pull(screen: Screen) -> None:
        if "100/1000" in screen.lines()[-1]:
            screen.resize(140)

    screen = in_a_terminal(
        """
        progress.on_event(TrainingStarted("j", at(0), 1000))
        progress.on_event(TrainingLog("j", at(1), 100, loss=1.0))
        time.sleep(0.6)
        progress.on_event(TrainingLog("j", at(2), 200, loss=1.0))
        time.sleep(0.6)
        """,
        columns=80,
        meanwhile=pull,
    )
    widths = {len(lines[-1]) for _, lines in screen.moments if "200/1000" in lines[-1]}
    assert widths == {139}


def share_of_time_with_the_line(screen: Screen) -> float:
    """Return the share of the time since the line first appeared."""
    shown = [(moment, lines[-1].startswith("triage")) for moment, lines in screen.moments]
    first = next(number for number, (_, visible) in enumerate(shown) if visible)
    pairs = list(zip(shown[first:], shown[first + 1 :], strict=False))
    return sum(to - since for (since, visible), (to, _) in pairs if visible) / (shown[-1][0] - shown[first][0])


FLOOD = """
        progress.on_event(TrainingStarted("j", at(0), 4000))
        until, step = time.monotonic() + 1.5, 0
        while time.monotonic() < until:
            step += 1
            progress.on_event(TrainingLog("j", at(step / 100), step, loss=1.0))
            with progress.paused():
                {reaction}
            time.sleep(0.001)
        """


def test_a_flood_of_logs_does_not_make_the_line_flicker() -> None:
    screen = in_a_terminal(FLOOD.format(reaction="time.sleep(0.001)"))
    assert share_of_time_with_the_line(screen) > 0.99
    assert len(screen.moments) < 40


def test_the_line_is_restored_after_each_of_a_flood_of_printed_lines() -> None:
    screen = in_a_terminal(FLOOD.format(reaction='print("step", step)'))
    printed = re.findall(r"step (\d+)\r\n(\r\x1b\[Ktriage )?", screen.written)
    assert [int(step) for step, _ in printed] == list(range(1, len(printed) + 1))
    assert len(printed) > 100
    assert all(line for _, line in printed)


def test_a_line_printed_in_pieces_is_not_torn() -> None:
    screen = in_a_terminal(
        """
        progress.on_event(TrainingStarted("j", at(0), 10))
        time.sleep(0.3)
        for step in range(1, 5):
            progress.on_event(TrainingLog("j", at(step), step, loss=1.0))
            with progress.paused():
                print(step, end=" ", flush=True)
            time.sleep(0.3)
        print("go")
        time.sleep(0.3)
        print("unfinished", end="", flush=True)
        time.sleep(0.3)
        """
    )
    assert screen.lines()[:2] == ["1 2 3 4 go", "unfinished"]
    assert screen.lines()[2].startswith("triage  40%|")
    assert len(screen.lines()) == 3


def test_other_output_leaves_the_line_intact() -> None:
    """Output of another thread, of a logging handler that keeps its stream, and of a program."""
    screen = in_a_terminal(
        """
        import subprocess, threading, warnings
        logging.basicConfig(format="%(message)s")
        progress.on_event(TrainingStarted("j", at(0), 10))
        progress.on_event(TrainingLog("j", at(1), 1, loss=1.0))
        time.sleep(0.4)
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start(), thread.join()
        time.sleep(0.4)
        logging.getLogger("somebody.else").warning("from a logger")
        time.sleep(0.4)
        progress.on_event(CheckpointSaved("j", at(1), 1))
        with progress.paused():
            subprocess.run(["echo", "from a program"])
        time.sleep(0.4)
        """
    )
    assert screen.lines()[:3] == ["from a thread", "from a logger", "from a program"]
    assert screen.lines()[3].startswith("triage  10%|")
    assert len(screen.lines()) == 4


def test_streams_are_left_as_they_were() -> None:
    screen = in_a_terminal(
        """
        assert "write" in vars(sys.stdout) and "write" in vars(sys.stderr)
        progress.close()
        assert "write" not in vars(sys.stdout) and "write" not in vars(sys.stderr)
        print("as ever")
        """
    )
    assert screen.lines() == ["triage: waiting to start 0:00", "as ever"]


def test_a_signal_that_prints_while_the_line_is_drawn_does_not_lock_it_up() -> None:
    screen = in_a_terminal(
        """
        import signal
        signal.signal(signal.SIGALRM, lambda *_: print("tick"))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for step in range(3000):
            progress.on_event(TrainingLog("j", at(1), step, loss=1.0))
            with progress.paused():
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        """
    )
    assert "2999 steps" in screen.lines()[-1]


def test_a_child_that_is_forked_off_in_mid_drawing_can_print() -> None:
    screen = in_a_terminal(
        """
        import os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork in a process with threads
        taken, enough = threading.Event(), threading.Event()
        def draw():
            with progress._lock:
                taken.set()
                enough.wait()
        drawing = threading.Thread(target=draw)
        drawing.start()
        taken.wait()
        if (child := os.fork()) == 0:
            print("from a child", flush=True)
            os._exit(0)
        until = time.monotonic() + 10
        while time.monotonic() < until and not (done := os.waitpid(child, os.WNOHANG)[0]):
            time.sleep(0.01)
        assert done, "the child hangs"
        enough.set()
        drawing.join()
        """
    )
    assert "from a child" in screen.written


def test_no_colour_is_used() -> None:
    screen = in_a_terminal('progress.on_event(TrainingStarted("j", at(0), 10)); time.sleep(0.4)')
    assert set(re.findall(r"\x1b\[[0-9;]*[A-Za-z]", screen.written)) == {"\x1b[K"}


def test_a_dumb_terminal_gets_lines() -> None:
    script = """
from arkor.display import progress_for
from arkor.display.plain import PlainProgress
assert isinstance(progress_for("auto"), PlainProgress)
print("so it is")
"""
    assert Screen(script, TERM="dumb").lines() == ["so it is"]


@pytest.mark.parametrize("encoding", ["ascii:strict", "cp1252:strict"])
def test_a_terminal_without_unicode_gets_what_it_can_show(encoding: str) -> None:
    screen = in_a_terminal(
        """
        progress.on_event(TrainingPreparing("j", at(0), "加载模型"))
        time.sleep(0.4)
        progress.on_event(TrainingStarted("j", at(0), 10))
        progress.on_event(TrainingLog("j", at(1), 3, loss=1.0))
        time.sleep(0.4)
        """,
        PYTHONIOENCODING=encoding,
    )
    assert screen.written.isascii()
    assert "30%|###" in screen.written
    assert "triage: ????" in screen.written


class Terminal(io.StringIO):
    """Counts the calls of `write`."""

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
