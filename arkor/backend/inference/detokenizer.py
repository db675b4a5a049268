"""Tokens → text that is final: whole characters, and nothing of a stop string.

Which tokens come is decided in `sampling.py`; what of the text is a tool call in `tool_calls.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextStream:
    """Tokens → text, as far as it is final: a character is never cut, nor given twice."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._window = 0  # tokens before it are settled; those up to `_settled` are decoded again, for their spacing
        self._settled = 0
        self._emitted = 0  # characters of the window's text

    def push(self, token: int) -> str:
        """The text that this token makes final; often empty in the middle of a character."""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._window :])
        complete = text.rstrip("\ufffd")  # what an unfinished character looks like
        new_text = complete[self._emitted :]
        self._emitted = max(self._emitted, len(complete))
        if len(complete) == len(text):
            self._window, self._settled = self._settled, len(self._tokens)
            self._emitted = len(self._decode(self._tokens[self._window :]))
        return new_text

    def flush(self) -> str:
        """What is left when no more tokens come: the replacement characters of what stayed unfinished."""
        text = self._decode(self._tokens[self._window :])
        new_text, self._emitted = text[self._emitted :], len(text)
        return new_text


class StopStrings:
    """Text up to where the first of some strings begins. What may be the beginning of one is held back."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._buffer = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The text that can be shown now; nothing any more once one of them has come (`hit`)."""
        if not self._strings:
            return text
        self._buffer += text
        positions = [position for position in map(self._buffer.find, self._strings) if position >= 0]
        if positions:
            self.hit = True
            visible, self._buffer = self._buffer[: min(positions)], ""
            return visible
        return self._release(len(self._buffer) - self._partial_match_length())

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        return self._release(len(self._buffer))

    def _release(self, count: int) -> str:
        visible, self._buffer = self._buffer[:count], self._buffer[count:]
        return visible

    def _partial_match_length(self) -> int:
        """How many characters at the end may be the beginning of one of the strings."""
        return max(overlap(self._buffer, string) for string in self._strings)


def overlap(text: str, string: str) -> int:
    """The longest end of `text` that is a beginning of `string`, short of the whole, in characters."""
    longest = min(len(text), len(string) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(string[:length])), 0)
