"""Examples → what the model is given at once, without padding and without computing anything twice.

The examples of a batch are laid end to end in one sequence, each seeing itself alone, and the tokens that all of them
begin with (a system prompt) stand there once for all. Where a model cannot be given that, they are padded instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import define
from torch import Tensor

from arkor.backend.training.tokenization import IGNORE_INDEX

#: A sequence of examples laid end to end has at most so many tokens: its attention grows with their square.
MAX_FLAT_TOKENS = 2048

#: A beginning that is shared by fewer tokens is not worth it.
MIN_PREFIX_TOKENS = 4

Pair = tuple[Sequence[int], Sequence[int]]


@define
class MicroBatch:
    """A part of a batch that goes through the model at once.

    `model_inputs` are the model's; the output at `rows[i], columns[i]` is to predict the token `targets[i]`.
    """

    model_inputs: dict[str, Any]
    rows: Tensor
    columns: Tensor
    targets: Tensor

    def to(self, device: Any) -> MicroBatch:
        """A copy on `device`."""
        inputs = {name: value.to(device) for name, value in self.model_inputs.items()}
        return MicroBatch(inputs, self.rows.to(device), self.columns.to(device), self.targets.to(device))


def split_batch(examples: Sequence[dict[str, Any]], *, flat: bool, dtype: torch.dtype, pad: int) -> list[MicroBatch]:
    """A batch of `{"input_ids", "labels"}` as pieces of at most `MAX_FLAT_TOKENS` tokens, unless one row has more."""
    pairs: list[Pair] = [(example["input_ids"], example["labels"]) for example in examples]
    build = _flat if flat else _padded
    return [build(group, dtype, pad) if len(group) > 1 else _padded(group, dtype, pad) for group in _groups(pairs)]


def _groups(pairs: list[Pair]) -> Iterator[list[Pair]]:
    group: list[Pair] = []
    tokens = 0
    for pair in pairs:
        if group and tokens + len(pair[0]) > MAX_FLAT_TOKENS:
            yield group
            group, tokens = [], 0
        group.append(pair)
        tokens += len(pair[0])
    yield group


def _padded(group: list[Pair], _dtype: torch.dtype, pad: int) -> MicroBatch:
    longest = max(len(ids) for ids, _ in group)
    input_ids = torch.full((len(group), longest), pad)
    mask = torch.zeros((len(group), longest), dtype=torch.long)
    rows, columns, targets = [], [], []
    for row, (ids, labels) in enumerate(group):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        for position in _target_positions(labels):
            rows.append(row)
            columns.append(position - 1)
            targets.append(labels[position])
    return MicroBatch({"input_ids": input_ids, "attention_mask": mask}, *map(torch.tensor, (rows, columns, targets)))


def _target_positions(labels: Sequence[int]) -> Iterator[int]:
    """Positions of the tokens to predict; the first one of a row has nothing to be predicted from."""
    return (position for position in range(1, len(labels)) if labels[position] != IGNORE_INDEX)


def _flat(group: list[Pair], dtype: torch.dtype, _pad: int) -> MicroBatch:
    prefix = _common_prefix_length([ids for ids, _ in group])
    tokens, positions, owners = list(group[0][0][:prefix]), list(range(prefix)), [0] * prefix
    columns, targets = [], []
    for owner, (ids, labels) in enumerate(group, 1):
        shift = len(tokens) - prefix
        for position in _target_positions(labels):
            columns.append(position - 1 + (shift if position > prefix else 0))
            targets.append(labels[position])
        tokens += ids[prefix:]
        positions += range(prefix, len(ids))
        owners += [owner] * (len(ids) - prefix)
    position_ids = torch.tensor(positions)
    inputs = {
        "input_ids": torch.tensor([tokens]),
        "position_ids": position_ids[None],
        "attention_mask": _attention_mask(position_ids, torch.tensor(owners), dtype),
    }
    return MicroBatch(inputs, torch.zeros(len(columns), dtype=torch.long), torch.tensor(columns), torch.tensor(targets))


def _common_prefix_length(sequences: list[Sequence[int]]) -> int:
    """How many tokens all sequences begin with, as long as each has more; 0 if it is not worth it."""
    length = 0
    limit = min(len(ids) for ids in sequences) - 1
    while length < limit and all(ids[length] == sequences[0][length] for ids in sequences):
        length += 1
    return length if length >= MIN_PREFIX_TOKENS else 0


def _attention_mask(positions: Tensor, owners: Tensor, dtype: torch.dtype) -> Tensor:
    """Which token attends to which: to what all share and to its own row, and there to nothing that comes later."""
    visible = (owners[None, :] == 0) | (owners[None, :] == owners[:, None])
    allowed = visible & (positions[None, :] <= positions[:, None])
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask[None, None]
