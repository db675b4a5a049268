"""Progress in a notebook cell: a line of text, a bar and a chart of the losses, updated in place.

The output is HTML without scripts and an image, so that it remains in a saved notebook.
`on_event()` only records; a thread draws, twice a second at first and less often as the run gets
longer.
"""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections import deque
from html import escape
from importlib import import_module
from typing import Any

from arkor.charts.svg import loss_image
from arkor.display.run_progress import ARROWS, ProgressDisplay, RunProgress, joined
from arkor.display.terminal_io import Ticker
from arkor.errors import TrainerAborted
from arkor.formatting import one_line
from arkor.protocol.events import Event, TrainingLog, TrainingWarning
from arkor.results.history import History

_MIN_REDRAW_SECONDS, _MAX_REDRAW_SECONDS = 0.5, 5.0  # between two drawings
_REDRAW_DIVISOR = 200  # the interval grows by a second after this many seconds
_MAX_WARNINGS = 5

_BAR = "height:4px;max-width:640px;background:rgba(127,127,127,.25);margin:2px 0 6px"
_BAR_FILL = "height:4px;background:#3b82f6"
_LINE = "font-family:ui-monospace,Menlo,Consolas,monospace;font-size:13px;overflow-wrap:anywhere"


def in_a_notebook() -> bool:
    """Return True in a kernel of Jupyter, VS Code or Colab. Does not import IPython."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython is not None and getattr(get_ipython(), "kernel", None) is not None


class DisplayHandle:
    """An output of the running cell whose content can be replaced."""

    def __init__(self) -> None:
        self._name = f"arkor-{uuid.uuid4().hex}"
        self._is_displayed = False

    def update(self, text: str, page: str) -> None:
        """Show `page`; a front end that cannot show HTML shows `text`."""
        publish: Any = import_module("IPython.display").publish_display_data
        publish(
            {"text/plain": text, "text/html": page}, transient={"display_id": self._name}, update=self._is_displayed
        )
        self._is_displayed = True

    def clear(self) -> None:
        if self._is_displayed:
            self.update("", "")


class NotebookProgress(ProgressDisplay):
    """A display in a notebook cell. The chart begins with `history`, from an earlier `wait()`."""

    def __init__(self, run_progress: RunProgress, history: History, job_id: str) -> None:
        self._run_progress = run_progress
        self._job_id = job_id
        self._loss, self._eval_loss = history.curves()
        self._warnings: deque[str] = deque(maxlen=_MAX_WARNINGS)
        self._note = ""
        self._lock = threading.Lock()
        self._began_at = self._noted_at = time.monotonic()
        self._display = DisplayHandle()
        self._shown = ""
        self._ticker = Ticker(self._tick, _MIN_REDRAW_SECONDS)

    def __enter__(self) -> NotebookProgress:
        self._draw()
        self._ticker.start()
        return self

    def __exit__(self, *exception: object) -> None:
        interrupted = isinstance(exception[1], (KeyboardInterrupt, TimeoutError, TrainerAborted))
        if interrupted and not self._run_progress.ended:
            handle = f"Trainer.attach({self._job_id!r})"
            self._note = (
                f"Stopped watching; the run goes on. Watch it again: {handle}.wait(). Stop it: {handle}.cancel()."
            )
        self.close()

    def on_event(self, event: Event) -> None:
        with self._lock:
            self._run_progress.update(event)
            self._noted_at = time.monotonic()
            if isinstance(event, TrainingLog):
                if event.loss is not None:
                    self._loss.add(event.step, event.loss)
                if event.eval_loss is not None:
                    self._eval_loss.add(event.step, event.eval_loss)
            elif isinstance(event, TrainingWarning):
                self._warnings.append(one_line(f"warning: {event.message}"))

    def close(self) -> None:
        self._ticker.close()
        self._draw()

    def _tick(self) -> float:
        self._draw()
        return min(_MAX_REDRAW_SECONDS, _MIN_REDRAW_SECONDS + (time.monotonic() - self._began_at) / _REDRAW_DIVISOR)

    def _draw(self) -> None:
        """Publish the current state if it differs from the published one."""
        with self._lock:
            line = self._line()
            page = self._page(line)
        if page != self._shown:
            self._publish(line, page)
            self._shown = page

    def _publish(self, line: str, page: str) -> None:
        self._display.update(line, page)

    def _line(self) -> str:
        run_progress, waited = self._run_progress, time.monotonic() - self._noted_at
        if not run_progress.training:
            return run_progress.status(ARROWS, waited)
        steps, loss, speed = f"{run_progress.steps()} steps", run_progress.losses(ARROWS), run_progress.speed()
        facts = joined(steps, loss, speed, run_progress.time_left(waited), run_progress.checkpoint_text())
        return f"{run_progress.name}: {facts}"

    def _page(self, line: str) -> str:
        run_progress = self._run_progress
        share = min(1.0, run_progress.step / run_progress.total) if run_progress.total else 0.0
        bar = (
            f'<div style="{_BAR}"><div style="{_BAR_FILL};width:{share:.1%}"></div></div>' if run_progress.total else ""
        )
        chart = loss_image(self._loss, self._eval_loss, None if run_progress.ended else run_progress.total)
        notes = [*self._warnings, *([self._note] if self._note else [])]
        notes_html = "".join(line_html(escape(text)) for text in notes)
        name, rest = escape(run_progress.name), escape(line.removeprefix(run_progress.name))
        return f"{line_html(f'<bdi>{name}</bdi>{rest}')}{bar}{chart}{notes_html}"


def line_html(content: str) -> str:
    """Return a line of a cell; `content` is HTML."""
    return f'<div style="{_LINE}">{content}</div>'
