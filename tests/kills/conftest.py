"""As many seeds as `--schedules` asks for."""

from __future__ import annotations

import pytest

#: So many where nobody asks; a module may have a number of its own.
FEW = 2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that wants a `seed` is run with each."""
    few = getattr(metafunc.module, "FEW", FEW)
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--schedules") or few))
