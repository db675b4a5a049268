"""A status line for a long operation that is not a run, such as a check; it disappears at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html import escape
from typing import Any

from arkor.display.notebook import DisplayHandle, in_a_notebook, line_html
from arkor.display.terminal_io import ERASE, can_redraw, columns_of, trimmed
from arkor.formatting import one_line, replace_unencodable


@contextmanager
def status_for(progress: Any) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a message.

    In a terminal and in a notebook a message replaces the one before; elsewhere each is a line on
    stderr. With `progress=False` nothing is shown.
    """
    stream = sys.stderr
    if progress is False:
        yield lambda _message: None
    elif in_a_notebook():
        handle = DisplayHandle()
        try:
            yield lambda message: handle.update(one_line(message), line_html(escape(one_line(message))))
        finally:
            handle.clear()
    elif stream is None or stream.closed:
        yield lambda _message: None
    else:
        redraws = can_redraw(stream)

        def write(text: str) -> None:
            with suppress(OSError, ValueError):  # a closed terminal must not end the operation
                stream.write(replace_unencodable(text, stream))
                stream.flush()

        def show(message: str) -> None:
            text = one_line(message)
            write(f"{ERASE}{trimmed(text, columns_of(stream) - 1)}" if redraws else f"{text}\n")

        try:
            yield show
        finally:
            if redraws:
                write(ERASE)
