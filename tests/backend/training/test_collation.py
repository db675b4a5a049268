"""The layout of micro-batches."""

from __future__ import annotations

from typing import Any

import pytest

from arkor.backend.training.tokenization import IGNORE_INDEX

pytestmark = pytest.mark.slow  # imports torch


def example(length: int) -> dict[str, Any]:
    ids = list(range(length))
    return {"input_ids": ids, "labels": [IGNORE_INDEX, *ids[1:]]}


def shapes(choice: Any, lengths: list[int]) -> list[tuple[int, ...]]:
    import torch  # noqa: PLC0415 - collecting tests loads no torch

    from arkor.backend.training.collation import split_batch  # noqa: PLC0415 - as above

    batches = split_batch([example(length) for length in lengths], choice, dtype=torch.float32, pad=0)
    return [tuple(batch.model_inputs["input_ids"].shape) for batch in batches]


def test_rows_that_are_longer_than_the_window_are_padded() -> None:
    from arkor.backend.training.collation import Layout, LayoutChoice  # noqa: PLC0415 - as above

    choice = LayoutChoice(Layout.FLAT, "", max_flat_row=16)
    assert shapes(choice, [10, 12]) == [(1, 13)]  # with a common prefix of nine tokens
    assert shapes(choice, [10, 17]) == [(2, 17)]


def test_rows_whose_length_changes_the_positions_are_alone() -> None:
    from arkor.backend.training.collation import Layout, LayoutChoice  # noqa: PLC0415 - as above

    choice = LayoutChoice(Layout.PADDED, "", max_shared_row=16)
    assert shapes(choice, [10, 17, 12]) == [(1, 17), (2, 12)]


def test_rows_are_computed_one_by_one() -> None:
    from arkor.backend.training.collation import Layout, LayoutChoice  # noqa: PLC0415 - as above

    assert shapes(LayoutChoice(Layout.SINGLE, ""), [10, 17]) == [(1, 10), (1, 17)]
