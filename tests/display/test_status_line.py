"""The status line: one row of a terminal, removed at the end; plain lines elsewhere."""

from __future__ import annotations

import pytest

from tests.fakes.screen import Screen

pytestmark = pytest.mark.slow  # real terminals

SCRIPT = """
import sys, time
from arkor.display import status_for
with status_for("auto") as report:
    for message in ("Reading the data, which has " + "many " * 40 + "rows", "很长的消息" * 40, "\\x1b[31mTiming\\na step"):
        report(message)
        time.sleep(0.05)
print("done")
"""


@pytest.mark.parametrize("columns", [20, 40, 200])
def test_in_a_terminal_messages_take_one_row_and_leave_nothing(columns: int) -> None:
    screen = Screen(SCRIPT, columns)
    assert {len(lines) for _, lines in screen.moments} <= {1}
    assert "Timing a step" in screen.written.replace("[31m", "").replace("\x1b", "")
    assert screen.lines() == ["done"]


def test_a_dumb_terminal_gets_lines() -> None:
    screen = Screen(SCRIPT, 400, TERM="dumb")
    assert "\x1b" not in screen.written
    assert screen.lines()[-2:] == ["[31mTiming a step", "done"]
