"""The choice of the engine that computes an answer.

`transformers` is the reference: it answers every request. `llama.cpp` is faster on a CPU for the
models that it supports. Whatever it cannot do, or fails to do, is computed by the reference.
"""

from __future__ import annotations

import sys
from typing import cast
from weakref import WeakSet

from arkor.backend.compute.device import choose_device
from arkor.backend.inference.batch import Batch
from arkor.backend.inference.llama_cpp.batch import LlamaBatch
from arkor.backend.inference.llama_cpp.handover import hand_over
from arkor.backend.inference.llama_cpp.library import problem_of_use
from arkor.backend.inference.llama_cpp.model import LlamaModel
from arkor.backend.inference.messages import CompletionRequest
from arkor.backend.inference.reference.batch import TorchBatch
from arkor.backend.inference.reference.model import TorchModel
from arkor.backend.inference.sequence import SequenceState
from arkor.backend.inference.served_model import ServedModel, weights_mtime
from arkor.settings import serving_engine

#: The reference reads longer prompts, which it does 1.6 times as fast, and hands the answer over.
MAX_PROMPT_TOKENS = 384

REFERENCE, FASTER = TorchModel.engine, LlamaModel.engine


def new_batch(weights: ServedModel, adapter: str | None, sequence: SequenceState) -> Batch:
    """Return a batch with one answer, for the engine of the model."""
    if isinstance(weights, LlamaModel):
        return LlamaBatch(weights, adapter, sequence)
    return TorchBatch(cast("TorchModel", weights), adapter, sequence)


def handed_over(batch: Batch, weights: ServedModel) -> Batch:
    """Return the batch of another model that continues an answer whose prompt is computed."""
    return hand_over(cast("TorchBatch", batch), cast("LlamaModel", weights))


class EngineChooser:
    """Chooses an engine for each request, and remembers what llama.cpp could not do."""

    def __init__(self) -> None:
        self._wanted = serving_engine()
        self._unusable: set[tuple[str, int]] = set()
        self._no_handover: WeakSet[ServedModel] = WeakSet()
        reason = problem_of_use(self._wanted, choose_device().kind)
        self._available = reason is None
        if reason is not None and self._wanted == FASTER:
            sys.stderr.write(f"ARKOR_SERVING_ENGINE={self._wanted}: {reason}\n")

    def choose(self, completion: CompletionRequest) -> str:
        """Return the engine for a request, before its prompt is known."""
        if not self._available or self._unusable & set(_weights(completion)):
            return REFERENCE
        return FASTER

    def reads_fast(self, weights: ServedModel, sequence: SequenceState) -> bool:
        """Whether that engine reads the prompt of a request at least as fast as the reference.

        For a request with a seed, the decision does not depend on earlier requests.
        """
        if weights.engine == REFERENCE or self._wanted != "auto" or weights in self._no_handover:
            return True
        missing = len(sequence.prompt)
        if sequence.completion.seed is None:
            missing = weights.missing_tokens(sequence.completion.adapter, sequence.prompt)
        return missing <= MAX_PROMPT_TOKENS or bool(sequence.tokens)

    def reject_handover(self, weights: ServedModel, error: BaseException) -> None:
        """Let that model read its prompts itself from now on."""
        self._no_handover.add(weights)
        sys.stderr.write(f"{weights.engine} cannot continue after a prompt: {error}\n")

    def reject(self, completion: CompletionRequest, error: BaseException, *, adapter: bool = False) -> None:
        """Use the reference for that base model, or for that adapter, from now on."""
        weights = _weights(completion)
        self._unusable.add(weights[-1] if adapter else weights[0])
        sys.stderr.write(f"{FASTER} cannot use {weights[-1 if adapter else 0][0]}: {error}\n")


def _weights(completion: CompletionRequest) -> list[tuple[str, int]]:
    """Return the base model and the adapter of a request, each with the time of its weights."""
    names = [name for name in (completion.model, completion.adapter) if name is not None]
    return [(name, weights_mtime(name)) for name in names]
