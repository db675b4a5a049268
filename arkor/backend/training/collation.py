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

from arkor.backend.training.tokenization import IGNORED

#: A sequence of examples laid end to end has at most so many tokens: its attention grows with their square.
LONGEST_FLAT = 2048

#: A beginning that is shared by fewer tokens is not worth it.
SHORTEST_PREFIX = 4

Pair = tuple[Sequence[int], Sequence[int]]


@define
class Piece:
    """A part of a batch that goes through the model at once.

    `model_inputs` are the model's; the output at `rows[i], columns[i]` is to predict the token `targets[i]`.
    """

    model_inputs: dict[str, Any]
    rows: Tensor
    columns: Tensor
    targets: Tensor

    def to(self, device: Any) -> Piece:
        """A copy on `device`."""
        inputs = {name: value.to(device) for name, value in self.model_inputs.items()}
        return Piece(inputs, self.rows.to(device), self.columns.to(device), self.targets.to(device))


def pieces(examples: Sequence[dict[str, Any]], *, flat: bool, dtype: torch.dtype, pad: int) -> list[Piece]:
    """A batch of `{"input_ids", "labels"}` as pieces of at most `LONGEST_FLAT` tokens, unless one row has more."""
    pairs: list[Pair] = [(example["input_ids"], example["labels"]) for example in examples]
    lay = _flat if flat else _padded
    return [lay(group, dtype, pad) if len(group) > 1 else _padded(group, dtype, pad) for group in _groups(pairs)]


def _groups(pairs: list[Pair]) -> Iterator[list[Pair]]:
    group: list[Pair] = []
    tokens = 0
    for pair in pairs:
        if group and tokens + len(pair[0]) > LONGEST_FLAT:
            yield group
            group, tokens = [], 0
        group.append(pair)
        tokens += len(pair[0])
    yield group


def _padded(group: list[Pair], _dtype: torch.dtype, pad: int) -> Piece:
    longest = max(len(ids) for ids, _ in group)
    input_ids = torch.full((len(group), longest), pad)
    mask = torch.zeros((len(group), longest), dtype=torch.long)
    rows, columns, targets = [], [], []
    for row, (ids, labels) in enumerate(group):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        for position in _learnt(labels):
            rows.append(row)
            columns.append(position - 1)
            targets.append(labels[position])
    return Piece({"input_ids": input_ids, "attention_mask": mask}, *map(torch.tensor, (rows, columns, targets)))


def _learnt(labels: Sequence[int]) -> Iterator[int]:
    """Positions of the tokens to predict; the first one of a row has nothing to be predicted from."""
    return (position for position in range(1, len(labels)) if labels[position] != IGNORED)


def _flat(group: list[Pair], dtype: torch.dtype, _pad: int) -> Piece:
    prefix = _shared([ids for ids, _ in group])
    tokens, places, owners = list(group[0][0][:prefix]), list(range(prefix)), [0] * prefix
    columns, targets = [], []
    for owner, (ids, labels) in enumerate(group, 1):
        shift = len(tokens) - prefix
        for position in _learnt(labels):
            columns.append(position - 1 + (shift if position > prefix else 0))
            targets.append(labels[position])
        tokens += ids[prefix:]
        places += range(prefix, len(ids))
        owners += [owner] * (len(ids) - prefix)
    position_ids = torch.tensor(places)
    inputs = {
        "input_ids": torch.tensor([tokens]),
        "position_ids": position_ids[None],
        "attention_mask": _sees(position_ids, torch.tensor(owners), dtype),
    }
    return Piece(inputs, torch.zeros(len(columns), dtype=torch.long), torch.tensor(columns), torch.tensor(targets))


def _shared(sequences: list[Sequence[int]]) -> int:
    """How many tokens all sequences begin with, as long as each has more; 0 if it is not worth it."""
    length = 0
    most = min(len(ids) for ids in sequences) - 1
    while length < most and all(ids[length] == sequences[0][length] for ids in sequences):
        length += 1
    return length if length >= SHORTEST_PREFIX else 0


def _sees(places: Tensor, owners: Tensor, dtype: torch.dtype) -> Tensor:
    """Which token attends to which: to what all share and to its own row, and there to nothing that comes later."""
    own = (owners[None, :] == 0) | (owners[None, :] == owners[:, None])
    allowed = own & (places[None, :] <= places[:, None])
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask[None, None]
