"""Base and adapter → tokens → text: the answers of one process, side by side.

Answers by the same weights are decoded as one batch, which others join and leave between two tokens; different
weights take turns. What is in memory is in `model_cache.py`; nothing here knows of processes or HTTP.
"""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import define

from arkor.backend.compute.cpu_threads import CpuThreads
from arkor.backend.inference.batch import Batch
from arkor.backend.inference.detokenizer import StopStrings, TextStream
from arkor.backend.inference.grammar import GrammarMatcher
from arkor.backend.inference.messages import CompletionRequest, GenerationError, Reply
from arkor.backend.inference.model_cache import ModelCache, ServedModel
from arkor.backend.inference.sampling import SamplingParams
from arkor.backend.inference.sequence import SequenceState
from arkor.backend.inference.tool_calls import ToolCallParser, call_constraint, require_tool_support

#: Tokens of an answer when the request leaves its length open.
DEFAULT_MAX_TOKENS = 512

#: Answers in progress; more of them wait their turn.
MAX_SEQUENCES = 16

#: How long a step waits for a model to be loaded when there is nothing else to do, in seconds.
IDLE_POLL_SECONDS = 0.05


@define
class _PendingRequest:
    """A completion whose weights are not there yet, or that is being prepared."""

    completion: CompletionRequest
    model: Future[ServedModel]
    sequence: Future[SequenceState] | None = None

    @property
    def future(self) -> Future[Any]:
        return self.model if self.sequence is None else self.sequence


class TorchGenerator:
    """A `Generator` on models in memory; `memory` in bytes is what the bases together may take (see `ModelCache`)."""

    def __init__(self, home: Path, memory: int | None = None) -> None:
        self._models = ModelCache(home, memory)
        self._threads = CpuThreads(torch.get_num_threads(), torch.set_num_threads)
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._compilers = ThreadPoolExecutor(2, thread_name_prefix="compiler")
        self._waiting: list[_PendingRequest] = []
        self._batches: list[Batch] = []

    @property
    def busy(self) -> bool:
        """See `Generator`."""
        return bool(self._waiting or self._batches)

    def submit(self, completion: CompletionRequest) -> None:
        """See `Generator`."""
        self._waiting.append(_PendingRequest(completion, self._models.get(completion.model)))

    def cancel(self, completion_id: str) -> None:
        """See `Generator`."""
        self._waiting = [pending for pending in self._waiting if pending.completion.id != completion_id]
        for batch in self._batches:
            batch.remove(lambda sequence: sequence.completion.id == completion_id)
        self._batches = [batch for batch in self._batches if batch.sequences]

    def step(self) -> list[Reply]:
        """See `Generator`."""
        if not self._batches:
            wait([pending.future for pending in self._waiting], IDLE_POLL_SECONDS, FIRST_COMPLETED)
        replies = self._schedule()
        prefilling = [batch for batch in self._batches if batch.is_prefilling]
        with self._threads.measured():
            for batch in [batch for batch in self._batches if not batch.is_prefilling] + prefilling[:1]:
                replies += self._advance(batch)
        self._merge()
        return replies

    def _schedule(self) -> list[Reply]:
        """Start on what waits, where its model is there, it is prepared, and there is room."""
        failures = [self._start(pending) for pending in list(self._waiting)]
        return [failure for failure in failures if failure is not None]

    def _start(self, pending: _PendingRequest) -> Reply | None:
        try:
            sequence = self._prepared_sequence(pending)
            batch = Batch(pending.model.result(), pending.completion.adapter, sequence) if sequence else None
        except Exception as error:  # noqa: BLE001 - whatever it is, it must reach who asked, and the others go on
            self._waiting.remove(pending)
            return self._failure(error).reply(pending.completion.id)
        if batch is not None:
            self._waiting.remove(pending)
            self._batches.append(batch)
        return None

    def _prepared_sequence(self, pending: _PendingRequest) -> SequenceState | None:
        """Its answer, ready to begin, if there is room for it. Raises whatever stands in its way."""
        if pending.sequence is None and pending.model.done():
            unconstrained = pending.completion.constraint is None and pending.completion.tool_choice is None
            executor = self._readers if unconstrained else self._compilers
            pending.sequence = executor.submit(_prepare, pending.completion, pending.model.result())
        in_progress = sum(len(batch.sequences) for batch in self._batches)
        if pending.sequence is None or in_progress >= MAX_SEQUENCES:
            return None
        return pending.sequence.result() if pending.sequence.done() else None

    def _advance(self, batch: Batch) -> list[Reply]:
        ids = [sequence.completion.id for sequence in batch.sequences]
        try:
            with self._deterministic(batch):
                return batch.step()
        except Exception as error:  # noqa: BLE001 - as above
            self._batches.remove(batch)
            failure = self._failure(error)
            return [failure.reply(id_) for id_ in ids]

    @contextmanager
    def _deterministic(self, batch: Batch) -> Iterator[None]:
        """A batch that must come out the same is computed by one thread in fp32: several cut a sum up elsewhere."""
        model = batch.weights.model
        if not (batch.must_run_alone and model.device.type == "cpu" and model.dtype == torch.float32):
            yield
            return
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(self._threads.count)

    def _merge(self) -> None:
        merged: list[Batch] = []
        for batch in self._batches:
            target = next((other for other in merged if batch.sequences and other.can_merge(batch)), None)
            if target is not None:
                target.merge(batch)
            elif batch.sequences:
                merged.append(batch)
        self._batches = merged

    def _failure(self, error: Exception) -> GenerationError:
        if isinstance(error, GenerationError):
            return error
        traceback.print_exception(error, file=sys.stderr)
        if _is_out_of_memory(error):
            self._models.evict_idle([batch.weights for batch in self._batches])
            sentence = "There is not enough memory free for this answer. Ask again later, or ask for less at once."
            return GenerationError(503, "out_of_memory", sentence)
        return GenerationError(500, "internal", f"The answer failed: {type(error).__name__}. serving.log says more.")


def _prepare(completion: CompletionRequest, weights: ServedModel) -> SequenceState:
    """Everything of an answer that takes no model, on a thread of its own. Raises `GenerationError`."""
    if completion.tool_choice:
        require_tool_support(completion.tool_choice, weights.prompts.call_format, weights.name)
    prompt = weights.prompts.tokens(completion.messages, completion.tool_choice)
    remaining = weights.context - len(prompt) if weights.context is not None else sys.maxsize
    limit = min(completion.max_tokens or DEFAULT_MAX_TOKENS, remaining)
    matcher = _grammar_matcher(completion, weights)
    rng = random.Random(completion.seed)  # noqa: S311 - nothing secret is drawn
    sampling = SamplingParams(completion.temperature, completion.top_p, rng)
    text = TextStream(_decoder(weights.tokenizer, keep_special=completion.tool_choice is not None))
    return SequenceState(
        completion,
        prompt,
        limit,
        text,
        sampling,
        StopStrings(completion.stop),
        matcher,
        _call_parser(completion, weights),
    )


def _grammar_matcher(completion: CompletionRequest, weights: ServedModel) -> GrammarMatcher | None:
    constraint, tool_choice = completion.constraint, completion.tool_choice
    if tool_choice is not None:
        constraint = call_constraint(tool_choice, weights.prompts.call_format, weights.prompts.special_token)
    if constraint is None:
        return None
    return weights.grammars.matcher(constraint)


def _call_parser(completion: CompletionRequest, weights: ServedModel) -> ToolCallParser | None:
    tool_choice = completion.tool_choice
    return ToolCallParser(completion.id, weights.prompts.call_format, tool_choice.forced) if tool_choice else None


def _decoder(tokenizer: Any, *, keep_special: bool) -> Callable[[list[int]], str]:
    def decode(tokens: list[int]) -> str:
        text: str = tokenizer.decode(tokens, skip_special_tokens=not keep_special, clean_up_tokenization_spaces=False)
        return text

    return decode


def _is_out_of_memory(error: Exception) -> bool:
    markers = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(marker in str(error).lower() for marker in markers)
