"""Decode several answers with the same weights together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch

from arkor.backend.inference.grammar import allowed_tokens
from arkor.backend.inference.messages import GenerationError, Reply, TokenLogprob
from arkor.backend.inference.sampling import apply_penalties, apply_repetition_penalty, log_probabilities, sample
from arkor.backend.inference.sequence import SequenceState
from arkor.backend.inference.served_model import ServedModel

#: Tokens of a prompt that are computed at once, between two steps of the other answers.
PREFILL_TOKENS = 512

#: The same if the logits of each token are needed, which take vocabulary × 4 bytes a token.
SCORED_PREFILL_TOKENS = 64


class Batch(ABC):
    """Answers with the same weights, decoded together; a new batch has one, without its prompt.

    What an engine implements is the computation of logits, and the cache of the tokens before.
    """

    def __init__(self, weights: ServedModel, adapter: str | None, sequence: SequenceState) -> None:
        self.weights = weights
        self.adapter = adapter
        self.sequences = [sequence]
        sequence.engine = weights.engine
        self._pending_prompt = [*sequence.prompt, *sequence.tokens]
        self._next: list[int] = []
        #: A model of another engine that continues the answer after its prompt.
        self.successor: ServedModel | None = None

    @property
    def is_prefilling(self) -> bool:
        """Whether a part of the prompt is not computed yet."""
        return bool(self._pending_prompt)

    @property
    def must_run_alone(self) -> bool:
        """Whether an answer has a seed: batching changes the rounding, and with it the answer."""
        return any(sequence.completion.seed is not None for sequence in self.sequences)

    def step(self) -> list[Reply]:
        """Compute a part of the prompt, or one token per answer. Raise `GenerationError`."""
        if self._pending_prompt:
            return self._prefill(self.sequences[0])
        return self._push(self._checked([[token] for token in self._next])[:, -1])

    def _prefill(self, sequence: SequenceState) -> list[Reply]:
        """Compute a part of the prompt; with its end, the next token of the answer."""
        size = PREFILL_TOKENS if sequence.prompt_logprobs is None else SCORED_PREFILL_TOKENS
        size = size if self.can_cut_prompts else len(self._pending_prompt)
        chunk, self._pending_prompt = self._pending_prompt[:size], self._pending_prompt[size:]
        logits = self._checked([chunk], keep_all=sequence.prompt_logprobs is not None)
        if sequence.prompt_logprobs is not None:
            scored = sequence.prompt[len(sequence.prompt_logprobs) :][: len(chunk)]
            sequence.prompt_logprobs += self._logprobs(logits[0, : len(scored)], scored, sequence)
        if self._pending_prompt:
            return []
        replies = [] if sequence.tokens else sequence.start()
        if not sequence.finished:
            return [*replies, *self._push(logits[:, -1])]
        self.remove(lambda _: True)
        return replies

    @property
    def can_cut_prompts(self) -> bool:
        """Whether a prompt can be computed in parts."""
        return True

    def can_merge(self, other: Batch) -> bool:
        """Whether the two batches can be decoded as one."""
        return (
            self.weights is other.weights
            and self.adapter == other.adapter
            and not (self.must_run_alone or other.must_run_alone)
            and not (self.is_prefilling or other.is_prefilling)
        )

    def merge(self, other: Batch) -> None:
        """Move the answers of another batch into this one."""
        self._merge_cache(other)
        self.sequences += other.sequences
        self._next += other._next

    def remove(self, is_dropped: Callable[[SequenceState], bool]) -> None:
        """Remove answers and their part of the cache."""
        keep = [row for row, sequence in enumerate(self.sequences) if not is_dropped(sequence)]
        if len(keep) == len(self.sequences):
            return
        self.sequences = [self.sequences[row] for row in keep]
        self._next = [self._next[row] for row in keep] if self._next else []
        self._keep_rows(keep)

    @abstractmethod
    def _forward(self, columns: list[list[int]], *, keep_all: bool) -> torch.Tensor:
        """Compute tokens, (answers, new); return at least the last logits, (answers, new,
        vocabulary).
        """

    @abstractmethod
    def _merge_cache(self, other: Batch) -> None:
        """Append the rows of another batch's cache."""

    @abstractmethod
    def _keep_rows(self, rows: Sequence[int]) -> None:
        """Remove all but those rows from the cache."""

    def _checked(self, columns: list[list[int]], *, keep_all: bool = False) -> torch.Tensor:
        """Return the logits; raise `GenerationError` if a position has none to choose from."""
        logits = self._forward(columns, keep_all=keep_all)
        if not bool(torch.isfinite(logits.max(dim=-1).values).all()):
            problem = "The model's output is not a number: its training diverged. Use an earlier checkpoint."
            raise GenerationError(409, "model_diverged", problem)
        return logits

    def _push(self, logits: torch.Tensor) -> list[Reply]:
        self._next = sample(self._constrained(logits), [sequence.sampling for sequence in self.sequences])
        stop_tokens = self.weights.stop_tokens
        replies: list[Reply] = []
        for row, (sequence, token) in enumerate(zip(self.sequences, self._next, strict=True)):
            logprob = None
            if sequence.completion.logprobs is not None:
                [logprob] = self._logprobs(logits[row][None], [token], sequence)
            replies += sequence.push(token, stop_tokens, logprob)
        self.remove(lambda sequence: sequence.finished)
        return replies

    def _logprobs(self, logits: torch.Tensor, tokens: Sequence[int], sequence: SequenceState) -> Iterator[TokenLogprob]:
        """Yield the log-probabilities of tokens; logits are (tokens, vocabulary)."""
        data = self.weights.token_bytes
        for token, (logprob, top) in zip(
            tokens, log_probabilities(logits, tokens, sequence.completion.logprobs or 0), strict=True
        ):
            yield TokenLogprob(data(token), logprob, tuple((data(other), value) for other, value in top))

    def _constrained(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply penalties, biases and constraints (-inf) to logits, (answers, vocabulary)."""
        penalty = self.weights.repetition_penalty
        if penalty != 1:
            logits = apply_repetition_penalty(
                logits, penalty, [sequence.prompt + sequence.tokens for sequence in self.sequences]
            )
        logits = apply_penalties(
            logits,
            [sequence.sampling for sequence in self.sequences],
            [sequence.tokens for sequence in self.sequences],
        )
        matchers = [sequence.matcher for sequence in self.sequences]
        if not any(matchers):
            return logits
        return logits.masked_fill(~allowed_tokens(matchers, logits.shape[-1]).to(logits.device), -torch.inf)
