"""Collate examples to micro-batches without padding and without computing shared prefixes twice.

The examples of a micro-batch are concatenated to one sequence, with a mask that separates them.
Tokens with which all of them begin (a system prompt) occur once. For models that do not support
this, examples are padded instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import define
from torch import Tensor

from arkor.backend.training.tokenization import IGNORE_INDEX

#: The maximum length of a concatenated sequence in tokens; attention is quadratic in it.
MAX_FLAT_TOKENS = 2048

#: Shorter common prefixes are not shared.
MIN_PREFIX_TOKENS = 4

Pair = tuple[Sequence[int], Sequence[int]]


@define
class MicroBatch:
    """The part of a batch that is computed at once.

    `model_inputs` are the model's arguments: `input_ids` is int64, (rows, tokens); a padded
    micro-batch has one row per example, a flat one a single row. `rows`, `columns` and `targets`
    are int64, (targets,): the logits at `[rows[i], columns[i]]` predict the token `targets[i]`.
    """

    model_inputs: dict[str, Any]
    rows: Tensor
    columns: Tensor
    targets: Tensor

    def to(self, device: Any) -> MicroBatch:
        """Return a copy on `device`."""
        inputs = {name: value.to(device) for name, value in self.model_inputs.items()}
        return MicroBatch(inputs, self.rows.to(device), self.columns.to(device), self.targets.to(device))


def split_batch(examples: Sequence[dict[str, Any]], *, flat: bool, dtype: torch.dtype, pad: int) -> list[MicroBatch]:
    """Split examples into micro-batches of at most `MAX_FLAT_TOKENS` tokens.

    A longer example is a micro-batch of its own. `dtype` is the format of the model's attention
    mask.
    """
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
    """Pad on the right: `input_ids` and `attention_mask` are int64, (examples, longest)."""
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
    """Return the positions of the labelled tokens, except position 0, which nothing predicts."""
    return (position for position in range(1, len(labels)) if labels[position] != IGNORE_INDEX)


def _flat(group: list[Pair], dtype: torch.dtype, _pad: int) -> MicroBatch:
    """Concatenate: the common prefix (owner 0), then the rest of each example (owners 1, 2, …).

    `input_ids` and `position_ids` are int64, (1, tokens); `attention_mask` is `dtype`, (1, 1,
    tokens, tokens).
    """
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
    """Return the length of the common prefix, shorter than every sequence; 0 if too short."""
    length = 0
    limit = min(len(ids) for ids in sequences) - 1
    while length < limit and all(ids[length] == sequences[0][length] for ids in sequences):
        length += 1
    return length if length >= MIN_PREFIX_TOKENS else 0


def _attention_mask(positions: Tensor, owners: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive causal mask, (1, 1, tokens, tokens), of prefix and own example.

    `positions` and `owners` are int64, (tokens,).
    """
    visible = (owners[None, :] == 0) | (owners[None, :] == owners[:, None])
    allowed = visible & (positions[None, :] <= positions[:, None])
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask[None, None]
