from __future__ import annotations

import random

import pytest
import torch

from arkor.backend.inference.sampling import SamplingParams, apply_penalties, log_probabilities, sample

pytestmark = pytest.mark.slow  # torch alone takes seconds to import


def tastes(count: int, temperature: float, top_p: float, seed: int = 0) -> list[SamplingParams]:
    return [SamplingParams(temperature, top_p, random.Random(seed + number)) for number in range(count)]


def test_sampling_follows_temperature_and_top_p() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(4000, 4)

    def seen(temperature: float, top_p: float) -> list[float]:
        tokens = sample(logits, tastes(4000, temperature, top_p))
        return [tokens.count(token) / 4000 for token in range(4)]

    assert seen(1.0, 1.0) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert seen(0.5, 1.0) == pytest.approx([0.685, 0.247, 0.062, 0.007], abs=0.03)
    assert seen(1.0, 0.7) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert seen(1.0, 0.01) == [1, 0, 0, 0]
    assert seen(0, 1.0) == seen(1e-9, 0.5) == [1, 0, 0, 0]
    assert seen(1e-3, 1.0) == [1, 0, 0, 0]


def test_top_p_beyond_the_prefilter() -> None:
    assert max(sample(torch.zeros(200, 5000), tastes(200, 1.0, 0.9))) > 1100


def test_forbidden_tokens_are_never_sampled() -> None:
    logits = torch.full((2000, 50), -torch.inf)
    logits[:, 7] = 0.0
    logits[:, 49] = -3.0
    for temperature, top_p in ((2.0, 1.0), (100.0, 1.0), (100.0, 0.99), (0.0, 1.0)):
        assert set(sample(logits, tastes(2000, temperature, top_p))) <= {7, 49}


def test_other_parameters_in_the_batch_do_not_change_samples() -> None:
    logits = torch.randn(3, 3000, generator=torch.Generator().manual_seed(5))
    mixed = [
        SamplingParams(1.5, 1.0, random.Random(1)),
        SamplingParams(0.0, 1.0, random.Random(2)),
        SamplingParams(1.5, 0.8, random.Random(3)),
    ]
    together = sample(logits, mixed)
    alone = [
        sample(logits[row : row + 1], [SamplingParams(taste.temperature, taste.top_p, random.Random(row + 1))])[0]
        for row, taste in enumerate(mixed)
    ]
    assert together == alone


def test_penalties_and_biases_are_openais() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3)
    params = [
        SamplingParams(0.0, 1.0, random.Random(0)),
        SamplingParams(0.0, 1.0, random.Random(0), presence_penalty=0.5, frequency_penalty=0.25),
        SamplingParams(0.0, 1.0, random.Random(0), frequency_penalty=-1.0, logit_bias=((0, 100.0), (3, -2.0))),
    ]
    adjusted = apply_penalties(logits, params, [[1, 1], [1, 1, 3], [3, 3]])
    assert adjusted.tolist() == [[1, 2, 3, 4], [1, 1, 3, 3.25], [101, 2, 3, 4]]
    assert logits.tolist() == [[1, 2, 3, 4]] * 3


def test_logprobs_are_finite_and_the_likeliest_is_equal_in_both() -> None:
    logits = torch.tensor([[0.1, 0.3, 0.2, -torch.inf]], dtype=torch.bfloat16)
    [(logprob, top)] = log_probabilities(logits, [3], 4)
    assert logprob == -9999.0
    assert [token for token, _ in top] == [1, 2, 0, 3]
    [(likeliest, top)] = log_probabilities(logits, [1], 9)
    assert likeliest == top[0][1]
    assert sum(torch.tensor([value for _, value in top]).exp()) == pytest.approx(1)
