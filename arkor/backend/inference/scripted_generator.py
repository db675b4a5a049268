"""A deterministic generator without torch, for tests."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from attrs import define

from arkor.backend.inference.detokenizer import StopStrings
from arkor.backend.inference.messages import CallDelta, CompletionRequest, Delta, Done, GenerationError, Reply
from arkor.protocol.chat import message_text


@define
class _ScriptedCompletion:
    completion: CompletionRequest
    words: list[str]
    stop_strings: StopStrings
    emitted: int = 0

    def next_reply(self) -> list[Reply]:
        """Return the next word, as text or as arguments of a call."""
        word, completion = self.words[self.emitted - 1], self.completion
        if self._is_calling:
            first = completion.tool_choice.callable[0]["name"] if completion.tool_choice and self.emitted == 1 else None
            return [CallDelta(completion.id, 0, word, f"call_{completion.id}" if first else None, first)]
        text = self.stop_strings.push(word)
        text += self.stop_strings.flush() if self.finished and not self.stop_strings.hit else ""
        return [Delta(completion.id, text)] if text else []

    @property
    def finished(self) -> bool:
        return self.stop_strings.hit or self.emitted >= min(
            len(self.words), self.completion.max_tokens or len(self.words)
        )

    @property
    def reason(self) -> str:
        if not self.stop_strings.hit and self.emitted < len(self.words):
            return "length"
        return "tool_calls" if self._is_calling else "stop"

    @property
    def _is_calling(self) -> bool:
        return self.completion.tool_choice is not None and self.completion.tool_choice.forced


class ScriptedGenerator:
    """Answers `scripted: <last user message>`, one word a step.

    `ARKOR_SCRIPTED_TOKEN_SECONDS` is the duration of a step. The model `scripted/crash` exits the
    process, `scripted/fail` fails at once and `scripted/break` after two words. A constrained
    answer is the first choice or an example of the schema; a forced call is a call of the first
    tool with example arguments. Regular expressions and grammars are not supported.
    """

    def __init__(self) -> None:
        self._active: dict[str, _ScriptedCompletion] = {}
        self._failures: list[Reply] = []
        self._seconds = float(os.environ.get("ARKOR_SCRIPTED_TOKEN_SECONDS") or 0)

    def submit(self, completion: CompletionRequest) -> None:
        """See `Generator`."""
        if completion.model == "scripted/crash":
            os._exit(13)
        try:
            words = re.findall(r"\S+\s*|\s+", _scripted_text(completion))
        except GenerationError as failure:
            self._failures.append(failure.reply(completion.id))
        else:
            self._active[completion.id] = _ScriptedCompletion(completion, words, StopStrings(completion.stop))

    def cancel(self, completion_id: str) -> None:
        """See `Generator`."""
        self._active.pop(completion_id, None)

    def step(self) -> list[Reply]:
        """See `Generator`."""
        time.sleep(self._seconds)
        failures, self._failures = self._failures, []
        return failures + [reply for active in list(self._active.values()) for reply in self._advance(active)]

    @property
    def busy(self) -> bool:
        """See `Generator`."""
        return bool(self._active or self._failures)

    def _advance(self, active: _ScriptedCompletion) -> list[Reply]:
        completion = active.completion
        if completion.model == "scripted/fail" or (completion.model == "scripted/break" and active.emitted == 2):
            self.cancel(completion.id)
            error = GenerationError(503, "scripted", "The scripted generator fails, as it was asked to.")
            return [error.reply(completion.id)]
        active.emitted += 1
        replies = active.next_reply()
        if active.finished:
            self.cancel(completion.id)
            prompt = sum(len(message_text(message).split()) for message in completion.messages)
            replies.append(Done(completion.id, active.reason, prompt, active.emitted))
        return replies


def _scripted_text(completion: CompletionRequest) -> str:
    """Return the whole answer. Raise `GenerationError`."""
    constraint, tool_choice = completion.constraint, completion.tool_choice
    if tool_choice is not None and tool_choice.forced:
        return _scripted_json("tools", tool_choice.callable[0].get("parameters") or {})
    if constraint is None:
        questions = [message_text(message) for message in completion.messages if message["role"] == "user"]
        return f"scripted: {questions[-1] if questions else ''}"
    if constraint.kind == "choice":
        return str(constraint.value[0])
    if constraint.kind == "json":
        return _scripted_json(constraint.field, constraint.value)
    problem = "The scripted engine does not support it; use choice or json."
    raise GenerationError(400, "constraints_not_configured", problem, field=constraint.field)


def _scripted_json(field: str, schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(_example(schema), ensure_ascii=False)
    except (LookupError, TypeError, AttributeError, RecursionError):
        problem = "The scripted engine finds no example of this schema; use a simpler one."
        raise GenerationError(400, "invalid_schema", problem, field=field) from None


_EXAMPLES = {"string": "", "integer": 0, "number": 0, "boolean": True, "null": None, "array": [], "object": {}}


def _example(schema: Mapping[str, Any], root: Mapping[str, Any] | None = None) -> Any:
    """Return an example of a schema with types, properties, constants and references only."""
    root = schema if root is None else root
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    if "$ref" in schema:
        return _example(root[schema["$ref"].split("/")[1]][schema["$ref"].split("/")[2]], root)
    if "anyOf" in schema:
        return _example(schema["anyOf"][0], root)
    if "properties" in schema:
        return {name: _example(part, root) for name, part in schema["properties"].items()}
    kind = schema.get("type", "object")
    return _EXAMPLES[kind if isinstance(kind, str) else kind[0]]
