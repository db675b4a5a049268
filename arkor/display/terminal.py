"""Progress as one line at the foot of a terminal, drawn by tqdm.

`on_event()` only takes notes. The line is drawn at most ten times a second: by a thread that ticks, so that the time
left counts down during a long step, and behind whatever was printed while it was out of the way.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TextIO

from arkor.display.tally import Tally, clock, number, one_line
from arkor.events import Event, TrainingWarning

_logger = logging.getLogger("arkor")

_REDRAW_SECONDS = 0.1
_TICK_SECONDS = 0.25
_NAME_WIDTH = 24
_ERASE = "\r\x1b[K"


class TerminalProgress:
    """A bar with steps, loss and its trend, speed, time left, and the last checkpoint.

    Whatever may print meanwhile goes into `with progress.paused():`. Closing leaves the line where it stands.
    """

    def __init__(self, stream: TextIO | None = None, tally: Tally | None = None) -> None:
        self._stream = stream or sys.stderr
        self._tally = tally or Tally()
        self._unicode = "utf" in (getattr(self._stream, "encoding", None) or "").lower()
        self._lock = threading.Lock()
        self._visible = False
        self._drawn_at = 0.0
        self._noted_at = time.monotonic()
        self._fresh = False
        self._closed = threading.Event()
        self._pause = _Pause(self)
        self._pauses = 0
        self._ticker = threading.Thread(target=self._tick, name="arkor-progress", daemon=True)

    def __enter__(self) -> TerminalProgress:
        _logger.addFilter(self._step_aside)
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def on_event(self, event: Event) -> None:
        """Note the next event; draws nothing, unless it is the last, or a warning, which stays above the line."""
        with self._lock:
            self._tally.take(event)
            self._fresh = True
            if isinstance(event, TrainingWarning):
                self._visible = False
                self._write(f"{_ERASE}{one_line(f'{self._tally.name}: warning: {event.message}')}\n")
            if self._tally.ended:
                self._finish()

    def paused(self) -> AbstractContextManager[None]:
        """The line is out of the way inside, and back afterwards."""
        return self._pause

    def close(self) -> None:
        """Leave the line as it stands and go to the next one."""
        _logger.removeFilter(self._step_aside)
        with self._lock:
            self._finish()
        if self._ticker.is_alive():
            self._ticker.join()

    def _step_aside(self, _: logging.LogRecord) -> bool:
        """A filter on what arkor logs (a reconnect, a callback that raised): make room for it, let it through."""
        with self._lock:
            self._erase()
        return True

    # Drawing: always under the lock

    def _erase(self) -> None:
        if self._visible:
            self._write(_ERASE)
            self._visible = False

    def _finish(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._write(f"{_ERASE}{self._line()}\n")
            self._visible = False

    def _draw(self) -> None:
        self._write(_ERASE + self._line())
        self._visible = True
        self._drawn_at = time.monotonic()

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a terminal that is gone must not hurt the run
            self._stream.write(text)
            self._stream.flush()

    def _tick(self) -> None:
        while not self._closed.wait(_TICK_SECONDS):
            with self._lock:
                if not self._pauses and not self._closed.is_set():
                    self._draw()

    def _line(self) -> str:
        if self._fresh:
            self._fresh, self._noted_at = False, time.monotonic()
        width = _columns(self._stream) - 1
        text = self._bar(width) if self._tally.training else self._status()
        from tqdm.utils import disp_trim  # noqa: PLC0415 - only where a line is drawn

        return str(disp_trim(text, width))

    def _status(self) -> str:
        tally = self._tally
        if tally.ended:
            facts = [f"step {tally.steps()}", self._loss(), tally.duration()] if tally.step else []
            return f"{tally.name}: {', '.join(fact for fact in (tally.phase, *facts) if fact)}"
        waited = time.monotonic() - self._noted_at
        return f"{tally.name}: {tally.phase} {clock(waited)}"

    def _bar(self, width: int) -> str:
        from tqdm import tqdm  # noqa: PLC0415 - only where a line is drawn

        tally = self._tally
        saved = f"checkpoint {tally.checkpoint}" if tally.checkpoint is not None else ""
        left = tally.time_left(time.monotonic() - self._noted_at)
        facts = ", ".join(fact for fact in (self._loss(), tally.speed(), left, saved) if fact)
        layout = "{desc} {percentage:3.0f}%|{bar}| {unit}" if tally.total else "{desc} {unit}"
        return str(
            tqdm.format_meter(
                min(tally.step, tally.total or tally.step),
                tally.total or 0,
                elapsed=1,
                ncols=width,
                prefix=tally.name[:_NAME_WIDTH],
                ascii=not self._unicode,
                bar_format=layout,
                unit=f"{tally.steps()} steps{', ' if facts else ''}{facts}",
            )
        )

    def _loss(self) -> str:
        loss = self._tally.loss
        if loss is None:
            return ""
        arrow = {-1: " ↘", 0: " →", 1: " ↗"}[self._tally.trend] if self._unicode else ""
        return f"loss {number(loss)}{arrow}"


def _columns(stream: TextIO) -> int:
    """How wide this very terminal is now; 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class _Pause(AbstractContextManager[None]):
    """`progress.paused()`, made once because it is entered for every event."""

    def __init__(self, progress: TerminalProgress) -> None:
        self._progress = progress

    def __enter__(self) -> None:
        progress = self._progress
        with progress._lock:
            progress._pauses += 1
            progress._erase()

    def __exit__(self, *_: object) -> None:
        progress = self._progress
        with progress._lock:
            progress._pauses -= 1
            due = time.monotonic() - progress._drawn_at >= _REDRAW_SECONDS
            if due and not progress._closed.is_set():
                progress._draw()
