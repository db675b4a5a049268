"""Sample the next token of each answer of a batch.

Each answer has its own random number generator, so the batch does not affect its samples.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import torch
from attrs import frozen
from transformers import RepetitionPenaltyLogitsProcessor

#: Lower temperatures are greedy; dividing by them would overflow.
MIN_TEMPERATURE = 1e-4

#: The log-probability of tokens that are practically impossible, as in OpenAI's API; JSON has no
#: infinity.
MIN_LOGPROB = -9999.0

#: Top-p first looks at this many tokens, which nearly always suffice: sorting the vocabulary is
#: slow.
TOP_P_PREFILTER = 1024


@frozen
class SamplingParams:
    """The parameters of one answer. `rng` draws one number per token, none if greedy."""

    temperature: float
    top_p: float
    rng: random.Random
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is chosen."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def adjusts(self) -> bool:
        """Whether penalties or biases change the logits."""
        return bool(self.presence_penalty or self.frequency_penalty or self.logit_bias)


def sample(logits: torch.Tensor, params: Sequence[SamplingParams]) -> list[int]:
    """Return the next token of each answer. `logits`: (answers, vocabulary)."""
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for sampler, rows in ((_inverse_cdf, _rows(params, of_all=True)), (_sample_top_p, _rows(params, of_all=False))):
        if rows:
            selected = [params[row] for row in rows]
            for row, token in zip(rows, sampler(_probabilities(logits[rows].float(), selected), selected), strict=True):
                tokens[row] = token
    return tokens


def apply_repetition_penalty(logits: torch.Tensor, penalty: float, seen: Sequence[Sequence[int]]) -> torch.Tensor:
    """Make tokens in `seen`, by answer, less likely; return fp32, (answers, vocabulary)."""
    scores = logits.float()
    rows = [
        RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens], device=scores.device), row[None])
        for tokens, row in zip(seen, scores, strict=True)
    ]
    return torch.cat(rows)


def apply_penalties(
    logits: torch.Tensor, params: Sequence[SamplingParams], generated: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Subtract the penalties for tokens in `generated`, by answer, and add the biases, as OpenAI
    does.
    """
    if not any(param.adjusts for param in params):
        return logits
    scores = logits.float().clone()
    for row, param, tokens in zip(scores, params, generated, strict=True):
        counts = Counter(tokens)
        changes = {token: -param.presence_penalty - param.frequency_penalty * count for token, count in counts.items()}
        for token, bias in param.logit_bias:
            changes[token] = changes.get(token, 0.0) + bias
        if changes and param.adjusts:
            row[list(changes)] += torch.tensor(list(changes.values()), device=row.device)
    return scores


def log_probabilities(
    logits: torch.Tensor, tokens: Sequence[int], count: int
) -> list[tuple[float, list[tuple[int, float]]]]:
    """Return the log-probability of each token, and those of the `count` most likely tokens.

    `logits` are (tokens, vocabulary). Equal numbers stay equal: the likeliest token has the same
    one in both.
    """
    scores = torch.log_softmax(logits.float(), dim=-1).clamp(min=MIN_LOGPROB)
    chosen = scores.gather(-1, torch.tensor(list(tokens), device=scores.device)[:, None])[:, 0].tolist()
    best, token_ids = scores.topk(min(count, scores.shape[-1]))
    return [
        (logprob, list(zip(ids, values, strict=True)))
        for logprob, ids, values in zip(chosen, token_ids.tolist(), best.tolist(), strict=True)
    ]


def _rows(params: Sequence[SamplingParams], *, of_all: bool) -> list[int]:
    return [row for row, param in enumerate(params) if not param.greedy and (param.top_p >= 1) == of_all]


def _probabilities(scores: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Return the probabilities of scores, both fp32 (answers, vocabulary)."""
    temperatures = torch.tensor([param.temperature for param in params], device=scores.device)
    highest = scores.max(dim=-1, keepdim=True).values  # a temperature near 0 would overflow
    return torch.softmax((scores - highest) / temperatures[:, None], dim=-1)


def _sample_top_p(probabilities: torch.Tensor, params: Sequence[SamplingParams]) -> list[int]:
    """Sample from the most likely tokens whose probabilities add up to `top_p`."""
    top_p = torch.tensor([param.top_p for param in params], device=probabilities.device)
    best, token_ids = probabilities.topk(min(TOP_P_PREFILTER, probabilities.shape[-1]))
    if not bool((best.sum(-1) >= top_p).all()):
        best, token_ids = probabilities.sort(descending=True)
    before = best.cumsum(-1) - best
    indices = _inverse_cdf(best.masked_fill(before >= top_p[:, None], 0), params)
    return [int(token_ids[row, index]) for row, index in enumerate(indices)]


def _inverse_cdf(probabilities: torch.Tensor, params: Sequence[SamplingParams]) -> list[int]:
    """Draw an index with probability > 0 for each row of `probabilities`, (answers, n)."""
    sums = probabilities.cpu().double().cumsum(-1)
    total = sums[:, -1].tolist()
    points = [[min(param.rng.random(), 1 - 1e-12) * mass] for param, mass in zip(params, total, strict=True)]
    found = torch.searchsorted(sums, torch.tensor(points, dtype=sums.dtype), right=True)
    indices: list[int] = found[:, 0].tolist()
    return indices
