"""Incremental detokenization: tokens to text that is final, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextStream:
    """Decodes tokens one by one, without splitting or repeating characters."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._window = 0  # tokens from here to `_settled` are decoded again, as context for the spacing
        self._settled = 0
        self._emitted = 0  # characters of the window's text that were returned

    def push(self, token: int) -> str:
        """Add a token; return the text that is final now, which may be empty."""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._window :])
        complete = text.rstrip("\ufffd")  # an incomplete character
        new_text = complete[self._emitted :]
        self._emitted = max(self._emitted, len(complete))
        if len(complete) == len(text):
            self._window, self._settled = self._settled, len(self._tokens)
            self._emitted = len(self._decode(self._tokens[self._window :]))
        return new_text

    def flush(self) -> str:
        """Return the rest: replacement characters for an incomplete character."""
        text = self._decode(self._tokens[self._window :])
        new_text, self._emitted = text[self._emitted :], len(text)
        return new_text


class StopStrings:
    """Ends a text before the first of some strings; withholds text that may be the start of one."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._buffer = ""
        self.hit = False

    def push(self, text: str) -> str:
        """Add text; return the text that is final now. `hit` is set when a stop string occurs."""
        if not self._strings:
            return text
        self._buffer += text
        positions = [position for position in map(self._buffer.find, self._strings) if position >= 0]
        if positions:
            self.hit = True
            visible, self._buffer = self._buffer[: min(positions)], ""
            return visible
        partial = max(overlap(self._buffer, string) for string in self._strings)
        return self._release(len(self._buffer) - partial)

    def flush(self) -> str:
        """Return the withheld text at the end."""
        return self._release(len(self._buffer))

    def _release(self, count: int) -> str:
        visible, self._buffer = self._buffer[:count], self._buffer[count:]
        return visible


def overlap(text: str, string: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `string`."""
    longest = min(len(text), len(string) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(string[:length])), 0)
