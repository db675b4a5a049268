"""One line that says what is being done, for what takes a while and is no run; it is gone at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from arkor.words import one_line, spelled


@contextmanager
def status_for(progress: Any) -> Iterator[Callable[[str], None]]:
    """Gives what is called with each new sentence. In a terminal they replace each other; False is silence."""
    stream = sys.stderr
    if progress is False or stream is None:
        yield _silence
        return
    in_place = stream.isatty()

    def say(sentence: str) -> None:
        text = spelled(one_line(sentence), stream)
        stream.write(f"\r\x1b[K{text[:78]}" if in_place else f"{text}\n")
        stream.flush()

    try:
        yield say
    finally:
        if in_place:
            stream.write("\r\x1b[K")
            stream.flush()


def _silence(_sentence: str) -> None:
    """Nothing."""
