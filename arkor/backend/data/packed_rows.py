"""The rows of a run in memory, as packed JSON; `arkor/protocol/row_formats.py` defines the rows."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from arkor.protocol.row_formats import Row


class PackedRows(Sequence[Row]):
    """Rows stored as JSON bytes, about a fifth of the size of Python objects.

    Each row has the number of its line or row in the source, which `place()` returns in words.
    """

    def __init__(self, packed: Iterable[bytes] = (), numbers: Iterable[int] = (), unit: str = "row") -> None:
        self._packed = list(packed)
        self._numbers = array("Q", numbers)
        self._unit = unit

    def append(self, row: Row, place: str = "") -> None:
        """Add a row; `place` is like "line 3", and counts on if it is left out."""
        unit, _, number = place.rpartition(" ")
        self._unit = unit or self._unit
        self._packed.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode())
        self._numbers.append(int(number) if number.isdecimal() else len(self._packed))

    def place(self, index: int) -> str:
        """Return where a row is in the source, like "line 3"."""
        return f"{self._unit} {self._numbers[index]}"

    def take(self, indices: Iterable[int]) -> PackedRows:
        """Return the rows at `indices`, in that order."""
        chosen = list(indices)
        numbers = [self._numbers[index] for index in chosen]
        return PackedRows([self._packed[index] for index in chosen], numbers, self._unit)

    def digests(self) -> Iterator[bytes]:
        """Yield a hash of 16 bytes for each row."""
        return (hashlib.blake2b(packed, digest_size=16).digest() for packed in self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> PackedRows: ...
    def __getitem__(self, index: int | slice) -> Row | PackedRows:
        if isinstance(index, slice):
            return PackedRows(self._packed[index], self._numbers[index], self._unit)
        row: Row = json.loads(self._packed[index])
        return row
