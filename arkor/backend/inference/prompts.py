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

from arkor.backend.compute.special_tokens import SpecialTokenEscaper
from arkor.backend.inference.messages import GenerationError, ToolChoice
from arkor.backend.inference.tool_calls import ToolCallFormat, detect_format, render_tools

#: A prompt is looked at in full only if so many characters per token of the context do not fill it already.
CHARS_PER_TOKEN = (20, 80)


class PromptBuilder:
    """The prompts of one base. From any thread: its tokenizer is a copy, for one may not be used by two at once."""

    def __init__(self, name: str, tokenizer: Any, context: int | None) -> None:
        self._name = name
        self._tokenizer = copy.deepcopy(tokenizer)
        self._escaper = SpecialTokenEscaper(self._tokenizer)
        self._context = context
        self._lock = Lock()

    @cached_property
    def call_format(self) -> ToolCallFormat:
        """How the model writes calls of tools."""
        added = self._tokenizer.added_tokens_decoder.values()
        end_tokens = {str(self._tokenizer.eos_token), *(token.content for token in added if token.special)}
        return detect_format(self._render, sorted(end_tokens))

    def special_token(self, text: str) -> int | None:
        """The token that is this text and that no other tokens can spell."""
        added = self._tokenizer.added_tokens_decoder.items()
        return next((token_id for token_id, token in added if token.special and token.content == text), None)

    def tokens(self, messages: Sequence[Mapping[str, Any]], tool_choice: ToolChoice | None) -> list[int]:
        """The prompt; a call that must come is begun already. Raises `GenerationError`."""
        call_format = (
            self.call_format if tool_choice or any(_is_tool_message(message) for message in messages) else None
        )
        tools = list(tool_choice.tools) if tool_choice and call_format and call_format.native else None
        try:
            escaped = self._escaper.escape(
                render_tools(messages, tool_choice, call_format or ToolCallFormat("", "", None))
            )
            text = self._render(escaped, tools=self._escaper.escape_in(tools))
        except Exception as error:  # a template is a program of the model's makers: it may raise anything
            sentence = f"The chat template of {self._name} refuses these messages: {' '.join(str(error).split())[:300]}"
            raise GenerationError(400, "template_refused", sentence) from error
        if tool_choice and tool_choice.forced and call_format:
            text += call_format.opening
        return self._encode_checked(text)

    def _render(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, add_generation_prompt: bool = True
    ) -> str:
        with self._lock:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        return text

    def _encode_checked(self, text: str) -> list[int]:
        """Tokens that leave room for an answer; a text that is far too long is not read to its end."""
        context = self._context
        if context is None:
            return self._encode(text)
        for length in (chars_per_token * context for chars_per_token in CHARS_PER_TOKEN):
            if length < len(text) and (at_least := len(self._encode(text[:length]))) >= context:
                raise self._too_long(f"more than {at_least}")
        tokens = self._encode(text)
        if len(tokens) >= context:
            raise self._too_long(str(len(tokens)))
        return tokens

    def _encode(self, text: str) -> list[int]:
        with self._lock:
            return self._escaper.tokens([text])[0]

    def _too_long(self, count: str) -> GenerationError:
        sentence = (
            f"The prompt has {count} tokens, and {self._name} takes {self._context} for prompt and answer together. "
            "Shorten the messages."
        )
        return GenerationError(400, "context_length_exceeded", sentence)


def _is_tool_message(message: Mapping[str, Any]) -> bool:
    return message["role"] == "tool" or bool(message.get("tool_calls"))
