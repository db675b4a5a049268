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
MIN_TEMPERATURE = 1e-4

#: Nearly always as many tokens as reach `top_p`; sorting the whole vocabulary is slow.
TOP_P_PREFILTER = 1024


@frozen
class SamplingParams:
    """How one answer chooses: `rng` gives a number in [0, 1) per token, and none is taken when it is greedy."""

    temperature: float
    top_p: float
    rng: random.Random

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < MIN_TEMPERATURE


def sample(logits: torch.Tensor, params: Sequence[SamplingParams]) -> list[int]:
    """The next token of every answer. `logits`: (answers, vocabulary), -inf where a token is not allowed."""
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for sampler, rows in ((_sample_all, _rows(params, of_all=True)), (_sample_top_p, _rows(params, of_all=False))):
        if rows:
            selected = [params[row] for row in rows]
            for row, token in zip(rows, sampler(_probabilities(logits[rows].float(), selected), selected), strict=True):
                tokens[row] = token
    return tokens


def apply_repetition_penalty(logits: torch.Tensor, penalty: float, seen: Sequence[Sequence[int]]) -> torch.Tensor:
    """The logits with what was seen already made less likely, as transformers does it. (answers, vocabulary)."""
    scores = logits.float()
    rows = [
        RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens], device=scores.device), row[None])
        for tokens, row in zip(seen, scores, strict=True)
    ]
    return torch.cat(rows)


def _rows(params: Sequence[SamplingParams], *, of_all: bool) -> list[int]:
    return [row for row, param in enumerate(params) if not param.greedy and (param.top_p >= 1) == of_all]


def _probabilities(scores: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Scores → probabilities, (answers, vocabulary)."""
    temperatures = torch.tensor([param.temperature for param in params], device=scores.device)
    highest = scores.max(dim=-1, keepdim=True).values  # else a temperature near 0 overflows
    return torch.softmax((scores - highest) / temperatures[:, None], dim=-1)


def _sample_all(probabilities: torch.Tensor, params: Sequence[SamplingParams]) -> list[int]:
    return _inverse_cdf(probabilities, params)


def _sample_top_p(probabilities: torch.Tensor, params: Sequence[SamplingParams]) -> list[int]:
    """From the likeliest tokens that together reach `top_p`."""
    top_p = torch.tensor([param.top_p for param in params], device=probabilities.device)
    best, token_ids = probabilities.topk(min(TOP_P_PREFILTER, probabilities.shape[-1]))
    if not bool((best.sum(-1) >= top_p).all()):
        best, token_ids = probabilities.sort(descending=True)
    before = best.cumsum(-1) - best
    indices = _inverse_cdf(best.masked_fill(before >= top_p[:, None], 0), params)
    return [int(token_ids[row, index]) for row, index in enumerate(indices)]


def _inverse_cdf(probabilities: torch.Tensor, params: Sequence[SamplingParams]) -> list[int]:
    """Where each answer's dice point to, along its probabilities; never at one that is 0."""
    sums = probabilities.cpu().double().cumsum(-1)
    total = sums[:, -1].tolist()
    points = [
        [min(param.rng.random(), 1 - 1e-12) * weight_sum] for param, weight_sum in zip(params, total, strict=True)
    ]
    found = torch.searchsorted(sums, torch.tensor(points, dtype=sums.dtype), right=True)
    indices: list[int] = found[:, 0].tolist()
    return indices
