"""One answer in progress: what each further token means for it."""

from __future__ import annotations

from attrs import define, field

from arkor.backend.inference.detokenizer import StopStrings, TextStream
from arkor.backend.inference.grammar import GrammarMatcher
from arkor.backend.inference.messages import CallDelta, CompletionRequest, Delta, Done, GenerationError, Reply
from arkor.backend.inference.sampling import SamplingParams
from arkor.backend.inference.tool_calls import ToolCallParser


@define
class SequenceState:
    """An answer in progress; `limit` is how many tokens it may have."""

    completion: CompletionRequest
    prompt: list[int]
    limit: int
    text: TextStream
    sampling: SamplingParams
    stop_strings: StopStrings
    matcher: GrammarMatcher | None = None
    call_reader: ToolCallParser | None = None
    tokens: list[int] = field(factory=list)
    finished: bool = False

    def push(self, token: int, stop_tokens: frozenset[int]) -> list[Reply]:
        """Take in a token; the replies that follow from it."""
        self.tokens.append(token)
        is_stop = token in stop_tokens
        try:
            ended = self._is_finished_by(token, is_stop)
        except GenerationError as failure:  # the constraint is at a loss; the answers beside this one are not
            self.finished = True
            return [failure.reply(self.completion.id)]
        replies = [] if is_stop else self._deltas(self.text.push(token))
        ended = ended or self.stop_strings.hit
        self.finished = ended or len(self.tokens) >= self.limit
        if self.finished:
            replies += [*self._flush(), self._done(ended)]
        return replies

    def _is_finished_by(self, token: int, is_stop: bool) -> bool:
        """Whether nothing can follow that token."""
        if self.matcher is None:
            return is_stop
        self.matcher.consume(token, ends=is_stop)
        return is_stop or self.matcher.finished

    def _deltas(self, text: str) -> list[Reply]:
        deltas = [Delta(self.completion.id, text)] if self.call_reader is None else self.call_reader.push(text)
        return [delta for delta in map(self._visible, deltas) if delta is not None]

    def _visible(self, delta: Delta | CallDelta) -> Reply | None:
        """What of it may be seen: nothing of a stop string, nor behind one."""
        if self.stop_strings.hit or isinstance(delta, CallDelta):
            return None if self.stop_strings.hit else delta
        text = self.stop_strings.push(delta.text)
        return Delta(delta.id, text) if text else None

    def _flush(self) -> list[Reply]:
        """What was held back of characters, markup and stop strings."""
        if self.stop_strings.hit:
            return []
        replies = self._deltas(self.text.flush())
        if self.call_reader is not None:
            replies += [delta for delta in map(self._visible, self.call_reader.flush()) if delta is not None]
        text = "" if self.stop_strings.hit else self.stop_strings.flush()
        return [*replies, Delta(self.completion.id, text)] if text else replies

    def _done(self, ended: bool) -> Done:
        has_calls = self.call_reader is not None and self.call_reader.count > 0
        reason = "length" if not ended else "tool_calls" if has_calls else "stop"
        return Done(self.completion.id, reason, len(self.prompt), len(self.tokens))
