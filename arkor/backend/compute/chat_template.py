"""The chat template of a tokenizer: prepare messages for it and render them.

Training (`training/chat_layout.py`) and inference (`inference/prompts.py`) prepare messages with
`ChatTemplate.prepare`, so that a model is trained on the text with which it is later prompted. What
differs between templates is found out by rendering examples: whether content is a string or a list
of parts, whether arguments of calls are objects or JSON, which token ends a turn.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from threading import RLock
from typing import Any

from attrs import frozen

from arkor.backend.compute.special_tokens import SpecialTokenEscaper
from arkor.backend.compute.tool_call_format import (
    MARK,
    ToolCallFormat,
    call_arguments,
    detect_format,
    write_in_words,
)
from arkor.protocol.chat import message_text

Message = Mapping[str, Any]

_QUESTION = {"role": "user", "content": "probe?"}
_MARKED = {"role": "assistant", "content": MARK}

#: How templates write today's date.
_DATE = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")

#: The length of the ids of calls that some templates require (Mistral).
_SHORT_ID = 9


@frozen
class Conversation:
    """Messages for a template, and the tools that the template itself lists, or None."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None


class ChatTemplate:
    """The chat template of one tokenizer. Thread-safe if nothing else uses the tokenizer.

    `date` is written by templates that write today's date; None means the date of the rendering.
    """

    def __init__(self, tokenizer: Any, date: datetime | None = None) -> None:
        self.tokenizer = tokenizer
        self.escaper = SpecialTokenEscaper(tokenizer)
        self._date = date
        self._lock = RLock()

    def render(
        self,
        messages: Sequence[Message],
        tools: Any = None,
        add_generation_prompt: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text. `options` are the template's own, such as `enable_thinking`.

        Templates that always write the beginning of an answer write none after an answer.
        """
        text = self._render_parts(messages, tools, add_generation_prompt, options)
        is_answered = not add_generation_prompt and bool(messages) and messages[-1]["role"] == "assistant"
        return text.removesuffix(self._needless_prompt) if is_answered else text

    def _render_parts(
        self, messages: Sequence[Message], tools: Any = None, add_generation_prompt: bool = True, options: Any = None
    ) -> str:
        converted = [_with_parts(message) if self._takes_parts else message for message in messages]
        return self.render_plain(converted, tools, add_generation_prompt, options)

    def render_plain(
        self, messages: Any, tools: Any = None, add_generation_prompt: bool = True, options: Any = None
    ) -> str:
        """Return the text of messages that have the form that the template takes."""
        dated = {"chat_template": self._dated_source(bool(tools))} if self._date else {}
        with self._lock:
            text: str = self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **dated,
                **(options or {}),
            )
        return text

    def _dated_source(self, with_tools: bool) -> str:
        """Return the template with `date` in place of today's date."""
        date = self._date or datetime.now()
        source: str = self.tokenizer.get_chat_template(None, [{}] if with_tools else None)
        return _DATE.sub(lambda found: json.dumps(date.strftime(found[2])), source)

    def prepare(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        functions: Sequence[Mapping[str, Any]] | None = None,
    ) -> Conversation:
        """Return the messages and tools as the template takes them.

        `functions` are the functions to describe if the template does not list tools: all, unless
        a caller allows only some of the tools.
        """
        plain = [_without_extras(message) for message in messages]
        uses_tools = bool(tools) or any(m["role"] == "tool" or m.get("tool_calls") for m in plain)
        if not uses_tools:
            return Conversation(plain, None)
        if not self.call_format.native:
            named = [tool.get("function", tool) for tool in tools] if functions is None else functions
            return Conversation(self._fold_system(write_in_words(plain, list(named)), plain), None)
        plain = _with_results_named(_with_ids(plain, self._needs_short_ids))
        return Conversation([self._native(message) for message in plain], list(tools) or None)

    def _native(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return a message with its calls as the template takes them."""
        if not message.get("tool_calls"):
            return message
        calls = []
        for call in message["tool_calls"]:
            arguments = call_arguments(call)
            if self.call_format.text_arguments:
                given = call["function"].get("arguments")
                arguments = given if isinstance(given, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append({**call, "type": "function", "function": {**call["function"], "arguments": arguments}})
        converted = {**message, "tool_calls": calls}
        if self.call_format.content_absent and not message["content"]:
            del converted["content"]
        return converted

    def _fold_system(self, worded: list[dict[str, Any]], plain: Sequence[Message]) -> list[dict[str, Any]]:
        """Move a description of tools to the first message of the user if there can be no system message."""
        added = bool(worded) and worded[0]["role"] == "system" and (not plain or plain[0]["role"] != "system")
        if not added or self._takes_system or len(worded) < 2 or worded[1]["role"] != "user":
            return worded
        system, first, *others = worded
        return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]

    # Found out by rendering examples

    @cached_property
    def call_format(self) -> ToolCallFormat:
        """The format in which the model writes tool calls."""
        return detect_format(self.render, sorted(self._special_texts))

    @cached_property
    def _special_texts(self) -> set[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        known = {str(self.tokenizer.eos_token)} if self.tokenizer.eos_token else set()
        return known | {token.content for token in added if token.special}

    @cached_property
    def _added_texts(self) -> set[str]:
        """The special tokens and other added tokens, which may end a turn too, but not white space."""
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values())
        return self._special_texts | {text for text in added if len(text.strip()) > 1}

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template reads content as a list of parts only."""
        question = {"role": "user", "content": MARK}
        return MARK not in self._try(self.render_plain, [question]) and MARK in self._try(
            self.render_plain, [_with_parts(question)]
        )

    @cached_property
    def _takes_system(self) -> bool:
        system = {"role": "system", "content": MARK}
        return MARK in self._try(self.render, [system, _QUESTION])

    @cached_property
    def _needs_short_ids(self) -> bool:
        def accepts(call_id: str) -> bool:
            function = {"name": MARK, "arguments": "{}" if self.call_format.text_arguments else {}}
            call = {"id": call_id, "type": "function", "function": function}
            message = {"role": "assistant", "content": "", "tool_calls": [call]}
            return MARK in self._try(self.render, [_QUESTION, message], add_generation_prompt=False)

        return not accepts("call_0123456789abcdef") and accepts("a" * _SHORT_ID)

    @cached_property
    def _needless_prompt(self) -> str:
        """The beginning of another answer if the template writes it after an answer."""
        asked = self._try(self._render_parts, [_QUESTION], add_generation_prompt=False)
        answered = self._try(self._render_parts, [_QUESTION, _MARKED], add_generation_prompt=False)
        tail = answered.rpartition(MARK)[2]
        end = next(iter(self.added_tokens_in(tail)), "")
        rest = tail.partition(end)[2].lstrip() if end else ""
        ignored = asked == self._try(self._render_parts, [_QUESTION])
        return rest if ignored and asked.endswith(rest) else ""

    @cached_property
    def generation_prompt(self) -> str:
        """The text that begins an answer."""
        with_prompt = self._try(self.render, [_QUESTION])
        without = self._try(self.render, [_QUESTION], add_generation_prompt=False)
        return with_prompt[common_prefix_length(with_prompt, without) :]

    @cached_property
    def turn_head(self) -> str:
        """The part of the generation prompt that the template also writes in a turn of the assistant."""
        before = self._try(self.render, [_QUESTION])
        common = common_prefix_length(before, self._answered([]))
        return before[len(before) - len(self.generation_prompt) : common]

    def _answered(self, follow_up: Sequence[Message]) -> str:
        return self._try(self.render, [_QUESTION, _MARKED, *follow_up], add_generation_prompt=False)

    @cached_property
    def turn_tail(self) -> str:
        """What the template writes after an answer, before the next message."""
        last, followed = (self._answered(chat).rpartition(MARK)[2] for chat in ([], [_QUESTION]))
        eos = self.tokenizer.eos_token or ""
        shorter = last.removesuffix(eos) if eos else last
        return last if followed.startswith(last) else shorter if followed.startswith(shorter) else ""

    @cached_property
    def writes_end(self) -> bool:
        """Whether the template ends a turn of the assistant with a token of its own."""
        return bool(self.added_tokens_in(self._answered([]).rpartition(MARK)[2]))

    @cached_property
    def end_token_ids(self) -> list[int]:
        """The tokens that end a turn of the assistant, with or without calls.

        Where the template writes none, the token that begins the next turn of the user.
        """
        answered = self._answered([] if self.writes_end else [_QUESTION])
        ends = set(self.added_tokens_in(answered.rpartition(MARK)[2])[:1])
        if self.call_format.native:
            call = {"id": "a" * _SHORT_ID, "function": {"name": "probe", "arguments": "{}"}}
            tool = {"type": "function", "function": {"name": "probe", "description": "", "parameters": {}}}
            turn = self.prepare([_QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}], [tool])
            rendered = self._try(self.render, turn.messages, turn.tools, add_generation_prompt=False).rstrip()
            ends |= {token for token in self._special_texts if rendered.endswith(token)}
        ids = {self.tokenizer.convert_tokens_to_ids(text) for text in ends}
        return sorted(token for token in ids if isinstance(token, int))

    def added_tokens_in(self, text: str) -> list[str]:
        """Return the special and other added tokens of a text, in order."""
        alternatives = "|".join(map(re.escape, sorted(self._added_texts, key=len, reverse=True)))
        return re.findall(alternatives, text) if alternatives else []

    @staticmethod
    def _try(render: Callable[..., str], messages: Sequence[Message], *arguments: Any, **options: Any) -> str:
        """Return the text, or nothing if the template refuses the messages."""
        try:
            return render(list(messages), *arguments, **options)
        except Exception:  # noqa: BLE001 - a template may raise anything
            return ""


def common_prefix_length(left: str, right: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[:middle] == right[:middle] else (low, middle - 1)
    return low


def _without_extras(message: Message) -> dict[str, Any]:
    """Return a message without empty fields and without a weight, with its content as text."""
    kept = {key: value for key, value in message.items() if key != "weight" and value not in (None, [])}
    return {**kept, "content": message_text(message)}


def _with_parts(message: Message) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else dict(message)


def _with_ids(messages: Sequence[dict[str, Any]], short: bool) -> list[dict[str, Any]]:
    """Give each call an id, and its result the same one; shorten ids if the template requires it."""
    converted: list[dict[str, Any]] = []
    waiting: list[str] = []
    count = 0
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                count += 1
                calls.append({**call, "id": _call_id(str(call.get("id") or f"call{count:05d}"), short)})
            waiting = [call["id"] for call in calls]
            message = {**message, "tool_calls": calls}  # noqa: PLW2901 - the converted message
        elif message["role"] == "tool":
            following = waiting.pop(0) if waiting else f"call{count:05d}"
            given = message.get("tool_call_id")
            message = {**message, "tool_call_id": _call_id(str(given), short) if given else following}  # noqa: PLW2901
        converted.append(message)
    return converted


def _call_id(given: str, short: bool) -> str:
    if not short or re.fullmatch(r"[A-Za-z0-9]{9}", given):
        return given
    return hashlib.sha256(given.encode()).hexdigest()[:_SHORT_ID]


def _with_results_named(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Name the function of each result, which some templates write."""
    names: dict[Any, str] = {}
    converted: list[dict[str, Any]] = []
    for message in messages:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        name = names.get(message.get("tool_call_id"))
        is_unnamed = message["role"] == "tool" and name and not message.get("name")
        converted.append({**message, "name": name} if is_unnamed else message)
    return converted
