"""A backend that the tests of one file share, where each brings jobs or identities of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.backend.caller import Caller, owner
from tests.conftest import Backend, start_backend, stop_backend


@pytest.fixture(scope="module")
def shared_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A real backend process whose runs are played by the scripted engine, for a whole file of tests."""
    started = start_backend(tmp_path_factory.mktemp("shared") / "home", "--engine", "scripted")
    yield started
    stop_backend(started.home)
    started.process.wait()


@pytest.fixture
def caller(shared_backend: Backend) -> Caller:
    """The owner of the shared backend's home."""
    return owner(shared_backend)
