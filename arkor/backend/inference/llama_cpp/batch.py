"""Decode several answers with llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from arkor.backend.inference.batch import Batch
from arkor.backend.inference.llama_cpp.context import Context
from arkor.backend.inference.llama_cpp.model import LlamaModel
from arkor.backend.inference.sequence import SequenceState


class LlamaBatch(Batch):
    """Answers of a model in llama.cpp: sequences of a context, which other batches may use, too."""

    weights: LlamaModel

    def __init__(self, weights: LlamaModel, adapter: str | None, sequence: SequenceState) -> None:
        super().__init__(weights, adapter, sequence)
        self._context: Context | None = None
        self._rows: list[int] = []

    @classmethod
    def of_sequence(
        cls, weights: LlamaModel, adapter: str | None, sequence: SequenceState, context: Context, number: int
    ) -> LlamaBatch:
        """Return a batch of an answer whose tokens are in the context, except the last one."""
        batch = cls(weights, adapter, sequence)
        batch._context, batch._rows = context, [number]
        batch._pending_prompt, batch._next = [], sequence.tokens[-1:]
        return batch

    def can_merge(self, other: Batch) -> bool:
        return super().can_merge(other) and self._context is cast("LlamaBatch", other)._context

    def _merge_cache(self, other: Batch) -> None:
        self._rows += cast("LlamaBatch", other)._rows

    def _keep_rows(self, rows: Sequence[int]) -> None:
        for row, number in enumerate(self._rows):
            if row not in rows and self._context is not None:
                self._context.close(number)
        self._rows = [self._rows[row] for row in rows] if self._rows else []

    def _open(self, context: Context, chunk: list[int], *, keep_all: bool) -> tuple[list[int], list[list[int]]]:
        """Open a sequence for the prompt; return it, and the tokens that it does not have already.

        An answer with a seed computes the whole prompt: rounding depends on how it is divided.
        """
        prompt = [*chunk, *self._pending_prompt]
        number, kept = context.open(prompt, reuse=not keep_all and not self.must_run_alone)
        missing = prompt[kept:]
        self._pending_prompt = missing[len(chunk) :]
        return [number], [missing[: len(chunk)]]

    def _forward(self, columns: list[list[int]], *, keep_all: bool) -> torch.Tensor:
        if self._context is None:
            self._context = self.weights.context_of(self.adapter)
            self._rows, columns = self._open(self._context, columns[0], keep_all=keep_all)
        self._context.set_threads(self.weights.threads)
        logits = self._context.decode(list(zip(self._rows, columns, strict=True)), keep_all=keep_all)
        return logits.view(len(columns), -1, logits.shape[-1])
