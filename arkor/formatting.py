"""Numbers, times and text of strangers, as a person reads them."""

from __future__ import annotations

from datetime import datetime
from typing import TextIO

_JOINERS = "\u200c\u200d"  # Persian, Hindi and families of emoji are written with them; they steer nothing


def is_printable(char: str) -> bool:
    """Whether it can be shown without steering what stands around it."""
    return char.isprintable() or char in _JOINERS


def one_line(text: str) -> str:
    """Without line breaks, escape codes and the like, which would tear a line of progress."""
    return " ".join("".join(c if is_printable(c) else " " for c in text).split())


def replace_unencodable(text: str, stream: TextIO) -> str:
    """The text with `?` for what the stream's encoding has no letters for."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def format_loss(value: float) -> str:
    """A loss in as few characters as are worth reading."""
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def format_duration(seconds: float) -> str:
    """`"0:07"`, `"1:42"`, `"2:05:11"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def seconds_between(began: object, ended: object) -> float | None:
    """From one ISO time to another; None where either is none or nonsense."""
    first, last = parse_timestamp(began), parse_timestamp(ended)
    return None if first is None or last is None else max(0.0, (last - first).total_seconds())


def parse_timestamp(timestamp: object) -> datetime | None:
    """An ISO time → an instant in the local zone; None for none or nonsense."""
    try:
        return datetime.fromisoformat(str(timestamp).replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError):  # a backend whose time stamps are none, or of no year that a zone knows
        return None
