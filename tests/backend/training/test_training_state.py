"""Training states survive a round trip through files without code, bit for bit."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"]))
keys = st.integers() | st.text("abc")
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=20,
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tree=trees)
def test_round_trip(tmp_path: Path, tree: Any) -> None:
    from arkor.backend.training.training_state import read_tree, write_tree  # noqa: PLC0415 - collecting tests loads no torch

    write_tree(tmp_path, "tree", tree)
    assert repr(read_tree(tmp_path, "tree")) == repr(tree)


def test_tensor_round_trip(tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 - as above

    from arkor.backend.training.training_state import read_tree, write_tree  # noqa: PLC0415 - as above

    table = torch.arange(256, dtype=torch.uint8)
    tree = {
        0: {"step": torch.tensor(3.0), "table": table, "mean": torch.randn(3, 4)},
        1: {"step": torch.tensor(3.0), "table": table, "mean": torch.randn(8, 4, dtype=torch.bfloat16)[::2]},
        "odd": [torch.empty(0), torch.tensor([math.nan, -0.0, math.inf])],
    }
    write_tree(tmp_path, "tree", tree)
    found = read_tree(tmp_path, "tree")
    for part in (0, 1):
        for name, tensor in tree[part].items():
            assert found[part][name].dtype == tensor.dtype
            assert torch.equal(found[part][name], tensor)
    assert found[0]["table"] is found[1]["table"]
    assert found["odd"][0].shape == (0,)
    assert found["odd"][1].view(torch.int32).tolist() == tree["odd"][1].view(torch.int32).tolist()


@pytest.mark.parametrize("what", [object(), b"bytes", {1, 2}])
def test_values_that_require_pickle_are_rejected(tmp_path: Path, what: Any) -> None:
    from arkor.backend.training.training_state import NotSerializable, write_tree  # noqa: PLC0415 - as above

    with pytest.raises(NotSerializable):
        write_tree(tmp_path, "tree", {"deep": [what]})
    assert not list(tmp_path.iterdir())


def test_random_states_are_restored(tmp_path: Path) -> None:
    import numpy  # noqa: PLC0415 - as above
    import torch  # noqa: PLC0415 - as above

    from arkor.backend.training.training_state import random_states, read_tree, restore_random, write_tree  # noqa: PLC0415 - as above

    def drawn() -> list[Any]:
        return [random.random(), random.gauss(0, 1), float(numpy.random.normal()), torch.randn(5).tolist()]

    drawn()
    write_tree(tmp_path, "random", random_states())
    expected = [drawn(), drawn()]
    restore_random(read_tree(tmp_path, "random"))
    assert [drawn(), drawn()] == expected
