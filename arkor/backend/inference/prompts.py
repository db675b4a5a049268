"""Render messages with the model's chat template and tokenize them.

Special tokens in messages are escaped (`compute/special_tokens.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from arkor.backend.compute.chat_template import ChatTemplate
from arkor.backend.compute.tool_call_format import ToolCallFormat
from arkor.backend.inference.messages import GenerationError, ToolChoice
from arkor.formatting import one_line

#: A prompt is tokenized in full only if its first N characters per token of the context do not fill
#: the context.
CHARS_PER_TOKEN = (20, 80)


class PromptBuilder:
    """Builds prompts for one base model. Thread-safe, with its own copy of the tokenizer."""

    def __init__(self, tokenizer: Any, context: int | None) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._template = ChatTemplate(self._tokenizer)
        self._context = context
        self._lock = Lock()

    @property
    def call_format(self) -> ToolCallFormat:
        """The format in which the model writes tool calls."""
        return self._template.call_format

    @property
    def end_token_ids(self) -> list[int]:
        """The tokens with which the chat template ends an answer."""
        return self._template.end_token_ids

    def special_token(self, text: str) -> int | None:
        """Return the special token with that text; no other tokens can spell it."""
        added = self._tokenizer.added_tokens_decoder.items()
        return next((token_id for token_id, token in added if token.special and token.content == text), None)

    def tokens(self, messages: Sequence[Mapping[str, Any]], tool_choice: ToolChoice | None) -> list[int]:
        """Return a prompt, including the opening of a forced call. Raise `GenerationError`."""
        escaper = self._template.escaper
        try:
            if tool_choice:
                chat = self._template.prepare(messages, tool_choice.tools, tool_choice.callable)
            else:
                chat = self._template.prepare(messages)
            text = self._template.render(escaper.escape(chat.messages), escaper.escape_in(chat.tools))
        except Exception as error:  # a template may raise anything
            problem = f"The chat template of this model rejects these messages: {one_line(str(error), 300)}"
            raise GenerationError(400, "template_refused", problem) from error
        if tool_choice and tool_choice.forced:
            text += self.call_format.lead + self.call_format.opening
        return self._encode_checked(text)

    def _encode_checked(self, text: str) -> list[int]:
        """Tokenize a prompt that leaves tokens for an answer; stop early if it is far too long."""
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
            return self._template.escaper.tokens([text])[0]

    def _too_long(self, count: str) -> GenerationError:
        problem = (
            f"The prompt has {count} tokens, and this model takes {self._context} for prompt and answer together. "
            "Shorten the messages."
        )
        return GenerationError(400, "context_length_exceeded", problem)
