"""What tests share that takes long to start: a backend, where each brings jobs of its own, and a nursery of workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.backend.caller import Caller, owner
from tests.conftest import Backend
from tests.fakes.process_tree import ProcessTree


@pytest.fixture(scope="module")
def backend_env(module_backend: Backend) -> Backend:
    """The one of a whole file of tests; `ARKOR_HOME` is another's, for these tests ask it by its address."""
    return module_backend


@pytest.fixture
def caller(backend_env: Backend) -> Caller:
    """The owner of the shared backend's home."""
    return owner(backend_env)


@pytest.fixture(scope="session")
def trainers() -> Iterator[ProcessTree]:
    """Workers that train, without the seconds that each takes to import what it needs."""
    with ProcessTree("trl") as process_tree:
        yield process_tree
