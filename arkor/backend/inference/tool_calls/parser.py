"""Parse text and tool calls out of an answer while it is generated."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator

from attrs import define, field

from arkor.backend.compute.tool_call_format import ToolCallFormat
from arkor.backend.inference.detokenizer import overlap
from arkor.backend.inference.messages import CallDelta, Delta

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*')


@define
class ToolCallParser:
    """Splits the text of an answer into text and calls, without the markup around calls.

    The answer must satisfy a constraint of `call_constraint()`. `in_call`: a call comes next.
    """

    id: str
    call_format: ToolCallFormat
    in_call: bool
    count: int = 0
    _pending: str = ""
    _in_arguments: bool = False
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False
    _text_started: bool = field(default=False, init=False)

    def push(self, text: str) -> list[Delta | CallDelta]:
        """Add text; return the parts that are final."""
        self._pending += text
        return list(self._parse())

    def flush(self) -> list[Delta | CallDelta]:
        """Return the rest at the end of the answer."""
        text, self._pending = self._pending, ""
        return [Delta(self.id, text)] if text and not self.in_call else []

    def _parse(self) -> Iterator[Delta | CallDelta]:
        if not self.in_call:
            yield from self._emit_text()
        while self.in_call and self._pending:
            before = self._pending
            yield from self._emit_arguments() if self._in_arguments else self._begin_call()
            if self._pending == before:
                return

    def _emit_text(self) -> Iterator[Delta]:
        """Yield the text before the first call."""
        opening = self.call_format.opening.strip()
        if not opening:
            self.in_call = not self._text_started and self._pending.startswith("{")
            visible = "" if self.in_call else self._pending
        else:
            visible, found, _ = self._pending.partition(opening)
            self.in_call = bool(found)
            if not found:
                visible = visible[: len(visible) - overlap(visible, opening)]
        self._text_started = self._text_started or bool(self._pending)
        self._pending = self._pending[len(visible) + (len(opening) if self.in_call else 0) :]
        if visible:
            yield Delta(self.id, visible)

    def _begin_call(self) -> Iterator[CallDelta]:
        """Yield the name of the next call once it is complete; skip the markup before it."""
        position = self._pending.find("{")
        found = _HEAD.match(self._pending, position) if position >= 0 else None
        if found is None:
            return
        self._pending = self._pending[found.end() :]
        self._in_arguments, self._depth = True, 0
        yield CallDelta(self.id, self.count, "", f"call_{uuid.uuid4().hex[:24]}", found[1])

    def _emit_arguments(self) -> Iterator[CallDelta]:
        """Yield the JSON of the arguments, up to its closing bracket."""
        if self._depth == 0:
            if not (stripped := self._pending.lstrip()):
                return
            self._pending = stripped
        for position, char in enumerate(self._pending):
            self._track(char)
            if self._depth == 0 and not self._in_string:
                self._in_arguments = False
                visible, rest = self._pending[: position + 1], self._pending[position + 1 :]
                yield CallDelta(self.id, self.count, visible)
                self.count += 1
                self._pending = rest.lstrip()
                return
        visible, self._pending = self._pending, ""
        yield CallDelta(self.id, self.count, visible)

    def _track(self, char: str) -> None:
        if self._in_string:
            self._in_string = self._escaped or char != '"'
            self._escaped = char == "\\" and not self._escaped
        elif char == '"':
            self._in_string = True
        else:
            self._depth += (char in "{[") - (char in "}]")
