from __future__ import annotations

from collections.abc import Iterator

import pytest

from arkor.backend.inference.llama_cpp.library import installed_version

#: The engines that are installed.
ENGINES = ["transformers", *(["llama.cpp"] if installed_version() else [])]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """The engine that answers; every test is the same for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARKOR_SERVING_ENGINE", request.param)
        yield str(request.param)


@pytest.fixture(autouse=True)
def engine_of_the_test(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set it again: the environment of each test is a clean one."""
    if "engine" in request.fixturenames:
        monkeypatch.setenv("ARKOR_SERVING_ENGINE", request.getfixturevalue("engine"))
