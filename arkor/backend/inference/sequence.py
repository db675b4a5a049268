"""The state of one answer, and the effect of each token on it."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from arkor.backend.inference.detokenizer import StopStrings, TextStream
from arkor.backend.inference.grammar import GrammarMatcher
from arkor.backend.inference.messages import (
    CallDelta,
    CompletionRequest,
    Delta,
    Done,
    GenerationError,
    Reply,
    TokenLogprob,
)
from arkor.backend.inference.sampling import SamplingParams
from arkor.backend.inference.tool_calls.parser import ToolCallParser


@define
class SequenceState:
    """An answer in progress, of at most `limit` tokens.

    `prompt_logprobs` are those of the prompt's tokens that are computed, None if they are not
    asked for; `echo` is the prompt's text. `engine` is the engine that computes it.
    """

    completion: CompletionRequest
    prompt: list[int]
    limit: int
    text: TextStream
    sampling: SamplingParams
    stop_strings: StopStrings
    matcher: GrammarMatcher | None = None
    call_parser: ToolCallParser | None = None
    notes: tuple[str, ...] = ()
    echo: str = ""
    prompt_logprobs: list[TokenLogprob] | None = None
    tokens: list[int] = field(factory=list)
    finished: bool = False
    engine: str | None = None
    _logprobs: list[tuple[int, TokenLogprob]] = field(factory=list)  # not sent; each with its position in the text
    _generated_length: int = 0  # characters, those of a stop string and after it included
    _visible_length: int = 0

    def start(self) -> list[Reply]:
        """Return the replies before the first token: the prompt, if it is to be repeated."""
        replies: list[Reply] = []
        if self.completion.echo:
            replies.append(Delta(self.completion.id, self.echo, tuple(self.prompt_logprobs or ())))
        if self.limit > 0:
            return replies
        self.finished = True
        return [*replies, self._done("length")]

    def push(self, token: int, stop_tokens: frozenset[int], logprob: TokenLogprob | None = None) -> list[Reply]:
        """Append a token; return the replies for it."""
        self.tokens.append(token)
        is_stop = token in stop_tokens
        if logprob is not None and not (is_stop and self.completion.prompt is None):
            self._logprobs.append((self._generated_length, logprob))
        try:
            ended = self._is_finished_by(token, is_stop)
        except GenerationError as failure:  # fails this answer, not the batch
            self.finished = True
            return [failure.reply(self.completion.id)]
        replies = [] if is_stop else self._deltas(self.text.push(token))
        ended = ended or self.stop_strings.hit
        self.finished = ended or len(self.tokens) >= self.limit
        if self.finished:
            replies += self._flush()
            has_calls = self.call_parser is not None and self.call_parser.count > 0
            replies.append(self._done("length" if not ended else "tool_calls" if has_calls else "stop"))
        return replies

    def restart(self) -> None:
        """Prepare to be continued by another engine, which computes the prompt again."""
        if self.prompt_logprobs is not None and not self.tokens:
            del self.prompt_logprobs[1:]

    def _done(self, reason: str) -> Done:
        return Done(self.completion.id, reason, len(self.prompt), len(self.tokens), self.notes, self.engine)

    def _is_finished_by(self, token: int, is_stop: bool) -> bool:
        """Whether the answer ends with that token."""
        if self.matcher is None:
            return is_stop
        self.matcher.consume(token, ends=is_stop)
        return is_stop or self.matcher.finished

    def _deltas(self, text: str) -> list[Reply]:
        self._generated_length += len(text)
        deltas = [Delta(self.completion.id, text)] if self.call_parser is None else self.call_parser.push(text)
        return self._without_stop_strings(deltas)

    def _without_stop_strings(self, deltas: Sequence[Delta | CallDelta]) -> list[Reply]:
        """Remove a stop string and everything after it."""
        visible: list[Reply] = []
        for delta in deltas:
            if self.stop_strings.hit:
                break
            if isinstance(delta, CallDelta):
                visible.append(delta)
                self._logprobs.clear()  # of the markup around calls
            elif text := self.stop_strings.push(delta.text):
                visible.append(self._delta(text))
        return visible

    def _delta(self, text: str) -> Delta:
        """Return a delta with the tokens up to here, without those of a stop string."""
        self._visible_length += len(text)
        tokens = [
            logprob
            for position, logprob in self._logprobs
            if not self.stop_strings.hit or position < self._visible_length
        ]
        self._logprobs.clear()
        return Delta(self.completion.id, text, tuple(tokens))

    def _flush(self) -> list[Reply]:
        """Return the text withheld for incomplete characters, markup and stop strings."""
        replies: list[Reply] = []
        if not self.stop_strings.hit:
            replies += self._deltas(self.text.flush())
            if self.call_parser is not None:
                replies += self._without_stop_strings(self.call_parser.flush())
        if self.call_parser is not None and self.call_parser.in_call:
            self._logprobs.clear()
        rest = self._delta("" if self.stop_strings.hit else self.stop_strings.flush())
        return [*replies, rest] if rest.text or rest.logprobs else replies
