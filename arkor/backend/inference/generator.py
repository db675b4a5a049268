"""Generate several answers concurrently with models in memory.

Answers with the same weights are decoded in one batch, which they join and leave between tokens;
batches with different weights take turns.
"""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import define, evolve

from arkor.backend.compute.process_tuning import CpuThreads
from arkor.backend.inference.batch import Batch
from arkor.backend.inference.detokenizer import StopStrings, TextStream
from arkor.backend.inference.grammar import GrammarMatcher
from arkor.backend.inference.messages import CompletionRequest, Constraint, GenerationError, Reply, TokenLogprob
from arkor.backend.inference.model_cache import ModelCache, ServedModel
from arkor.backend.inference.sampling import SamplingParams
from arkor.backend.inference.sequence import SequenceState
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
    """A completion whose model is being loaded, or whose prompt is being prepared."""

    completion: CompletionRequest
    model: Future[ServedModel]
    sequence: Future[SequenceState] | None = None

    @property
    def future(self) -> Future[Any]:
        return self.model if self.sequence is None else self.sequence


class TorchGenerator:
    """A `Generator` with torch models, of at most `memory` bytes (see `ModelCache`)."""

    def __init__(self, home: Path, memory: int | None = None) -> None:
        self._models = ModelCache(home, memory)
        self._threads = CpuThreads(torch.get_num_threads(), torch.set_num_threads)
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="reader")
        self._compilers = ThreadPoolExecutor(2, thread_name_prefix="compiler")
        self._waiting: list[_PendingRequest] = []
        self._batches: list[Batch] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._batches)

    def submit(self, completion: CompletionRequest) -> None:
        self._waiting.append(_PendingRequest(completion, self._models.get(completion.model)))

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
        self._merge()
        return replies

    def _schedule(self) -> list[Reply]:
        """Start the pending completions that are ready; return the errors."""
        failures: list[Reply] = []
        for pending in list(self._waiting):
            try:
                sequence = self._prepared_sequence(pending)
                if sequence is None:
                    continue
                self._batches.append(Batch(pending.model.result(), pending.completion.adapter, sequence))
            except Exception as error:  # noqa: BLE001 - it fails this completion, not the others
                failures.append(self._failure(error).reply(pending.completion.id))
            self._waiting.remove(pending)
        return failures

    def _prepared_sequence(self, pending: _PendingRequest) -> SequenceState | None:
        """Return the answer if it is prepared and there is capacity; raise its error."""
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
        """Use one thread for an answer with a seed: the number of threads affects rounding."""
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
            problem = "There is not enough free memory for this answer. Try again later, or with fewer tokens."
            return GenerationError(503, "out_of_memory", problem)
        problem = f"The answer failed: {type(error).__name__}."
        return GenerationError(500, "internal", problem, remedy="See serving.log for details.")


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
