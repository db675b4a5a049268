"""The rows of a run in memory, packed; what a row is, and how a record becomes one, is said in
`arkor/protocol/row_formats.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from arkor.protocol.row_formats import Row


class PackedRows(Sequence[Row]):
    """Rows kept as JSON bytes, about a fifth of what Python objects take, and decoded when looked at."""

    def __init__(self, packed: Iterable[bytes] = ()) -> None:
        self._packed = list(packed)

    def append(self, row: Row) -> None:
        self._packed.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode())

    def take(self, indices: Iterable[int]) -> PackedRows:
        """The rows at `indices`, in that order."""
        return PackedRows(self._packed[index] for index in indices)

    def digests(self) -> Iterator[bytes]:
        """Of each row 16 bytes that are the same for the same row, and for no other."""
        return (hashlib.blake2b(packed, digest_size=16).digest() for packed in self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> PackedRows: ...
    def __getitem__(self, index: int | slice) -> Row | PackedRows:
        if isinstance(index, slice):
            return PackedRows(self._packed[index])
        row: Row = json.loads(self._packed[index])
        return row
