"""An empty store with an owner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arkor.backend.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "arkor.db")
    store.ensure_owner("the owner's token")
    yield store
    store.close()
