"""A deterministic generator that needs no torch, for tests of everything around it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from attrs import define

from arkor.backend.inference.detokenizer import StopStrings
from arkor.backend.inference.messages import CallDelta, CannotAnswer, Completion, Delta, Done, Reply
from arkor.protocol.chat import message_text


@define
class _Echo:
    completion: Completion
    words: list[str]
    stops: StopStrings
    said: int = 0

    def word(self) -> list[Reply]:
        """The word that is next, as text or as arguments of a call."""
        word, completion = self.words[self.said - 1], self.completion
        if self._calls:
            first = completion.calling.callable[0]["name"] if completion.calling and self.said == 1 else None
            return [CallDelta(completion.id, 0, word, f"call_{completion.id}" if first else None, first)]
        text = self.stops.push(word)
        text += self.stops.flush() if self.over and not self.stops.hit else ""
        return [Delta(completion.id, text)] if text else []

    @property
    def over(self) -> bool:
        return self.stops.hit or self.said >= min(len(self.words), self.completion.max_tokens or len(self.words))

    @property
    def reason(self) -> str:
        if not self.stops.hit and self.said < len(self.words):
            return "length"
        return "tool_calls" if self._calls else "stop"

    @property
    def _calls(self) -> bool:
        return self.completion.calling is not None and self.completion.calling.forced


class EchoGenerator:
    """Says `scripted: <last user message>`, a word a step.

    `ARKOR_SCRIPTED_TOKEN_SECONDS` is the time a step takes. The model `scripted/crash` ends the process;
    `scripted/fail` is refused, and `scripted/break` fails behind its second word. Where the answer is constrained, it
    is the first choice or an example of the schema; where a tool must be called, the call of the first with an
    example of its arguments. A regex or a grammar is beyond it.
    """

    def __init__(self) -> None:
        self._echoes: dict[str, _Echo] = {}
        self._refusals: list[Reply] = []
        self._seconds = float(os.environ.get("ARKOR_SCRIPTED_TOKEN_SECONDS") or 0)

    def submit(self, completion: Completion) -> None:
        """See `Generator`."""
        if completion.model == "scripted/crash":
            os._exit(13)
        try:
            words = re.findall(r"\S+\s*|\s+", _text(completion))
        except CannotAnswer as refusal:
            self._refusals.append(refusal.reply(completion.id))
        else:
            self._echoes[completion.id] = _Echo(completion, words, StopStrings(completion.stop))

    def cancel(self, completion_id: str) -> None:
        """See `Generator`."""
        self._echoes.pop(completion_id, None)

    def step(self) -> list[Reply]:
        """See `Generator`."""
        time.sleep(self._seconds)
        refusals, self._refusals = self._refusals, []
        return refusals + [reply for echo in list(self._echoes.values()) for reply in self._say(echo)]

    @property
    def busy(self) -> bool:
        """See `Generator`."""
        return bool(self._echoes or self._refusals)

    def _say(self, echo: _Echo) -> list[Reply]:
        completion = echo.completion
        if completion.model == "scripted/fail" or (completion.model == "scripted/break" and echo.said == 2):
            self.cancel(completion.id)
            return [
                CannotAnswer(503, "scripted", "The scripted generator fails, as it was asked to.").reply(completion.id)
            ]
        echo.said += 1
        replies = echo.word()
        if echo.over:
            self.cancel(completion.id)
            prompt = sum(len(message_text(message).split()) for message in completion.messages)
            replies.append(Done(completion.id, echo.reason, prompt, echo.said))
        return replies


def _text(completion: Completion) -> str:
    """What there is to say. Raises `CannotAnswer`."""
    constraint, calling = completion.constraint, completion.calling
    if calling is not None and calling.forced:
        return _json("tools", calling.callable[0].get("parameters") or {})
    if constraint is None:
        questions = [message_text(message) for message in completion.messages if message["role"] == "user"]
        return f"scripted: {questions[-1] if questions else ''}"
    if constraint.kind == "choice":
        return str(constraint.value[0])
    if constraint.kind == "json":
        return _json(constraint.field, constraint.value)
    sentence = f"{constraint.field}: the scripted engine cannot hold an answer to it; use choice or json"
    raise CannotAnswer(400, "constraints_not_configured", sentence)


def _json(field: str, schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(_example(schema), ensure_ascii=False)
    except (LookupError, TypeError, AttributeError, RecursionError):
        sentence = f"{field}: the scripted engine finds no example of this schema; a plainer one it may know"
        raise CannotAnswer(400, "invalid_schema", sentence) from None


_EXAMPLES = {"string": "", "integer": 0, "number": 0, "boolean": True, "null": None, "array": [], "object": {}}


def _example(schema: Mapping[str, Any], whole: Mapping[str, Any] | None = None) -> Any:
    """What fits a plain schema: of types, properties, constants and references, without bounds."""
    whole = schema if whole is None else whole
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if "$ref" in schema:
        return _example(whole[schema["$ref"].split("/")[1]][schema["$ref"].split("/")[2]], whole)
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], whole)
    if "properties" in schema:
        return {name: _example(part, whole) for name, part in schema["properties"].items()}
    kind = schema.get("type", "object")
    return _EXAMPLES[kind if isinstance(kind, str) else kind[0]]
