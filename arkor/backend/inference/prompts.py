"""Render messages with the model's chat template and tokenize them.

Special tokens in messages are escaped (`compute/special_tokens.py`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

from arkor.backend.compute.chat_template import ChatTemplate
from arkor.backend.compute.tool_call_format import ToolCallFormat
from arkor.backend.inference.messages import CompletionRequest, GenerationError, ToolChoice
from arkor.backend.training.chat_layout import answer_lead
from arkor.formatting import one_line

#: A prompt is tokenized in full only if its first N characters per token of the context do not fill
#: the context.
CHARS_PER_TOKEN = (20, 80)

#: The variables with which chat templates turn thinking on and off.
_THINKING_SWITCHES = ("enable_thinking", "thinking")


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

    def template_variables(self, completion: CompletionRequest) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the variables for the chat template, and notes on what it does not use."""
        template = _template_text(self._tokenizer)
        thinking, effort = completion.enable_thinking, completion.reasoning_effort
        switch = next((name for name in _THINKING_SWITCHES if re.search(rf"\b{name}\b", template)), None)
        variables: dict[str, Any] = {}
        ignored = []
        if effort is not None:
            if re.search(r"\breasoning_effort\b", template):
                variables["reasoning_effort"] = effort
            elif switch is None:
                ignored.append("reasoning_effort")
            elif thinking is None:  # a template that can only think or not
                thinking = effort != "none"
        if thinking is not None:
            if switch is not None:
                variables[switch] = thinking
            else:
                ignored.append("enable_thinking")
        return variables, tuple(
            f"{name} has no effect: the chat template of this model ignores it." for name in ignored
        )

    def continued_tokens(self, prompt: str | Sequence[int], max_tokens: int | None) -> list[int]:
        """Return the tokens of a text or of tokens to continue. Raise `GenerationError`.

        Special tokens keep their meaning. A text gets the tokens that the tokenizer puts before
        every text, unless it starts with them.
        """
        if not isinstance(prompt, str):
            tokens, size = list(prompt), len(self._tokenizer)
            if unknown := next((token for token in tokens if not 0 <= token < size), None):
                problem = f"{unknown} is not a token of this model, which has {size}; send text, or its own tokens."
                raise GenerationError(400, "invalid_request", problem, field="prompt")
        else:
            tokens = self._encode_checked(prompt, self._encode_raw)
        if not tokens:
            start = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
            tokens = [token for token in start if token is not None][:1]
        if not tokens:
            raise GenerationError(400, "invalid_request", "must not be empty for this model.", field="prompt")
        if self._context is not None and len(tokens) + (max_tokens != 0) > self._context:
            raise self._too_long(str(len(tokens)))
        return tokens

    def _encode_raw(self, text: str) -> list[int]:
        first, last = self._tokenizer.bos_token, self._tokenizer.eos_token_id
        complete = bool(first) and text.startswith(first)
        with self._lock:
            tokens: list[int] = self._tokenizer(text, add_special_tokens=not complete, verbose=False)["input_ids"]
        ends = not (self._tokenizer.eos_token and text.endswith(self._tokenizer.eos_token))
        return tokens[:-1] if ends and len(tokens) > 1 and tokens[-1] == last else tokens

    def tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        tool_choice: ToolChoice | None,
        variables: Mapping[str, Any] | None = None,
        *,
        constrained: bool = False,
    ) -> list[int]:
        """Return a prompt, including the opening of a forced call. Raise `GenerationError`.

        `variables` are those of `template_variables()`. An answer that is `constrained` cannot
        begin with the marks that the template writes before every answer, such as an empty block of
        thoughts, so they are in the prompt.
        """
        escaper = self._template.escaper
        try:
            if tool_choice:
                chat = self._template.prepare(messages, tool_choice.tools, tool_choice.callable)
            else:
                chat = self._template.prepare(messages)
            escaped, listed = escaper.escape(chat.messages), escaper.escape_in(chat.tools)
            text = self._template.render(escaped, listed, options=variables)
            forced = tool_choice is not None and tool_choice.forced
            if forced or (constrained and not tool_choice):
                text += self._opening(forced, answer_lead(self._template, escaped, listed, variables))
        except Exception as error:  # a template may raise anything
            problem = f"The chat template of this model rejects these messages: {one_line(str(error), 300)}"
            raise GenerationError(400, "template_refused", problem) from error
        tokens = self._encode_checked(text, self._encode)
        if self._context is not None and len(tokens) >= self._context:
            raise self._too_long(str(len(tokens)))
        return tokens

    def _opening(self, forced: bool, lead: str) -> str:
        """Return the beginning of a constrained answer; `lead` are the marks before every answer."""
        if not forced:
            return lead.rstrip(" ")  # a token has the space with what follows
        writes_lead = bool(self.call_format.lead) or not self.call_format.native
        return (lead if writes_lead else "") + self.call_format.opening

    def _encode_checked(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """Tokenize a prompt that fits into the context; stop early if it is far too long."""
        if self._context is None:
            return encode(text)
        for length in (chars_per_token * self._context for chars_per_token in CHARS_PER_TOKEN):
            if length < len(text) and (at_least := len(encode(text[:length]))) >= self._context:
                raise self._too_long(f"more than {at_least}")
        return encode(text)

    def _encode(self, text: str) -> list[int]:
        with self._lock:
            return self._template.escaper.tokens([text])[0]

    def _too_long(self, count: str) -> GenerationError:
        problem = (
            f"The prompt has {count} tokens, and this model takes {self._context} for prompt and answer together. "
            "Shorten the messages."
        )
        return GenerationError(400, "context_length_exceeded", problem)


def _template_text(tokenizer: Any) -> str:
    """Return the source of the chat template, empty without one."""
    template = tokenizer.chat_template or ""
    return "\n".join(map(str, template.values())) if isinstance(template, Mapping) else str(template)
