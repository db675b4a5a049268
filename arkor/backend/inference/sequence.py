"""One answer in progress: what each further token means for it."""

from __future__ import annotations

from attrs import define, field

from arkor.backend.inference.detokenizer import StopStrings, TextStream
from arkor.backend.inference.grammar import Guide
from arkor.backend.inference.messages import CallDelta, CannotAnswer, Completion, Delta, Done, Reply
from arkor.backend.inference.sampling import Taste
from arkor.backend.inference.tool_calls import CallReader


@define
class Answer:
    """An answer in progress; `limit` is how many tokens it may have."""

    completion: Completion
    prompt: list[int]
    limit: int
    text: TextStream
    taste: Taste
    stops: StopStrings
    guide: Guide | None = None
    calls: CallReader | None = None
    tokens: list[int] = field(factory=list)
    finished: bool = False

    def push(self, token: int, stop_tokens: frozenset[int]) -> list[Reply]:
        """Take in a token; the replies that follow from it."""
        self.tokens.append(token)
        is_stop = token in stop_tokens
        try:
            ended = self._followed(token, is_stop)
        except CannotAnswer as lost:  # the constraint is at a loss; the answers beside this one are not
            self.finished = True
            return [lost.reply(self.completion.id)]
        replies = [] if is_stop else self._read(self.text.push(token))
        ended = ended or self.stops.hit
        self.finished = ended or len(self.tokens) >= self.limit
        if self.finished:
            replies += [*self._rest(), self._done(ended)]
        return replies

    def _followed(self, token: int, is_stop: bool) -> bool:
        """Whether nothing can follow that token."""
        if self.guide is None:
            return is_stop
        self.guide.consume(token, ends=is_stop)
        return is_stop or self.guide.over

    def _read(self, text: str) -> list[Reply]:
        pieces = [Delta(self.completion.id, text)] if self.calls is None else self.calls.push(text)
        return [piece for piece in map(self._shown, pieces) if piece is not None]

    def _shown(self, piece: Delta | CallDelta) -> Reply | None:
        """What of it may be seen: nothing of a stop string, nor behind one."""
        if self.stops.hit or isinstance(piece, CallDelta):
            return None if self.stops.hit else piece
        text = self.stops.push(piece.text)
        return Delta(piece.id, text) if text else None

    def _rest(self) -> list[Reply]:
        """What was held back of characters, markup and stop strings."""
        if self.stops.hit:
            return []
        replies = self._read(self.text.flush())
        if self.calls is not None:
            replies += [piece for piece in map(self._shown, self.calls.flush()) if piece is not None]
        text = "" if self.stops.hit else self.stops.flush()
        return [*replies, Delta(self.completion.id, text)] if text else replies

    def _done(self, ended: bool) -> Done:
        called = self.calls is not None and self.calls.count > 0
        reason = "length" if not ended else "tool_calls" if called else "stop"
        return Done(self.completion.id, reason, len(self.prompt), len(self.tokens))
