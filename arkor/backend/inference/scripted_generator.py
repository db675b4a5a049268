"""A deterministic generator without torch, for tests."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from arkor.backend.inference.detokenizer import StopStrings
from arkor.backend.inference.messages import (
    CallDelta,
    CompletionRequest,
    Delta,
    Done,
    GenerationError,
    Reply,
    TokenLogprob,
)
from arkor.protocol.chat import message_text


class ScriptedGenerator:
    """A `Generator` that answers `scripted: <last user message>`, one word a step.

    `ARKOR_SCRIPTED_TOKEN_SECONDS` is the duration of a step. The model `scripted/crash` exits the
    process, `scripted/fail` fails at once and `scripted/break` after two words. A constrained
    answer is the first choice or an example of the schema; a forced call is a call of the first
    tool with example arguments. Regular expressions and grammars are not supported. A prompt is
    continued with `scripted: <prompt>`; each word is a token of probability 1.
    """

    def __init__(self) -> None:
        self._steps: dict[str, list[list[Reply]]] = {}
        self._seconds = float(os.environ.get("ARKOR_SCRIPTED_TOKEN_SECONDS") or 0)

    def submit(self, completion: CompletionRequest) -> None:
        if completion.model == "scripted/crash":
            os._exit(13)
        try:
            self._steps[completion.id] = _scripted_steps(completion)
        except GenerationError as error:
            self._steps[completion.id] = [[error.reply(completion.id)]]

    def cancel(self, completion_id: str) -> None:
        self._steps.pop(completion_id, None)

    def step(self) -> list[Reply]:
        time.sleep(self._seconds)
        replies = [reply for steps in self._steps.values() for reply in steps.pop(0)]
        self._steps = {completion_id: steps for completion_id, steps in self._steps.items() if steps}
        return replies

    @property
    def busy(self) -> bool:
        return bool(self._steps)


def _scripted_steps(completion: CompletionRequest) -> list[list[Reply]]:
    """Return the replies of each step. Raise `GenerationError`."""
    id_, tool_choice = completion.id, completion.tool_choice
    words = re.findall(r"\S+\s*|\s+", _scripted_text(completion)) or [""]
    error = GenerationError(503, "scripted", "The scripted generator fails, as it was asked to.")
    failure: list[Reply] = [error.reply(id_)]
    if completion.model == "scripted/fail":
        return [failure]
    function = tool_choice.callable[0] if tool_choice is not None and tool_choice.forced else None
    stop = StopStrings(completion.stop)
    steps: list[list[Reply]] = []
    if completion.echo:
        prompt = re.findall(r"\S+\s*|\s+", _scripted_prompt(completion))
        steps.append([Delta(id_, "".join(prompt), _scripted_logprobs(completion, prompt))])
    if completion.max_tokens == 0:
        return [[*steps[0], Done(id_, "length", len(prompt), 0)]]
    visible = words[: completion.max_tokens]
    for number, word in enumerate(visible, 1):
        if completion.model == "scripted/break" and number == 3:
            return [*steps, failure]
        if function is not None:
            first = {"call_id": f"call_{id_}", "name": function["name"]} if number == 1 else {}
            steps.append([CallDelta(id_, 0, word, **first)])
            continue
        text = stop.push(word)
        if number == len(visible) and not stop.hit:
            text += stop.flush()
        steps.append([Delta(id_, text, _scripted_logprobs(completion, [word]))] if text else [])
        if stop.hit:
            break
    complete = stop.hit or len(visible) == len(words)
    reason = "length" if not complete else "tool_calls" if function else "stop"
    prompt_tokens = sum(len(message_text(message).split()) for message in completion.messages)
    prompt_tokens += len(_scripted_prompt(completion).split())
    steps[-1].append(Done(id_, reason, prompt_tokens, len(steps) - completion.echo, _scripted_notes(completion)))
    return steps


def _scripted_prompt(completion: CompletionRequest) -> str:
    prompt = completion.prompt or ""
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def _scripted_logprobs(completion: CompletionRequest, words: list[str]) -> tuple[TokenLogprob, ...]:
    if completion.logprobs is None:
        return ()
    tokens = [tuple(word.encode()) for word in words]
    return tuple(TokenLogprob(token, 0.0, ((token, 0.0),) if completion.logprobs else ()) for token in tokens)


def _scripted_notes(completion: CompletionRequest) -> tuple[str, ...]:
    """Return the notes of a template without thinking."""
    names = ("enable_thinking", "reasoning_effort")
    ignored = [name for name in names if getattr(completion, name) is not None]
    given = completion.constraint.notes if completion.constraint else ()
    return (*given, *(f"{name} has no effect: the scripted engine ignores it." for name in ignored))


def _scripted_text(completion: CompletionRequest) -> str:
    """Return the whole answer. Raise `GenerationError`."""
    constraint, tool_choice = completion.constraint, completion.tool_choice
    if tool_choice is not None and tool_choice.forced:
        return _scripted_json("tools", tool_choice.callable[0].get("parameters") or {})
    if completion.prompt is not None:
        return f"scripted: {_scripted_prompt(completion)}"
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
