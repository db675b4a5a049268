"""What tests share that takes long to start: a backend, where each brings jobs of its own, and a nursery of workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.backend.caller import Caller, owner
from tests.conftest import Backend
from tests.fakes.nursery import Nursery


@pytest.fixture(scope="module")
def shared_backend(lasting_backend: Backend) -> Backend:
    """The one of a whole file of tests; `ARKOR_HOME` is another's, for these tests ask it by its address."""
    return lasting_backend


@pytest.fixture
def caller(shared_backend: Backend) -> Caller:
    """The owner of the shared backend's home."""
    return owner(shared_backend)


@pytest.fixture(scope="session")
def trainers() -> Iterator[Nursery]:
    """Workers that train, without the seconds that each takes to import what it needs."""
    with Nursery("trl") as nursery:
        yield nursery
