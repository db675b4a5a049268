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

from arkor.backend.compute.cpu_threads import Threads
from arkor.backend.inference.batch import Batch
from arkor.backend.inference.detokenizer import StopStrings, TextStream
from arkor.backend.inference.grammar import Guide
from arkor.backend.inference.messages import CannotAnswer, Completion, Reply
from arkor.backend.inference.model_cache import Shelf, Weights
from arkor.backend.inference.sampling import Taste
from arkor.backend.inference.sequence import Answer
from arkor.backend.inference.tool_calls import CallReader, demand, held

#: Tokens of an answer when the request leaves its length open.
DEFAULT_MAX_TOKENS = 512

#: Answers in progress; more of them wait their turn.
MOST_ANSWERS = 16

#: How long a step waits for a model to be loaded when there is nothing else to do, in seconds.
NAP_SECONDS = 0.05


@define
class _Waiting:
    """A completion whose weights are not there yet, or that is being prepared."""

    completion: Completion
    weights: Future[Weights]
    answer: Future[Answer] | None = None

    @property
    def awaited(self) -> Future[Any]:
        return self.weights if self.answer is None else self.answer


class TorchGenerator:
    """A `Generator` on models in memory; `memory` in bytes is what the bases together may take (see `Shelf`)."""

    def __init__(self, home: Path, memory: int | None = None) -> None:
        self._shelf = Shelf(home, memory)
        self._threads = Threads(torch.get_num_threads(), torch.set_num_threads)
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._compilers = ThreadPoolExecutor(2, thread_name_prefix="compiler")
        self._waiting: list[_Waiting] = []
        self._batches: list[Batch] = []

    @property
    def busy(self) -> bool:
        """See `Generator`."""
        return bool(self._waiting or self._batches)

    def submit(self, completion: Completion) -> None:
        """See `Generator`."""
        self._waiting.append(_Waiting(completion, self._shelf.get(completion.model)))

    def cancel(self, completion_id: str) -> None:
        """See `Generator`."""
        self._waiting = [one for one in self._waiting if one.completion.id != completion_id]
        for batch in self._batches:
            batch.drop(lambda answer: answer.completion.id == completion_id)
        self._batches = [batch for batch in self._batches if batch.answers]

    def step(self) -> list[Reply]:
        """See `Generator`."""
        if not self._batches:
            wait([one.awaited for one in self._waiting], NAP_SECONDS, FIRST_COMPLETED)
        replies = self._admit()
        readers = [batch for batch in self._batches if batch.reading]
        with self._threads.measured():
            for batch in [batch for batch in self._batches if not batch.reading] + readers[:1]:
                replies += self._advance(batch)
        self._merge()
        return replies

    def _admit(self) -> list[Reply]:
        """Start on what waits, where its model is there, it is prepared, and there is room."""
        refusals = [self._begin(one) for one in list(self._waiting)]
        return [refusal for refusal in refusals if refusal is not None]

    def _begin(self, one: _Waiting) -> Reply | None:
        try:
            answer = self._prepared(one)
            batch = Batch(one.weights.result(), one.completion.adapter, answer) if answer else None
        except Exception as error:  # noqa: BLE001 - whatever it is, it must reach who asked, and the others go on
            self._waiting.remove(one)
            return self._refusal(error).reply(one.completion.id)
        if batch is not None:
            self._waiting.remove(one)
            self._batches.append(batch)
        return None

    def _prepared(self, one: _Waiting) -> Answer | None:
        """Its answer, ready to begin, if there is room for it. Raises whatever stands in its way."""
        if one.answer is None and one.weights.done():
            free = one.completion.constraint is None and one.completion.calling is None
            clerks = self._readers if free else self._compilers
            one.answer = clerks.submit(_prepare, one.completion, one.weights.result())
        in_progress = sum(len(batch.answers) for batch in self._batches)
        if one.answer is None or in_progress >= MOST_ANSWERS:
            return None
        return one.answer.result() if one.answer.done() else None

    def _advance(self, batch: Batch) -> list[Reply]:
        ids = [answer.completion.id for answer in batch.answers]
        try:
            with self._same_sums(batch):
                return batch.step()
        except Exception as error:  # noqa: BLE001 - as above
            self._batches.remove(batch)
            refusal = self._refusal(error)
            return [refusal.reply(id_) for id_ in ids]

    @contextmanager
    def _same_sums(self, batch: Batch) -> Iterator[None]:
        """A batch that must come out the same is computed by one thread in fp32: several cut a sum up elsewhere."""
        model = batch.weights.model
        if not (batch.alone and model.device.type == "cpu" and model.dtype == torch.float32):
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
            into = next((other for other in merged if batch.answers and other.joins(batch)), None)
            if into is not None:
                into.absorb(batch)
            elif batch.answers:
                merged.append(batch)
        self._batches = merged

    def _refusal(self, error: Exception) -> CannotAnswer:
        if isinstance(error, CannotAnswer):
            return error
        traceback.print_exception(error, file=sys.stderr)
        if _is_out_of_memory(error):
            self._shelf.drop_idle([batch.weights for batch in self._batches])
            sentence = "There is not enough memory free for this answer. Ask again later, or ask for less at once."
            return CannotAnswer(503, "out_of_memory", sentence)
        return CannotAnswer(500, "internal", f"The answer failed: {type(error).__name__}. serving.log says more.")


def _prepare(completion: Completion, weights: Weights) -> Answer:
    """Everything of an answer that takes no model, on a thread of its own. Raises `CannotAnswer`."""
    if completion.calling:
        demand(completion.calling, weights.prompts.markup, weights.name)
    prompt = weights.prompts.tokens(completion.messages, completion.calling)
    room = weights.context - len(prompt) if weights.context is not None else sys.maxsize
    limit = min(completion.max_tokens or DEFAULT_MAX_TOKENS, room)
    guide = _guide(completion, weights)
    dice = random.Random(completion.seed)  # noqa: S311 - nothing secret is drawn
    taste = Taste(completion.temperature, completion.top_p, dice)
    text = TextStream(_decoder(weights.tokenizer, keep_special=completion.calling is not None))
    return Answer(
        completion, prompt, limit, text, taste, StopStrings(completion.stop), guide, _reader(completion, weights)
    )


def _guide(completion: Completion, weights: Weights) -> Guide | None:
    constraint, calling = completion.constraint, completion.calling
    if calling is not None:
        constraint = held(calling, weights.prompts.markup, weights.prompts.special)
    if constraint is None:
        return None
    return weights.grammars.guide(constraint)


def _reader(completion: Completion, weights: Weights) -> CallReader | None:
    calling = completion.calling
    return CallReader(completion.id, weights.prompts.markup, calling.forced) if calling else None


def _decoder(tokenizer: Any, *, keep_special: bool) -> Callable[[list[int]], str]:
    def decode(tokens: list[int]) -> str:
        text: str = tokenizer.decode(tokens, skip_special_tokens=not keep_special, clean_up_tokenization_spaces=False)
        return text

    return decode


def _is_out_of_memory(error: Exception) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
