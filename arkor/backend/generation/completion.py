"""What is asked of a generator and what it replies, and a deterministic generator that needs no torch.

The real generator is in `generate.py`; the process that runs either is `serving.py`, the server's side of it
`inference.py`. The two talk in JSON lines, which this room puts into words and reads again.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Any, Protocol

import attrs
from attrs import define, frozen

from arkor.chat import message_text


@frozen
class Completion:
    """One answer to generate: by `model` (an id or a folder), with the adapter in the folder `adapter` if not None.

    `temperature` 0 is greedy; `max_tokens` None leaves the length of the answer to the generator.
    """

    id: str
    model: str
    adapter: str | None
    messages: tuple[Mapping[str, Any], ...]
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None


@frozen
class Delta:
    """Some more text of an answer."""

    id: str
    text: str


@frozen
class Done:
    """An answer is whole: `finish_reason` is `"stop"` or `"length"`; the counts are tokens."""

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


Reply = Delta | Done | Failed


class CannotAnswer(Exception):
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

    def submit(self, completion: Completion) -> None:
        """Take it on; whatever is wrong with it comes out of `step()`."""

    def cancel(self, completion_id: str) -> None:
        """Drop it without a further reply; one that is not there is no error."""

    def step(self) -> list[Reply]:
        """Bring every answer forward by about a token; returns soon, even when all of them wait for something."""

    @property
    def busy(self) -> bool:
        """Whether there are answers to bring forward."""


# The lines between the two processes

_KINDS: dict[str, type[Any]] = {"delta": Delta, "done": Done, "error": Failed}
_KIND_OF = {cls: kind for kind, cls in _KINDS.items()}


def reply_to_json(reply: Reply) -> dict[str, Any]:
    """`{"id": …, "delta" | "done" | "error": {…}}`."""
    fields = attrs.asdict(reply)
    return {"id": fields.pop("id"), _KIND_OF[type(reply)]: fields}


def reply_from_json(data: Mapping[str, Any]) -> Reply:
    """The inverse of `reply_to_json`; raises KeyError or TypeError on anything else."""
    kind = next(kind for kind in _KINDS if kind in data)
    reply: Reply = _KINDS[kind](data["id"], **data[kind])
    return reply


def completion_from_json(data: Mapping[str, Any]) -> Completion:
    """What `attrs.asdict(completion)` became on its way through JSON."""
    return Completion(**{**data, "messages": tuple(data["messages"])})


# The generator without torch


@define
class _Echo:
    completion: Completion
    words: list[str]
    said: int = 0


class EchoGenerator:
    """Says `scripted: <last user message>`, a word a step.

    `ARKOR_SCRIPTED_TOKEN_SECONDS` is the time a step takes. The model `scripted/crash` ends the process;
    `scripted/fail` is refused, and `scripted/break` fails behind its second word.
    """

    def __init__(self) -> None:
        self._echoes: dict[str, _Echo] = {}
        self._seconds = float(os.environ.get("ARKOR_SCRIPTED_TOKEN_SECONDS") or 0)

    def submit(self, completion: Completion) -> None:
        """See `Generator`."""
        if completion.model == "scripted/crash":
            os._exit(13)
        questions = [message_text(message) for message in completion.messages if message["role"] == "user"]
        words = re.findall(r"\S+\s*|\s+", f"scripted: {questions[-1] if questions else ''}")
        self._echoes[completion.id] = _Echo(completion, words)

    def cancel(self, completion_id: str) -> None:
        """See `Generator`."""
        self._echoes.pop(completion_id, None)

    def step(self) -> list[Reply]:
        """See `Generator`."""
        time.sleep(self._seconds)
        return [reply for echo in list(self._echoes.values()) for reply in self._say(echo)]

    @property
    def busy(self) -> bool:
        """See `Generator`."""
        return bool(self._echoes)

    def _say(self, echo: _Echo) -> list[Reply]:
        completion = echo.completion
        if completion.model == "scripted/fail" or (completion.model == "scripted/break" and echo.said == 2):
            self.cancel(completion.id)
            return [Failed(completion.id, 503, "scripted", "The scripted generator fails, as it was asked to.")]
        echo.said += 1
        delta = Delta(completion.id, echo.words[echo.said - 1])
        if echo.said < min(len(echo.words), completion.max_tokens or len(echo.words)):
            return [delta]
        self.cancel(completion.id)
        prompt = sum(len(message_text(message).split()) for message in completion.messages)
        reason = "stop" if echo.said == len(echo.words) else "length"
        return [delta, Done(completion.id, reason, prompt, echo.said)]
