"""Which events were handed on before, so that a server that replays too much is tolerated.

Ids are opaque: nothing is taken for granted of them but that a different event has a different one. Each costs eight
bytes, so that a long run stays cheap to watch.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence

#: A number of so many digits fits into eight bytes. It is kept as it is, so that rising ids need no sorting; anything
#: else is kept by its hash.
_DIGITS = 18


class ReplayGuard:
    """The events of this connection and of the earlier ones, by their ids; by their data where they have none."""

    def __init__(self) -> None:
        self._earlier = array("q")  # sorted
        self._current = array("q")
        self._rising = True  # whether those of this connection are sorted as they came
        self._last: tuple[str | None, str] | None = None

    def connected(self) -> None:
        """A new connection begins: from here on, what came before is a replay."""
        follows = not self._earlier or not self._current or self._earlier[-1] < self._current[0]
        self._earlier.extend(self._current)
        if not (self._rising and follows):
            self._earlier = array("q", sorted(self._earlier))
        self._current, self._rising, self._last = array("q"), True, None

    def is_replay(self, event_id: str | None, data: str) -> bool:
        """Whether this event was here before; if not, it is from now on.

        Within one connection, an id that comes again is a replay only if its data is the same, too, as far as that
        is known: an event that was never seen must not get lost for an id that was given twice.
        """
        number = event_id and len(event_id) <= _DIGITS and event_id.isascii() and event_id.isdigit()
        key = int(event_id) if event_id and number else hash(event_id or data)
        if self._earlier and _has(self._earlier, key):
            return True
        if self._current and key <= self._current[-1]:
            if key == self._current[-1]:
                return self._last == (event_id, data)
            if self._rising and event_id and _has(self._current, key):
                return True
            self._rising = False
        self._current.append(key)
        self._last = (event_id, data)
        return False


def _has(keys: Sequence[int], key: int) -> bool:
    place = bisect_left(keys, key)
    return place < len(keys) and keys[place] == key
