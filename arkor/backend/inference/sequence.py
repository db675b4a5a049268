"""The state of one answer, and the effect of each token on it."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from arkor.backend.inference.detokenizer import StopStrings, TextStream
from arkor.backend.inference.grammar import GrammarMatcher
from arkor.backend.inference.messages import CallDelta, CompletionRequest, Delta, Done, GenerationError, Reply
from arkor.backend.inference.sampling import SamplingParams
from arkor.backend.inference.tool_calls.parser import ToolCallParser


@define
class SequenceState:
    """An answer in progress, of at most `limit` tokens."""

    completion: CompletionRequest
    prompt: list[int]
    limit: int
    text: TextStream
    sampling: SamplingParams
    stop_strings: StopStrings
    matcher: GrammarMatcher | None = None
    call_parser: ToolCallParser | None = None
    tokens: list[int] = field(factory=list)
    finished: bool = False

    def push(self, token: int, stop_tokens: frozenset[int]) -> list[Reply]:
        """Append a token; return the replies for it."""
        self.tokens.append(token)
        is_stop = token in stop_tokens
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
            reason = "length" if not ended else "tool_calls" if has_calls else "stop"
            replies.append(Done(self.completion.id, reason, len(self.prompt), len(self.tokens)))
        return replies

    def _is_finished_by(self, token: int, is_stop: bool) -> bool:
        """Whether the answer ends with that token."""
        if self.matcher is None:
            return is_stop
        self.matcher.consume(token, ends=is_stop)
        return is_stop or self.matcher.finished

    def _deltas(self, text: str) -> list[Reply]:
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
            elif text := self.stop_strings.push(delta.text):
                visible.append(Delta(delta.id, text))
        return visible

    def _flush(self) -> list[Reply]:
        """Return the text withheld for incomplete characters, markup and stop strings."""
        if self.stop_strings.hit:
            return []
        replies = self._deltas(self.text.flush())
        if self.call_parser is not None:
            replies += self._without_stop_strings(self.call_parser.flush())
        text = "" if self.stop_strings.hit else self.stop_strings.flush()
        return [*replies, Delta(self.completion.id, text)] if text else replies
