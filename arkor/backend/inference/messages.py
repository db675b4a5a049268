"""What is asked of a generator and what it replies.

The real generator is in `generator.py`, one that needs no torch in `scripted_generator.py`; the process that runs
either is `process.py`, the server's side of it `service.py`. The two talk in JSON lines, which this room puts into
words and reads again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import attrs
from attrs import frozen


@frozen
class Constraint:
    """What the text of an answer must be: `kind` is `"json"`, `"regex"`, `"choice"` or `"grammar"`.

    `value` is a schema, a pattern, a list of texts, a grammar; `field` is where the request has it. `whitespace` is
    the pattern of what may stand between two tokens of JSON, `""` for nothing.
    """

    kind: str
    value: Any
    field: str
    whitespace: str = ""


@frozen
class ToolChoice:
    """Tools that the answer may call, in OpenAI's shape; `forced`: must, the one of that `name` if it is not None.

    `parallel` allows more than one call in an answer.
    """

    tools: tuple[Mapping[str, Any], ...]
    forced: bool
    name: str | None
    parallel: bool

    @property
    def callable(self) -> tuple[Mapping[str, Any], ...]:
        """The functions that may be called."""
        return tuple(tool["function"] for tool in self.tools if self.name in (None, tool["function"]["name"]))


@frozen
class CompletionRequest:
    """One answer to generate: by `model` (an id or a folder), with the adapter in the folder `adapter` if not None.

    `temperature` 0 is greedy; `max_tokens` None leaves the length of the answer to the generator. The answer ends
    before the first of the strings of `stop`. With a `seed` the same completion is the same text.
    """

    id: str
    model: str
    adapter: str | None
    messages: tuple[Mapping[str, Any], ...]
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    constraint: Constraint | None = None
    tool_choice: ToolChoice | None = None


@frozen
class Delta:
    """Some more text of an answer."""

    id: str
    text: str


@frozen
class CallDelta:
    """Some more of the call of a tool, the `index`-th of the answer: first its `call_id` and `name`, then arguments."""

    id: str
    index: int
    arguments: str
    call_id: str | None = None
    name: str | None = None


@frozen
class Done:
    """An answer is whole: `finish_reason` is `"stop"`, `"length"` or `"tool_calls"`; the counts are tokens."""

    id: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@frozen
class Failed:
    """An answer could not be given, or not to its end: an HTTP status, a word for a machine, a sentence."""

    id: str
    status: int
    code: str
    sentence: str


Reply = Delta | CallDelta | Done | Failed


class GenerationError(Exception):
    """A completion that a generator refuses, with what `Failed` will say."""

    def __init__(self, status: int, code: str, sentence: str) -> None:
        super().__init__(status, code, sentence)
        self.status = status
        self.code = code
        self.sentence = sentence

    def reply(self, completion_id: str) -> Failed:
        return Failed(completion_id, self.status, self.code, self.sentence)


class Generator(Protocol):
    """Answers several completions side by side."""

    def submit(self, completion: CompletionRequest) -> None:
        """Take it on; whatever is wrong with it comes out of `step()`."""

    def cancel(self, completion_id: str) -> None:
        """Drop it without a further reply; one that is not there is no error."""

    def step(self) -> list[Reply]:
        """Bring every answer forward by about a token; returns soon, even when all of them wait for something."""

    @property
    def busy(self) -> bool:
        """Whether there are answers to bring forward."""


# The lines between the two processes

_REPLY_TYPES: dict[str, type[Any]] = {"delta": Delta, "call": CallDelta, "done": Done, "error": Failed}
_TYPE_NAMES = {cls: kind for kind, cls in _REPLY_TYPES.items()}


def reply_to_json(reply: Reply) -> dict[str, Any]:
    """`{"id": …, "delta" | "call" | "done" | "error": {…}}`."""
    fields = attrs.asdict(reply)
    return {"id": fields.pop("id"), _TYPE_NAMES[type(reply)]: fields}


def reply_from_json(data: Mapping[str, Any]) -> Reply:
    """The inverse of `reply_to_json`; raises KeyError or TypeError on anything else."""
    kind = next(kind for kind in _REPLY_TYPES if kind in data)
    reply: Reply = _REPLY_TYPES[kind](data["id"], **data[kind])
    return reply


def completion_from_json(data: Mapping[str, Any]) -> CompletionRequest:
    """What `attrs.asdict(completion)` became on its way through JSON."""
    tool_choice = data.get("tool_choice")
    return CompletionRequest(
        **{
            **data,
            "messages": tuple(data["messages"]),
            "stop": tuple(data.get("stop", ())),
            "constraint": Constraint(**data["constraint"]) if data.get("constraint") else None,
            "tool_choice": ToolChoice(**{**tool_choice, "tools": tuple(tool_choice["tools"])}) if tool_choice else None,
        }
    )
