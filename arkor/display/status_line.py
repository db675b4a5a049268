"""One line that says what is being done, for what takes a while and is no run; it is gone at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html import escape
from typing import Any, TextIO

from arkor.display.notebook import DisplayHandle, in_a_notebook, line_html
from arkor.display.terminal_io import ERASE, can_redraw, columns_of, trimmed
from arkor.formatting import one_line, replace_unencodable


@contextmanager
def status_for(progress: Any) -> Iterator[Callable[[str], None]]:
    """Gives what is called with each new sentence.

    In a terminal and in a notebook's cell they replace each other; False is silence.
    """
    stream = sys.stderr
    if progress is not False and in_a_notebook():
        yield from _cell_status(DisplayHandle())
    elif progress is False or stream is None or stream.closed:
        yield _no_status
    else:
        yield from _stream_status(stream)


def _cell_status(handle: DisplayHandle) -> Iterator[Callable[[str], None]]:
    try:
        yield lambda sentence: handle.update(one_line(sentence), line_html(escape(one_line(sentence))))
    finally:
        handle.clear()


def _stream_status(stream: TextIO) -> Iterator[Callable[[str], None]]:
    in_place = can_redraw(stream)

    def write(text: str) -> None:
        with suppress(OSError, ValueError):  # a terminal that is gone must not hurt what is being done
            stream.write(replace_unencodable(text, stream))
            stream.flush()

    def say(sentence: str) -> None:
        text = one_line(sentence)
        write(f"{ERASE}{trimmed(text, columns_of(stream) - 1)}" if in_place else f"{text}\n")

    try:
        yield say
    finally:
        if in_place:
            write(ERASE)


def _no_status(_sentence: str) -> None:
    """Nothing."""
