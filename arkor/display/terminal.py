"""Progress as one line at the foot of a terminal, drawn by tqdm.

`on_event()` only takes notes. The line is drawn at most ten times a second, by a thread that ticks, so that the time
left counts down during a long step; and again behind whatever was printed. It stays where it is as long as nobody
prints: taken away and put back for every event, it would flicker.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import TextIO

from arkor.display.run_progress import ARROWS, NO_ARROWS, RunProgress
from arkor.display.stdout_hook import StdoutHook
from arkor.display.terminal_io import ERASE, Ticker, columns_of, trimmed
from arkor.formatting import one_line, replace_unencodable
from arkor.protocol.events import Event, TrainingLog, TrainingWarning

_REDRAW_SECONDS = 0.1
_TICK_SECONDS = 0.25
_NAME_WIDTH = 24
_BAR_WIDTH = 4  # of the bar itself, at least; facts are left out for it


class TerminalProgress:
    """A bar with steps, loss and its trend, speed, time left, and the last checkpoint.

    What Python code prints is heard, wherever it comes from. What else may print meanwhile, other programs among it,
    goes into `with progress.paused():`, where the line is out of the way, after a log excepted: these come in floods.
    Closing leaves the line where it stands.
    """

    def __init__(self, stream: TextIO | None = None, run_progress: RunProgress | None = None) -> None:
        self._stream = stream or sys.stderr
        self._raw_write = self._stream.write  # as it is before anybody listens to it
        self._run_progress = run_progress or RunProgress()
        self._unicode = "utf" in (getattr(self._stream, "encoding", None) or "").lower()
        self._arrows = ARROWS if self._unicode else NO_ARROWS
        self._lock = threading.RLock()  # a signal's handler may print while its thread draws
        self._line = ""
        self._visible = False
        self._unfinished = False  # somebody has printed a part of a line: the rest comes behind it
        self._is_frequent = False
        self._drawn_at = 0.0
        self._noted_at = time.monotonic()
        self._closed = False
        self._pause = _Pause(self)
        self._pauses = 0
        self._stdout_hook = StdoutHook(_terminals(), self._on_other_output, self._lock)
        self._ticker = Ticker(self._tick, _TICK_SECONDS)

    def __enter__(self) -> TerminalProgress:
        self._stdout_hook.open()
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def on_event(self, event: Event) -> None:
        """Note the next event; draws nothing, unless it is the last, or a warning, which stays above the line."""
        with self._lock:
            self._run_progress.update(event)
            self._noted_at = time.monotonic()
            self._is_frequent = isinstance(event, TrainingLog)
            if isinstance(event, TrainingWarning):
                self._print_above(f"{self._run_progress.name}: warning: {event.message}")
            if self._run_progress.ended:
                self._finish()

    def paused(self) -> AbstractContextManager[None]:
        """The line keeps out of the way inside, and is back afterwards."""
        return self._pause

    def close(self) -> None:
        """Leave the line as it stands and go to the next one."""
        with self._lock:
            self._finish()
        self._stdout_hook.close()
        self._ticker.close()

    def _on_other_output(self, text: str) -> None:
        """Somebody prints: make room."""
        if text:
            self._erase()
            self._unfinished = not text.endswith("\n")

    # Drawing: always under the lock

    def _erase(self) -> None:
        if self._visible:
            self._write(ERASE)
            self._visible = False

    def _print_above(self, text: str) -> None:
        """A line that stays, above the one that moves."""
        self._write(f"{self._begin()}{one_line(text)}\n")
        self._visible = self._unfinished = False

    def _finish(self) -> None:
        if not self._closed:
            self._closed = True
            self._write(f"{self._begin()}{self._last_line()}\n")
            self._visible = self._unfinished = False

    def _begin(self) -> str:
        return "\n" if self._unfinished else ERASE

    def _draw(self) -> None:
        """Draw what is new, at most every `_REDRAW_SECONDS`; in between, only put back what was taken away."""
        if self._closed or self._unfinished:
            return
        due = time.monotonic() - self._drawn_at >= _REDRAW_SECONDS
        if due:
            self._line, self._drawn_at = self._compose(), time.monotonic()
        if due or not self._visible:
            self._write(ERASE + self._line)
            self._visible = True

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a terminal that is gone must not hurt the run
            self._raw_write(replace_unencodable(text, self._stream))
            self._stream.flush()

    def _tick(self) -> float:
        with self._lock:
            if not self._pauses:
                self._draw()
        return _TICK_SECONDS

    # The line

    def _compose(self) -> str:
        width = columns_of(self._stream) - 1
        return trimmed(self._bar(width, self._waited()) if self._run_progress.training else self._status(), width)

    def _last_line(self) -> str:
        """It stays, and may take two rows: why a run failed is not to be cut off."""
        return self._status() if self._run_progress.ended else self._compose()

    def _status(self) -> str:
        return self._run_progress.status(self._arrows, self._waited())

    def _waited(self) -> float:
        return time.monotonic() - self._noted_at

    def _bar(self, width: int, waited: float) -> str:
        from tqdm import tqdm  # noqa: PLC0415 - only where a line is drawn
        from tqdm.utils import disp_len  # noqa: PLC0415

        run_progress = self._run_progress
        name = trimmed(run_progress.name, min(_NAME_WIDTH, max(width // 4, 4)))
        room = width - disp_len(name) - len(" 100%|| ") - _BAR_WIDTH
        unit = next((text for text in self._facts(waited) if disp_len(text) <= room), run_progress.steps())
        layout = "{desc} {percentage:3.0f}%|{bar}| {unit}" if run_progress.total else "{desc} {unit}"
        done, total = min(run_progress.step, run_progress.total or run_progress.step), run_progress.total or 0
        return str(
            tqdm.format_meter(
                done, total, elapsed=1, ncols=width, prefix=name, ascii=not self._unicode, bar_format=layout, unit=unit
            )
        )

    def _facts(self, waited: float) -> Iterator[str]:
        """What stands behind the bar: everything, then less and less of it, what matters least first."""
        run_progress = self._run_progress
        steps, loss = f"{run_progress.steps()} steps", run_progress.losses(self._arrows)
        speed, left, saved = run_progress.speed(), run_progress.time_left(waited), run_progress.checkpoint_text()
        for facts in ((loss, speed, left, saved), (loss, speed, left), (loss, left), (loss,)):
            yield ", ".join(fact for fact in (steps, *facts) if fact)
        if loss:
            yield f"{run_progress.steps()}, {run_progress.losses(NO_ARROWS)}"


def _terminals() -> list[TextIO]:
    """Where what others print would come into the way of the line."""
    found = {id(stream): stream for stream in (sys.stdout, sys.stderr) if stream is not None}
    return [stream for stream in found.values() if not stream.closed and stream.isatty()]


class _Pause(AbstractContextManager[None]):
    """`progress.paused()`, made once because it is entered for every event."""

    def __init__(self, progress: TerminalProgress) -> None:
        self._progress = progress

    def __enter__(self) -> None:
        progress = self._progress
        with progress._lock:
            progress._pauses += 1
            if progress._stdout_hook.failed or not progress._is_frequent:
                progress._erase()

    def __exit__(self, *_: object) -> None:
        progress = self._progress
        with progress._lock:
            progress._pauses -= 1
            progress._draw()
