"""The items of recent responses, in memory, for clients that refer to them by id.

Clients of OpenAI's Responses API expect responses to be stored, and replace the items of earlier
turns by references (`item_reference`), for example the Vercel AI SDK between a tool call and its
result.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from arkor.protocol.codec import dumps

#: The characters of JSON that are kept; the least recently used items are dropped.
MAX_CHARACTERS = 32 * 1024 * 1024


class RecentItems:
    """Items by deployment and id. Thread-safe."""

    def __init__(self, max_characters: int = MAX_CHARACTERS) -> None:
        self._items: OrderedDict[tuple[str, str], tuple[Mapping[str, Any], int]] = OrderedDict()
        self._max_characters = max_characters
        self._characters = 0
        self._lock = threading.Lock()

    def add(self, deployment_id: str, items: Sequence[Mapping[str, Any]]) -> None:
        """Keep items of a response."""
        with self._lock:
            for item in items:
                size = len(dumps(item))
                self._items[deployment_id, item["id"]] = (item, size)
                self._characters += size
            while self._characters > self._max_characters:
                _, (_, size) = self._items.popitem(last=False)
                self._characters -= size

    def find(self, deployment_id: str, item_id: str) -> Mapping[str, Any] | None:
        """Return an item of that deployment, None if it is not kept."""
        with self._lock:
            found = self._items.get((deployment_id, item_id))
            if found is None:
                return None
            self._items.move_to_end((deployment_id, item_id))
            return found[0]
