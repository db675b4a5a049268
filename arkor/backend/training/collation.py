"""Collate examples to micro-batches without padding and without computing shared prefixes twice.

The examples of a flat micro-batch are concatenated to one sequence, with a mask that separates
them. Tokens with which all of them begin (a system prompt) occur once. For models that do not
support this (`layout.py` tests it), examples are padded, or computed one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

import torch
from attrs import define, frozen
from torch import Tensor

from arkor.backend.training.tokenization import IGNORE_INDEX

#: The maximum length of a concatenated sequence in tokens; attention is quadratic in it.
MAX_FLAT_TOKENS = 2048

#: Shorter common prefixes are not shared.
MIN_PREFIX_TOKENS = 4

Pair = tuple[Sequence[int], Sequence[int]]


class Layout(str, Enum):
    """How the rows of a micro-batch are laid out."""

    FLAT = "flat"
    PADDED = "padded"
    SINGLE = "row by row"


@frozen
class LayoutChoice:
    """The layout of a run's batches, and the reason for it.

    Rows of more than `max_flat_row` tokens are padded instead of flat; rows of more than
    `max_shared_row` are computed alone.
    """

    layout: Layout
    reason: str
    max_flat_row: int | None = None
    max_shared_row: int | None = None

    def __str__(self) -> str:
        forms = {
            Layout.FLAT: "joined to one sequence without padding",
            Layout.PADDED: "padded to the same length",
            Layout.SINGLE: "computed one by one",
        }
        long = f"; rows of more than {self.max_flat_row} tokens are padded" if self.max_flat_row else ""
        return f"The rows of a batch are {forms[self.layout]}: {self.reason}{long}"

    def of(self, group: Sequence[Pair]) -> Layout:
        """Return the layout of one micro-batch."""
        fits = self.max_flat_row is None or max(len(ids) for ids, _ in group) <= self.max_flat_row
        return Layout.PADDED if self.layout is Layout.FLAT and not fits else self.layout

    def is_alone(self, pair: Pair) -> bool:
        """Whether a row is a micro-batch of its own, whatever the others are."""
        too_long = self.max_shared_row is not None and len(pair[0]) > self.max_shared_row
        return too_long or self.layout is Layout.SINGLE


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


def split_batch(
    examples: Sequence[dict[str, Any]], layout: LayoutChoice, *, dtype: torch.dtype, pad: int
) -> list[MicroBatch]:
    """Split examples into micro-batches of at most `MAX_FLAT_TOKENS` tokens.

    A longer example is a micro-batch of its own. `dtype` is the format of the model's attention
    mask.
    """
    pairs: list[Pair] = [(example["input_ids"], example["labels"]) for example in examples]
    return [build_micro_batch(group, layout.of(group), dtype, pad) for group in _groups(pairs, layout)]


def build_micro_batch(group: list[Pair], layout: Layout, dtype: torch.dtype, pad: int) -> MicroBatch:
    """Lay out (tokens, labels) as one micro-batch."""
    return _flat(group, dtype) if layout is Layout.FLAT and len(group) > 1 else _padded(group, pad)


def _groups(pairs: list[Pair], layout: LayoutChoice) -> Iterator[list[Pair]]:
    group: list[Pair] = []
    tokens = 0
    for pair in pairs:
        if layout.is_alone(pair):
            yield [pair]
            continue
        if group and tokens + len(pair[0]) > MAX_FLAT_TOKENS:
            yield group
            group, tokens = [], 0
        group.append(pair)
        tokens += len(pair[0])
    if group:
        yield group


def _padded(group: list[Pair], pad: int) -> MicroBatch:
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


def _flat(group: list[Pair], dtype: torch.dtype) -> MicroBatch:
    """Concatenate: the common prefix (owner 0), then the rest of each example (owners 1, 2, …).

    `input_ids` and `position_ids` are int64, (1, tokens); `attention_mask` is `dtype`, (1, 1,
    tokens, tokens).
    """
    prefix = common_prefix_length([ids for ids, _ in group])
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


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
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
