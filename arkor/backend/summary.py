"""Where a run stands, in three numbers for a list of many: from the two ends of its log, without what lies between."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from arkor.backend.log import LogDamaged, decode_line
from arkor.events import TrainingLog, TrainingStarted, decode_event

_PIECES = (4 * 1024, 256 * 1024)  # bytes of an end of the log; the larger where the smaller does not say it
_KEPT = 8192


def summary(log: Path) -> dict[str, Any]:
    """`step`, `totalSteps` and `lastLoss` as on the wire, those of them that the log tells; a loss that is not finite
    is `null`, and said in `nonFinite`, as in events.
    """
    try:
        size = log.stat().st_size
    except OSError:
        return {}
    return dict(_summary(str(log), size))


@lru_cache(_KEPT)
def _summary(path: str, size: int) -> dict[str, Any]:
    """Of a log of that many bytes: what has not grown since need not be read again."""
    found: dict[str, Any] = {}
    for piece in _PIECES:
        with open(path, "rb") as file:  # noqa: PTH123 - a str is what the cache is asked with
            _look_at_end(os.pread(file.fileno(), piece, max(0, size - piece)), found)
            if "totalSteps" not in found:
                _look_at_beginning(os.pread(file.fileno(), piece, 0), found)
        if len(found.keys() - {"nonFinite"}) == 3 or size <= piece:
            break
    return found


def _look_at_end(piece: bytes, found: dict[str, Any]) -> None:
    for event in _events(reversed(piece.splitlines())):
        if not isinstance(event, TrainingLog):
            continue
        found.setdefault("step", event.step)
        if event.loss is not None:
            finite = math.isfinite(event.loss)
            found["lastLoss"] = event.loss if finite else None
            if not finite:
                found["nonFinite"] = {"lastLoss": "nan" if event.loss != event.loss else str(event.loss)}
            return


def _look_at_beginning(piece: bytes, found: dict[str, Any]) -> None:
    for event in _events(iter(piece.splitlines())):
        if isinstance(event, TrainingStarted) and event.total_steps is not None:
            found["totalSteps"] = event.total_steps
            return


def _events(lines: Iterator[bytes]) -> Iterator[Any]:
    """Those that are whole and make sense."""
    for line in lines:
        with suppress(LogDamaged, ValueError):
            yield decode_event(decode_line(line))
