"""Progress as one line at the bottom of a terminal, with a bar drawn by tqdm.

`on_event()` only records. A thread draws the line at most ten times a second, so that the remaining
time counts down during a long step. The line is erased for printed text and drawn again after it;
erasing it for every event would make it flicker.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from arkor.display.run_progress import ARROWS, NO_ARROWS, ProgressDisplay, RunProgress, joined
from arkor.display.terminal_io import ERASE, PrintHook, Ticker, columns_of, trimmed
from arkor.formatting import one_line, replace_unencodable
from arkor.protocol.events import Event, TrainingLog, TrainingWarning

_REDRAW_SECONDS = 0.1
_TICK_SECONDS = 0.25
_NAME_WIDTH = 24  # at most, in columns
_BAR_WIDTH = 4  # at least, in columns; facts are left out before the bar becomes shorter


class TerminalProgress(ProgressDisplay):
    """A bar with steps, loss and its trend, speed, remaining time and the last checkpoint.

    Text printed by Python code stays above the line, whichever thread prints it. Other programs may
    print inside `with progress.paused():`, where the line is erased; after a log event it is not,
    because these come too often. Closing leaves the line on the screen.
    """

    def __init__(self, stream: TextIO | None = None, run_progress: RunProgress | None = None) -> None:
        self._stream = stream or sys.stderr
        self._raw_write = self._stream.write  # without the hook
        self._run_progress = run_progress or RunProgress()
        self._unicode = "utf" in (getattr(self._stream, "encoding", None) or "").lower()
        self._arrows = ARROWS if self._unicode else NO_ARROWS
        self._lock = threading.RLock()  # reentrant: a signal handler may print while its thread draws
        self._line = ""
        self._visible = False
        self._unfinished = False  # other code has printed part of a line and will print the rest
        self._is_frequent = False  # the last event was a log
        self._drawn_at = 0.0
        self._noted_at = time.monotonic()
        self._closed = False
        self._pauses = 0
        self._hook = PrintHook(self._on_other_output, self._lock)
        self._ticker = Ticker(self._tick, _TICK_SECONDS)

    def __enter__(self) -> TerminalProgress:
        self._hook.open()
        self._ticker.start()
        return self

    def on_event(self, event: Event) -> None:
        """Record the event. Only a warning and the end of the run are written at once."""
        with self._lock:
            self._run_progress.update(event)
            self._noted_at = time.monotonic()
            self._is_frequent = isinstance(event, TrainingLog)
            if isinstance(event, TrainingWarning):
                self._print_line(one_line(f"{self._run_progress.name}: warning: {event.message}"))
            if self._run_progress.ended:
                self._finish()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Erase the line inside, except after a log, and draw it again afterwards."""
        with self._lock:
            self._pauses += 1
            if self._hook.failed or not self._is_frequent:
                self._erase()
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                self._draw()

    def close(self) -> None:
        """Leave the line as it is and start a new one."""
        with self._lock:
            self._finish()
        self._hook.close()
        self._ticker.close()

    def _on_other_output(self, text: str) -> None:
        if text:
            self._erase()
            self._unfinished = not text.endswith("\n")

    # Drawing; the caller holds the lock

    def _erase(self) -> None:
        if self._visible:
            self._write(ERASE)
            self._visible = False

    def _print_line(self, text: str) -> None:
        """Write a line that stays, in place of the redrawn one."""
        start = "\n" if self._unfinished else ERASE
        self._write(f"{start}{text}\n")
        self._visible = self._unfinished = False

    def _finish(self) -> None:
        if not self._closed:
            self._closed = True
            # the final status may take several rows: the reason of a failure must not be cut
            self._print_line(self._status() if self._run_progress.ended else self._compose())

    def _draw(self) -> None:
        """Draw at most every `_REDRAW_SECONDS`; in between, only restore an erased line."""
        if self._closed or self._unfinished:
            return
        due = time.monotonic() - self._drawn_at >= _REDRAW_SECONDS
        if due:
            self._line, self._drawn_at = self._compose(), time.monotonic()
        if due or not self._visible:
            self._write(ERASE + self._line)
            self._visible = True

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a closed terminal must not end the wait
            self._raw_write(replace_unencodable(text, self._stream))
            self._stream.flush()

    def _tick(self) -> float:
        with self._lock:
            if not self._pauses:
                self._draw()
        return _TICK_SECONDS

    # The text of the line

    def _compose(self) -> str:
        width = columns_of(self._stream) - 1
        return trimmed(self._bar(width) if self._run_progress.training else self._status(), width)

    def _status(self) -> str:
        return self._run_progress.status(self._arrows, time.monotonic() - self._noted_at)

    def _bar(self, width: int) -> str:
        from tqdm import tqdm  # noqa: PLC0415 - needed only to draw a line
        from tqdm.utils import disp_len  # noqa: PLC0415

        run_progress = self._run_progress
        name = trimmed(run_progress.name, min(_NAME_WIDTH, max(width // 4, 4)))
        available = width - disp_len(name) - len(" 100%|| ") - _BAR_WIDTH
        facts = next((text for text in self._facts() if disp_len(text) <= available), run_progress.steps())
        total = run_progress.total or 0
        return str(
            tqdm.format_meter(
                min(run_progress.step, total or run_progress.step),
                total,
                elapsed=1,
                ncols=width,
                prefix=name,
                ascii=not self._unicode,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {unit}" if total else "{desc} {unit}",
                unit=facts,
            )
        )

    def _facts(self) -> Iterator[str]:
        """Yield texts for the right of the bar, from all facts to the most important ones."""
        run_progress = self._run_progress
        steps, loss = f"{run_progress.steps()} steps", run_progress.losses(self._arrows)
        speed, left = run_progress.speed(), run_progress.time_left(time.monotonic() - self._noted_at)
        yield joined(steps, loss, speed, left, run_progress.checkpoint_text())
        yield joined(steps, loss, speed, left)
        yield joined(steps, loss, left)
        yield joined(steps, loss)
        yield joined(run_progress.steps(), run_progress.losses(NO_ARROWS))
