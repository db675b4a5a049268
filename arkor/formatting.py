"""Numbers, times and untrusted text in the form that a person reads: the one format of each."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TextIO

_JOINERS = "\u200c\u200d"  # part of Persian and Hindi text and of emoji sequences; they move no cursor


def is_printable(char: str) -> bool:
    """Return whether a character neither moves the cursor nor hides or reorders its neighbours."""
    return char.isprintable() or char in _JOINERS


def one_line(text: str, max_length: int | None = None) -> str:
    """Replace line breaks, escape codes and runs of white space by one space; shorten with "…"."""
    line = " ".join("".join(c if is_printable(c) else " " for c in text).split())
    return line if max_length is None else shorten(line, max_length)


def shorten(text: str, max_length: int) -> str:
    """Cut a text to `max_length` characters, the last of which is "…" then."""
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def quote(value: Any, max_length: int = 60) -> str:
    """Return the shortened `repr` of a value for a message, both quotes of a string included."""
    if isinstance(value, str):
        return repr(shorten(value, max_length))
    return shorten(repr(value), max_length)


def format_repr(cls: str, /, **facts: Any) -> str:
    """`"TrainingJob(id='3f9a', status='completed')"`; omits None and shortens long texts."""
    return f"{cls}({', '.join(f'{name}={quote(fact, 200)}' for name, fact in facts.items() if fact is not None)})"


def replace_unencodable(text: str, stream: TextIO) -> str:
    """Replace characters that the encoding of the stream does not have by `?`."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def format_loss(value: float) -> str:
    """`"0.0474"`, `"2.1961"`, `"1.2e+05"`."""
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def format_bytes(count: int) -> str:
    """`"512 bytes"`, `"9.6 kB"`, `"850 MB"`, `"1.4 GB"`; a unit is 1,000 of the one before."""
    if count < 1000:
        return f"{count} bytes"
    amount, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:.0f} {unit}"


def format_duration(seconds: float) -> str:
    """`"0:07"`, `"1:42"`, `"2:05:11"`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def parse_timestamp(timestamp: object) -> datetime | None:
    """Parse an ISO 8601 time into the local zone; return None for anything else."""
    try:
        return datetime.fromisoformat(str(timestamp).replace("Z", "+00:00")).astimezone()
    except (ValueError, OverflowError):  # no ISO time, or a year that the zone cannot represent
        return None


def seconds_between(began: object, ended: object) -> float | None:
    """Return the seconds between two ISO 8601 times, at least 0; None without both."""
    first, last = parse_timestamp(began), parse_timestamp(ended)
    return None if first is None or last is None else max(0.0, (last - first).total_seconds())
