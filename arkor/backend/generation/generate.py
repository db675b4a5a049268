"""Base and adapter → tokens → text: the answers of one process, side by side.

Answers by the same weights are decoded as one batch, which others join and leave between two tokens; different
weights take turns. What is in memory is in `weights.py`; nothing here knows of processes or HTTP.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from transformers import DynamicCache, RepetitionPenaltyLogitsProcessor
from transformers.cache_utils import DynamicLayer

from arkor.backend.generation.completion import CannotAnswer, Completion, Delta, Done, Reply
from arkor.backend.generation.weights import Shelf, Weights
from arkor.backend.threads import Threads

#: Tokens of an answer when the request leaves its length open.
DEFAULT_MAX_TOKENS = 512

#: A long prompt is read in pieces of so many tokens, between which the other answers get their next token.
PREFILL_TOKENS = 512

#: Answers in progress; more of them wait their turn.
MOST_ANSWERS = 16

#: How long a step waits for a model to be loaded when there is nothing else to do, in seconds.
NAP_SECONDS = 0.05

#: Below this a temperature would overflow; it is as good as greedy.
COLDEST = 1e-4


class TextStream:
    """Tokens → text, as far as it is final: a character is never cut, nor given twice."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._window = 0  # tokens before it are settled; those up to `_settled` are decoded again, for their spacing
        self._settled = 0
        self._given = 0  # characters of the window's text

    def push(self, token: int) -> str:
        """The text that this token makes final; often empty in the middle of a character."""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._window :])
        whole = text.rstrip("\ufffd")  # what an unfinished character looks like
        fresh = whole[self._given :]
        self._given = max(self._given, len(whole))
        if len(whole) == len(text):
            self._window, self._settled = self._settled, len(self._tokens)
            self._given = len(self._decode(self._tokens[self._window :]))
        return fresh

    def flush(self) -> str:
        """What is left when no more tokens come: the replacement characters of what stayed unfinished."""
        text = self._decode(self._tokens[self._window :])
        fresh, self._given = text[self._given :], len(text)
        return fresh


def sample(logits: torch.Tensor, temperature: float, top_p: float, dice: torch.Generator) -> int:
    """A token by chance, from the likeliest ones that together reach `top_p`. `logits`: (vocabulary,), fp32."""
    likely = torch.softmax(logits / temperature, dim=-1)
    if top_p >= 1:
        return int(torch.multinomial(likely, 1, generator=dice))
    likely, tokens = _nucleus(likely, top_p)
    return int(tokens[torch.multinomial(likely, 1, generator=dice)])


def _nucleus(probabilities: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The probabilities of the likeliest tokens, 0 from where they reach `top_p`, and which tokens these are."""
    vocabulary = len(probabilities)
    likely, tokens = probabilities.topk(min(1024, vocabulary))  # nearly always enough, and sorting all of them is slow
    if likely.sum() < top_p:
        likely, tokens = probabilities.sort(descending=True)
    before = likely.cumsum(0) - likely
    return torch.where(before < top_p, likely, 0), tokens


@define
class Answer:
    """An answer in progress."""

    completion: Completion
    prompt: list[int]
    limit: int
    text: TextStream
    tokens: list[int] = field(factory=list)
    dice: torch.Generator = field(factory=torch.Generator)
    finished: bool = False

    def choose(self, logits: torch.Tensor, greedy: int, penalty: float) -> int:
        """The next token; `greedy` is the likeliest one. `logits`: (vocabulary,)."""
        completion = self.completion
        if penalty == 1 and completion.temperature < COLDEST:
            return greedy
        scores = logits.float().cpu()
        if penalty != 1:
            seen = torch.tensor([self.prompt + self.tokens])
            scores = RepetitionPenaltyLogitsProcessor(penalty)(seen, scores[None])[0]
        if completion.temperature < COLDEST:
            return int(scores.argmax())
        return sample(scores, completion.temperature, completion.top_p, self.dice)

    def push(self, token: int, stop_tokens: frozenset[int]) -> list[Reply]:
        """Take in a token; the replies that follow from it."""
        self.tokens.append(token)
        stopped = token in stop_tokens
        text = "" if stopped else self.text.push(token)
        self.finished = stopped or len(self.tokens) >= self.limit
        if self.finished:
            text += self.text.flush()
        replies: list[Reply] = [Delta(self.completion.id, text)] if text else []
        if self.finished:
            reason = "stop" if stopped else "length"
            replies.append(Done(self.completion.id, reason, len(self.prompt), len(self.tokens)))
        return replies


class Batch:
    """Answers by the same weights that get their tokens together. A new one holds a single answer, still unread.

    The cache is padded on the left, so that every answer's newest token is in the last column.
    """

    def __init__(self, weights: Weights, adapter: str | None, answer: Answer) -> None:
        self.weights = weights
        self.adapter = adapter
        self.answers = [answer]
        self._unread = answer.prompt
        self._lengths = [0]  # tokens in the cache, per answer
        self._next: list[int] = []
        self._cache, self._mergeable = _new_cache(weights.model)
        self._takes = inspect.signature(weights.model.forward).parameters

    @property
    def reading(self) -> bool:
        """Whether the prompt is not read to its end yet."""
        return bool(self._unread)

    def step(self) -> list[Reply]:
        """Read a piece of the prompt, or give every answer its next token. Raises `CannotAnswer`."""
        if self._unread:
            piece, self._unread = self._unread[:PREFILL_TOKENS], self._unread[PREFILL_TOKENS:]
            logits = self._forward([piece])
            return [] if self._unread else self._push(logits)
        return self._push(self._forward([[token] for token in self._next]))

    def joins(self, other: Batch) -> bool:
        """Whether the two could go on as one."""
        same = self.weights is other.weights and self.adapter == other.adapter
        return same and self._mergeable and not self.reading and not other.reading

    def absorb(self, other: Batch) -> None:
        """Take over the answers of another batch."""
        width = max(*self._lengths, *other._lengths)
        pairs = zip(self._cache.layers, other._cache.layers, strict=True)
        self._cache = DynamicCache(
            [
                (
                    torch.cat([_widened(mine.keys, width), _widened(theirs.keys, width)]),
                    torch.cat([_widened(mine.values, width), _widened(theirs.values, width)]),
                )
                for mine, theirs in pairs
            ]
        )
        self.answers += other.answers
        self._lengths += other._lengths
        self._next += other._next

    def drop(self, gone: Callable[[Answer], bool]) -> None:
        """Let go of some answers and of the room that they took in the cache."""
        keep = [row for row, answer in enumerate(self.answers) if not gone(answer)]
        if len(keep) == len(self.answers):
            return
        self.answers = [self.answers[row] for row in keep]
        self._next = [self._next[row] for row in keep] if self._next else []
        self._lengths = [self._lengths[row] for row in keep]
        if keep:  # else the batch is over, and its cache with it
            width = max(self._lengths)
            pairs = [(layer.keys, layer.values) for layer in self._cache.layers]
            self._cache = DynamicCache(
                [(_kept(keys, keep, width), _kept(values, keep, width)) for keys, values in pairs]
            )

    def _forward(self, columns: list[list[int]]) -> torch.Tensor:
        """Tokens (answers, new) → the logits behind the last ones (answers, vocabulary)."""
        self.weights.switch(self.adapter)
        model, new = self.weights.model, len(columns[0])
        positions = [list(range(have, have + new)) for have in self._lengths]
        inputs: dict[str, Any] = {
            "position_ids": torch.tensor(positions, device=model.device),
            "attention_mask": self._mask(new),
            "logits_to_keep": 1,
        }
        taken = {name: value for name, value in inputs.items() if name in self._takes and value is not None}
        tokens = torch.tensor(columns, device=model.device)
        with torch.inference_mode():
            out = model(input_ids=tokens, past_key_values=self._cache, use_cache=True, **taken)
        self._lengths = [have + new for have in self._lengths]
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _mask(self, new: int) -> torch.Tensor | None:
        """Hides the padding; None where there is none, which is faster."""
        width = max(self._lengths) + new
        if width == min(self._lengths) + new:
            return None
        rows = [[0] * (width - have - new) + [1] * (have + new) for have in self._lengths]
        return torch.tensor(rows, device=self.weights.model.device)

    def _push(self, logits: torch.Tensor) -> list[Reply]:
        highest, likeliest = logits.max(dim=-1)
        if not bool(torch.isfinite(highest).all()):
            sentence = "The model's output is not a number any more: this run has diverged. Try an earlier checkpoint."
            raise CannotAnswer(409, "model_diverged", sentence)
        penalty = self.weights.repetition_penalty
        choices = zip(self.answers, logits, likeliest.tolist(), strict=True)
        self._next = [answer.choose(row, greedy, penalty) for answer, row, greedy in choices]
        stop_tokens = self.weights.stop_tokens
        pairs = zip(self.answers, self._next, strict=True)
        replies = [reply for answer, token in pairs for reply in answer.push(token, stop_tokens)]
        self.drop(lambda answer: answer.finished)
        return replies


def _new_cache(model: Any) -> tuple[Any, bool]:
    """A cache, and whether two of its kind can be merged: attention that keeps every token, windowed or not."""
    cache = DynamicCache(config=model.config)
    if all(isinstance(layer, DynamicLayer) for layer in cache.layers):
        return DynamicCache(), True  # keeps what a window would forget: the mask hides it
    return cache, False


def _widened(states: torch.Tensor, width: int) -> torch.Tensor:
    """(answers, heads, tokens, head size), padded on the left to `width` tokens."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))


def _kept(states: torch.Tensor, rows: Sequence[int], width: int) -> torch.Tensor:
    return states[list(rows), :, states.shape[-2] - width :].contiguous()


@define
class _Waiting:
    completion: Completion
    weights: Future[Weights]


class TorchGenerator:
    """A `Generator` on models in memory; `memory` in bytes is what the bases together may take (see `Shelf`)."""

    def __init__(self, home: Path, memory: int | None = None) -> None:
        self._shelf = Shelf(home, memory)
        self._threads = Threads(torch.get_num_threads(), torch.set_num_threads)
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
            wait([one.weights for one in self._waiting], NAP_SECONDS, FIRST_COMPLETED)
        replies = self._admit()
        readers = [batch for batch in self._batches if batch.reading]
        with self._threads.measured():
            for batch in [batch for batch in self._batches if not batch.reading] + readers[:1]:
                replies += self._advance(batch)
        self._merge()
        return replies

    def _admit(self) -> list[Reply]:
        """Start on what waits, where its model is there and there is room."""
        replies: list[Reply] = []
        for one in list(self._waiting):
            in_progress = sum(len(batch.answers) for batch in self._batches)
            if not one.weights.done() or in_progress >= MOST_ANSWERS:
                continue
            self._waiting.remove(one)
            try:
                self._batches.append(_begin(one.completion, one.weights.result()))
            except Exception as error:  # noqa: BLE001 - whatever it is, it must reach who asked, and the others go on
                replies.append(self._refusal(error).reply(one.completion.id))
        return replies

    def _advance(self, batch: Batch) -> list[Reply]:
        ids = [answer.completion.id for answer in batch.answers]
        try:
            return batch.step()
        except Exception as error:  # noqa: BLE001 - as above
            self._batches.remove(batch)
            refusal = self._refusal(error)
            return [refusal.reply(id_) for id_ in ids]

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


def _begin(completion: Completion, weights: Weights) -> Batch:
    """Raises `CannotAnswer`."""
    prompt = weights.prompt(completion.messages)
    room = weights.context - len(prompt) if weights.context is not None else sys.maxsize
    limit = min(completion.max_tokens or DEFAULT_MAX_TOKENS, room)
    dice = torch.Generator()
    dice.seed()
    answer = Answer(completion, prompt, limit, TextStream(_decoder(weights.tokenizer)), dice=dice)
    return Batch(weights, completion.adapter, answer)


def _decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    def decode(tokens: list[int]) -> str:
        text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    return decode


def _is_out_of_memory(error: Exception) -> bool:
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)
