"""Messages → the tokens of a prompt, in the model's chat template.

Whoever asks may write what they like: no token of the template's is read out of a message
(`backend/compute/special_tokens.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

from arkor.backend.compute.special_tokens import Seams
from arkor.backend.inference.messages import Calling, CannotAnswer
from arkor.backend.inference.tool_calls import Markup, learn, told

#: A prompt is looked at in full only if so many characters per token of the context do not fill it already.
GENEROUS = (20, 80)


class Prompts:
    """The prompts of one base. From any thread: its tokenizer is a copy, for one may not be used by two at once."""

    def __init__(self, name: str, tokenizer: Any, context: int | None) -> None:
        self._name = name
        self._tokenizer = copy.deepcopy(tokenizer)
        self._seams = Seams(self._tokenizer)
        self._context = context
        self._lock = Lock()

    @cached_property
    def markup(self) -> Markup:
        """How the model writes calls of tools."""
        added = self._tokenizer.added_tokens_decoder.values()
        ends = {str(self._tokenizer.eos_token), *(token.content for token in added if token.special)}
        return learn(self._render, sorted(ends))

    def special(self, text: str) -> int | None:
        """The token that is this text and that no other tokens can spell."""
        added = self._tokenizer.added_tokens_decoder.items()
        return next((number for number, token in added if token.special and token.content == text), None)

    def tokens(self, messages: Sequence[Mapping[str, Any]], calling: Calling | None) -> list[int]:
        """The prompt; a call that must come is begun already. Raises `CannotAnswer`."""
        markup = self.markup if calling or any(_of_tools(message) for message in messages) else None
        tools = list(calling.tools) if calling and markup and markup.native else None
        try:
            sewn = self._seams.sewn(told(messages, calling, markup or Markup("", "", None)))
            text = self._render(sewn, tools=self._seams.sewn_in(tools))
        except Exception as error:  # a template is a program of the model's makers: it may raise anything
            sentence = f"The chat template of {self._name} refuses these messages: {' '.join(str(error).split())[:300]}"
            raise CannotAnswer(400, "template_refused", sentence) from error
        if calling and calling.forced and markup:
            text += markup.opening
        return self._checked(text)

    def _render(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, add_generation_prompt: bool = True
    ) -> str:
        with self._lock:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        return text

    def _checked(self, text: str) -> list[int]:
        """Tokens that leave room for an answer; a text that is far too long is not read to its end."""
        context = self._context
        if context is None:
            return self._encoded(text)
        for length in (generous * context for generous in GENEROUS):
            if length < len(text) and (least := len(self._encoded(text[:length]))) >= context:
                raise self._too_long(f"more than {least}")
        tokens = self._encoded(text)
        if len(tokens) >= context:
            raise self._too_long(str(len(tokens)))
        return tokens

    def _encoded(self, text: str) -> list[int]:
        with self._lock:
            return self._seams.tokens([text])[0]

    def _too_long(self, count: str) -> CannotAnswer:
        sentence = (
            f"The prompt has {count} tokens, and {self._name} takes {self._context} for prompt and answer together. "
            "Shorten the messages."
        )
        return CannotAnswer(400, "context_length_exceeded", sentence)


def _of_tools(message: Mapping[str, Any]) -> bool:
    return message["role"] == "tool" or bool(message.get("tool_calls"))
