"""Logits → the next token of each answer: greedy or by chance, among the tokens that a constraint allows.

All answers of a batch are looked at together; the dice are each answer's own, so that company changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from attrs import frozen
from transformers import RepetitionPenaltyLogitsProcessor

#: Below this a temperature would overflow; it is as good as greedy.
COLDEST = 1e-4

#: Nearly always as many tokens as reach `top_p`; sorting the whole vocabulary is slow.
LIKELY = 1024


@frozen
class Taste:
    """How one answer chooses: `dice` gives a number in [0, 1) per token, and none is taken when it is greedy."""

    temperature: float
    top_p: float
    dice: random.Random

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < COLDEST


def choose(logits: torch.Tensor, tastes: Sequence[Taste]) -> list[int]:
    """The next token of every answer. `logits`: (answers, vocabulary), -inf where a token is not allowed."""
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for draw, rows in ((_draw_from_all, _rows(tastes, of_all=True)), (_draw_from_top, _rows(tastes, of_all=False))):
        if rows:
            chosen = [tastes[row] for row in rows]
            for row, token in zip(rows, draw(_likely(logits[rows].float(), chosen), chosen), strict=True):
                tokens[row] = token
    return tokens


def penalised(logits: torch.Tensor, penalty: float, seen: Sequence[Sequence[int]]) -> torch.Tensor:
    """The logits with what was seen already made less likely, as transformers does it. (answers, vocabulary)."""
    scores = logits.float()
    rows = [
        RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens], device=scores.device), row[None])
        for tokens, row in zip(seen, scores, strict=True)
    ]
    return torch.cat(rows)


def _rows(tastes: Sequence[Taste], *, of_all: bool) -> list[int]:
    return [row for row, taste in enumerate(tastes) if not taste.greedy and (taste.top_p >= 1) == of_all]


def _likely(scores: torch.Tensor, tastes: Sequence[Taste]) -> torch.Tensor:
    """Scores → probabilities, (answers, vocabulary)."""
    temperatures = torch.tensor([taste.temperature for taste in tastes], device=scores.device)
    highest = scores.max(dim=-1, keepdim=True).values  # else a temperature near 0 overflows
    return torch.softmax((scores - highest) / temperatures[:, None], dim=-1)


def _draw_from_all(likely: torch.Tensor, tastes: Sequence[Taste]) -> list[int]:
    return _places(likely, tastes)


def _draw_from_top(likely: torch.Tensor, tastes: Sequence[Taste]) -> list[int]:
    """From the likeliest tokens that together reach `top_p`."""
    top_p = torch.tensor([taste.top_p for taste in tastes], device=likely.device)
    best, names = likely.topk(min(LIKELY, likely.shape[-1]))
    if not bool((best.sum(-1) >= top_p).all()):
        best, names = likely.sort(descending=True)
    before = best.cumsum(-1) - best
    places = _places(best.masked_fill(before >= top_p[:, None], 0), tastes)
    return [int(names[row, place]) for row, place in enumerate(places)]


def _places(likely: torch.Tensor, tastes: Sequence[Taste]) -> list[int]:
    """Where each answer's dice point to, along its probabilities; never at one that is 0."""
    sums = likely.cpu().double().cumsum(-1)
    total = sums[:, -1].tolist()
    points = [[min(taste.dice.random(), 1 - 1e-12) * whole] for taste, whole in zip(tastes, total, strict=True)]
    found = torch.searchsorted(sums, torch.tensor(points, dtype=sums.dtype), right=True)
    places: list[int] = found[:, 0].tolist()
    return places
