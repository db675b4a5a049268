"""Move an answer from the reference engine to llama.cpp when its prompt is computed.

torch reads long prompts faster on a CPU, and llama.cpp generates faster. The keys and values of the
prompt are copied into llama.cpp's cache.
"""

from __future__ import annotations

import torch

from arkor.backend.inference.llama_cpp.batch import LlamaBatch
from arkor.backend.inference.llama_cpp.context import Context
from arkor.backend.inference.llama_cpp.library import EngineUnavailable
from arkor.backend.inference.llama_cpp.model import LlamaModel
from arkor.backend.inference.reference.batch import TorchBatch

#: The largest difference of the log-probabilities of the likeliest tokens after a hand-over.
TOLERANCE = 0.5


def hand_over(batch: TorchBatch, weights: LlamaModel) -> LlamaBatch:
    """Return a batch of llama.cpp with the answer of a batch that has computed its prompt.

    Raise an error, with `batch` unchanged, if llama.cpp does not compute the same from there.
    """
    if not batch.can_cut_prompts:
        raise EngineUnavailable("the cache of the prompt has another form.")
    [sequence] = batch.sequences
    tokens = sequence.prompt + sequence.tokens[:-1]  # the last one is not computed yet
    context = weights.context_of(batch.adapter)
    number, _ = context.open(reuse=False)
    try:
        keys, values = weights.states(batch.states())
        context.insert(number, tokens, keys, values)
        _check(context, number, batch.last_logits)
    except Exception:
        context.discard(number)
        raise
    return LlamaBatch.of_sequence(weights, batch.adapter, sequence, context, number)


def _check(context: Context, number: int, expected: torch.Tensor) -> None:
    """Compute the last token again, and compare what may follow it."""
    found = torch.log_softmax(context.repeat_last(number), dim=-1)
    best, likely = torch.log_softmax(expected.float(), dim=-1).topk(10)
    difference = float((found[likely] - best).abs().max())
    if not difference <= TOLERANCE:
        raise EngineUnavailable(f"a prompt cannot be handed over: log-probabilities differ by {difference:.2f}.")
