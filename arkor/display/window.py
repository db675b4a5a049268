"""The window of a terminal: whether a line in it can be put anew, how wide it is now, what fits into a line of it."""

from __future__ import annotations

import os
from typing import TextIO

#: Goes back to the beginning of the line and takes away what stands there.
ERASE = "\r\x1b[K"


def can_redraw(stream: TextIO) -> bool:
    """False for files and pipes, and for terminals that can only go on."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def columns_of(stream: TextIO) -> int:
    """How wide this very terminal is now; 80 where it does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def trimmed(text: str, columns: int) -> str:
    """What fits, a wide letter taking two columns."""
    from tqdm.utils import disp_trim  # noqa: PLC0415 - only where a line is drawn

    return str(disp_trim(text, columns))
