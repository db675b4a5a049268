"""A deterministic generator that needs no torch, for tests of everything around it."""

from __future__ import annotations

import os
import re
import time

from attrs import define

from arkor.backend.generation.completion import Completion, Delta, Done, Failed, Reply
from arkor.backend.generation.text import StopStrings
from arkor.chat import message_text


@define
class _Echo:
    completion: Completion
    words: list[str]
    stops: StopStrings
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
        self._echoes[completion.id] = _Echo(completion, words, StopStrings(completion.stop))

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
        text = echo.stops.push(echo.words[echo.said - 1])
        over = echo.stops.hit or echo.said >= min(len(echo.words), completion.max_tokens or len(echo.words))
        text += echo.stops.flush() if over and not echo.stops.hit else ""
        replies: list[Reply] = [Delta(completion.id, text)] if text else []
        if over:
            self.cancel(completion.id)
            prompt = sum(len(message_text(message).split()) for message in completion.messages)
            reason = "stop" if echo.stops.hit or echo.said == len(echo.words) else "length"
            replies.append(Done(completion.id, reason, prompt, echo.said))
        return replies
