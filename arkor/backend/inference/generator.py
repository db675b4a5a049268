"""Generate several answers concurrently with models in memory.

Answers with the same weights are decoded in one batch, which they join and leave between tokens;
batches with different weights take turns. An answer that its engine cannot compute, or fails to
compute, is continued by the reference engine.
"""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from attrs import define, evolve

from arkor.backend.compute.process_tuning import CpuThreads
from arkor.backend.inference.batch import Batch
from arkor.backend.inference.detokenizer import StopStrings, TextStream
from arkor.backend.inference.engines import REFERENCE, EngineChooser, handed_over, new_batch
from arkor.backend.inference.grammar import GrammarMatcher
from arkor.backend.inference.messages import CompletionRequest, Constraint, GenerationError, Reply, TokenLogprob
from arkor.backend.inference.model_cache import ModelCache
from arkor.backend.inference.sampling import SamplingParams
from arkor.backend.inference.sequence import SequenceState
from arkor.backend.inference.served_model import ServedModel
from arkor.backend.inference.tool_calls.grammar import call_constraint
from arkor.backend.inference.tool_calls.parser import ToolCallParser

#: The maximum number of tokens of an answer if the request sets none.
DEFAULT_MAX_TOKENS = 512

#: Concurrent answers; further ones are queued.
MAX_SEQUENCES = 16

#: Seconds that an idle step waits for a model to be loaded.
IDLE_POLL_SECONDS = 0.05


@define
class _PendingRequest:
    """A completion whose model is being loaded, or whose prompt is being prepared.

    `started` is an answer that another engine has begun; `successor` is the model that continues it
    after the prompt.
    """

    completion: CompletionRequest
    engine: str
    model: Future[ServedModel]
    sequence: Future[SequenceState] | None = None
    started: SequenceState | None = None
    successor: ServedModel | None = None

    @property
    def future(self) -> Future[Any]:
        return self.model if self.sequence is None else self.sequence


class ModelGenerator:
    """A `Generator` with models of at most `memory` bytes (see `ModelCache`)."""

    def __init__(self, home: Path, memory: int | None = None) -> None:
        self._models = ModelCache(home, memory)
        self._engines = EngineChooser()
        self._threads = CpuThreads(torch.get_num_threads(), torch.set_num_threads)
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._compilers = ThreadPoolExecutor(2, thread_name_prefix="compiler")
        self._waiting: list[_PendingRequest] = []
        self._batches: list[Batch] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._batches)

    def submit(self, completion: CompletionRequest) -> None:
        self._queue(completion, self._engines.choose(completion))

    def cancel(self, completion_id: str) -> None:
        self._waiting = [pending for pending in self._waiting if pending.completion.id != completion_id]
        for batch in self._batches:
            batch.remove(lambda sequence: sequence.completion.id == completion_id)
        self._batches = [batch for batch in self._batches if batch.sequences]

    def step(self) -> list[Reply]:
        if not self._batches:
            wait([pending.future for pending in self._waiting], IDLE_POLL_SECONDS, FIRST_COMPLETED)
        replies = self._schedule()
        prefilling = [batch for batch in self._batches if batch.is_prefilling]
        with self._threads.measured():
            for batch in [batch for batch in self._batches if not batch.is_prefilling] + prefilling[:1]:
                replies += self._advance(batch)
        self._batches = [self._handed_over(batch) for batch in self._batches]
        self._merge()
        return replies

    def _queue(
        self,
        completion: CompletionRequest,
        engine: str,
        started: SequenceState | None = None,
        successor: ServedModel | None = None,
    ) -> None:
        model = self._models.get(completion.model, engine)
        self._waiting.append(_PendingRequest(completion, engine, model, started=started, successor=successor))

    def _schedule(self) -> list[Reply]:
        """Start the pending completions that are ready; return the errors."""
        failures: list[Reply] = []
        for pending in list(self._waiting):
            try:
                sequence = self._prepared_sequence(pending)
                if sequence is None:
                    continue
                self._start(pending, sequence)
            except Exception as error:  # noqa: BLE001 - it fails this completion, not the others
                if pending.successor is not None and pending.started is not None:
                    self._engines.reject_handover(pending.successor, error)
                    self._batches.append(new_batch(pending.successor, pending.completion.adapter, pending.started))
                elif pending.engine != REFERENCE and not isinstance(error, GenerationError):
                    self._engines.reject(pending.completion, error)
                    self._queue(pending.completion, REFERENCE)
                else:
                    failures.append(self._failure(error).reply(pending.completion.id))
            self._waiting.remove(pending)
        return failures

    def _prepared_sequence(self, pending: _PendingRequest) -> SequenceState | None:
        """Return the answer if it is prepared and there is capacity; raise its error."""
        if pending.sequence is None and pending.started is None and pending.model.done():
            unconstrained = pending.completion.constraint is None and pending.completion.tool_choice is None
            executor = self._readers if unconstrained else self._compilers
            pending.sequence = executor.submit(_prepare, pending.completion, pending.model.result())
        if sum(len(batch.sequences) for batch in self._batches) >= MAX_SEQUENCES:
            return None
        if pending.started is not None:
            return pending.started if pending.model.done() else None
        return pending.sequence.result() if pending.sequence is not None and pending.sequence.done() else None

    def _start(self, pending: _PendingRequest, sequence: SequenceState) -> None:
        """Add a batch with the answer, or queue it for the engine that reads its prompt faster."""
        weights, adapter = pending.model.result(), pending.completion.adapter
        if self._engines.reads_fast(weights, sequence):
            batch = new_batch(weights, adapter, sequence)
            batch.successor = pending.successor
            self._batches.append(batch)
        else:
            self._queue(pending.completion, REFERENCE, sequence, successor=weights)

    def _advance(self, batch: Batch) -> list[Reply]:
        sequences = list(batch.sequences)
        weights = batch.weights
        weights.set_threads(1 if batch.must_run_alone and weights.threads_change_rounding else self._threads.count)
        try:
            return batch.step()
        except Exception as error:  # noqa: BLE001 - as above
            self._batches.remove(batch)
            batch.remove(lambda _: True)
            if weights.engine != REFERENCE and _is_engines_fault(error):
                self._engines.reject(sequences[0].completion, error, adapter=batch.adapter is not None)
                for sequence in sequences:
                    sequence.restart()
                    self._queue(sequence.completion, REFERENCE, sequence)
                return []
            failure = self._failure(error)
            return [failure.reply(sequence.completion.id) for sequence in sequences]

    def _handed_over(self, batch: Batch) -> Batch:
        """Return the batch that continues an answer whose prompt is computed, or the same one."""
        weights, batch.successor = batch.successor, None if not batch.is_prefilling else batch.successor
        if weights is None or batch.is_prefilling or not batch.sequences:
            return batch
        try:
            return handed_over(batch, weights)
        except Exception as error:  # noqa: BLE001 - the reference engine continues
            self._engines.reject_handover(weights, error)
            return batch

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
            problem = "There is not enough free memory for this answer. Try again later, or with fewer tokens."
            return GenerationError(503, "out_of_memory", problem)
        problem = f"The answer failed: {type(error).__name__}."
        return GenerationError(500, "internal", problem, remedy="See serving.log for details.")


def _is_engines_fault(error: Exception) -> bool:
    """Whether the reference engine may succeed; it decides whether a model has diverged."""
    if _is_out_of_memory(error):
        return False  # the reference engine takes more
    return not isinstance(error, GenerationError) or error.code == "model_diverged"


def _prepare(completion: CompletionRequest, weights: ServedModel) -> SequenceState:
    """Tokenize the prompt and compile the constraint. Raise `GenerationError`."""
    tool_choice, constraint = completion.tool_choice, completion.constraint
    parser: ToolCallParser | None = None
    if tool_choice:
        call_format = weights.prompts.call_format
        answer = _matcher(constraint, weights).constraint if constraint else None  # raises for its own field
        constraint = call_constraint(tool_choice, call_format, weights.prompts.special_token, answer)
        parser = ToolCallParser(completion.id, call_format, tool_choice.forced)
    prompt, notes = _prompt(completion, weights)
    matcher = _matcher(constraint, weights) if constraint else None
    remaining = weights.context - len(prompt) if weights.context is not None else sys.maxsize

    def decode(tokens: list[int]) -> str:
        return _decode(weights, tokens, special=tool_choice is not None)

    rng = random.Random(completion.seed)  # noqa: S311 - not for cryptography
    return SequenceState(
        completion,
        prompt,
        limit=min(DEFAULT_MAX_TOKENS if completion.max_tokens is None else completion.max_tokens, remaining),
        text=TextStream(decode),
        sampling=_sampling(completion, weights, rng),
        stop_strings=StopStrings(completion.stop),
        matcher=matcher,
        call_parser=parser,
        notes=(*(matcher.constraint.notes if matcher else ()), *notes),
        echo=_echo(completion, weights),
        prompt_logprobs=_first_logprob(prompt, weights)
        if completion.echo and completion.logprobs is not None
        else None,
    )


def _matcher(constraint: Constraint, weights: ServedModel) -> GrammarMatcher:
    """Compile a constraint; a schema of a system message that cannot be compiled is dropped."""
    try:
        return weights.grammars.matcher(constraint)
    except GenerationError:
        if not constraint.prompted:
            raise
        return weights.grammars.matcher(evolve(constraint, value={"type": "object"}, prompted=False))


def _prompt(completion: CompletionRequest, weights: ServedModel) -> tuple[list[int], tuple[str, ...]]:
    """Return the tokens of the prompt, and notes on parameters without effect."""
    if completion.prompt is not None:
        return weights.prompts.continued_tokens(completion.prompt, completion.max_tokens), ()
    variables, notes = weights.prompts.template_variables(completion)
    constrained = completion.constraint is not None
    tokens = weights.prompts.tokens(completion.messages, completion.tool_choice, variables, constrained=constrained)
    return tokens, notes


def _sampling(completion: CompletionRequest, weights: ServedModel, rng: random.Random) -> SamplingParams:
    unknown = next((token for token, _ in completion.logit_bias if not 0 <= token < weights.vocabulary), None)
    if unknown is not None:
        problem = f"{unknown} is not a token of this model, which has {weights.vocabulary}."
        raise GenerationError(400, "invalid_request", problem, field="logit_bias")
    return SamplingParams(
        completion.temperature,
        completion.top_p,
        rng,
        completion.presence_penalty,
        completion.frequency_penalty,
        completion.logit_bias,
    )


def _echo(completion: CompletionRequest, weights: ServedModel) -> str:
    """Return the text of a prompt that is repeated."""
    if not completion.echo or completion.prompt is None:
        return ""
    prompt = completion.prompt
    return prompt if isinstance(prompt, str) else _decode(weights, list(prompt), special=True)


def _decode(weights: ServedModel, tokens: list[int], *, special: bool) -> str:
    text: str = weights.tokenizer.decode(tokens, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    return text


def _first_logprob(prompt: Sequence[int], weights: ServedModel) -> list[TokenLogprob]:
    return [TokenLogprob(weights.token_bytes(prompt[0]), None)]


def _is_out_of_memory(error: Exception) -> bool:
    markers = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(marker in str(error).lower() for marker in markers)
