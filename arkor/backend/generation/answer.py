"""One answer in progress: what each further token means for it."""

from __future__ import annotations

from attrs import define, field

from arkor.backend.generation.completion import Completion, Delta, Done, Reply
from arkor.backend.generation.sampling import Taste
from arkor.backend.generation.text import StopStrings, TextStream


@define
class Answer:
    """An answer in progress; `limit` is how many tokens it may have."""

    completion: Completion
    prompt: list[int]
    limit: int
    text: TextStream
    taste: Taste
    stops: StopStrings
    tokens: list[int] = field(factory=list)
    finished: bool = False

    def push(self, token: int, stop_tokens: frozenset[int]) -> list[Reply]:
        """Take in a token; the replies that follow from it."""
        self.tokens.append(token)
        stopped = token in stop_tokens
        text = "" if stopped else self.stops.push(self.text.push(token))
        stopped = stopped or self.stops.hit
        self.finished = stopped or len(self.tokens) >= self.limit
        if self.finished and not self.stops.hit:
            text += self.stops.push(self.text.flush())
        if self.finished and not self.stops.hit:
            text += self.stops.flush()
        replies: list[Reply] = [Delta(self.completion.id, text)] if text else []
        if self.finished:
            reason = "stop" if stopped or self.stops.hit else "length"
            replies.append(Done(self.completion.id, reason, len(self.prompt), len(self.tokens)))
        return replies
