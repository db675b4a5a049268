"""Lay out a chat for training: its text, and which of its characters are learnt.

A turn of the assistant is laid out as inference meets it: the prompt is the text of the messages
before the turn, with the template's generation prompt; the answer is what the template writes from
there on to the end of the turn. Turns share one text where the template writes earlier turns the
same way later on. Where it rewrites them (Qwen 3 removes earlier thoughts, Mistral v0.3 moves the
system text), each turn is a text of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from attrs import define, field, frozen

from arkor.backend.compute.chat_template import ChatTemplate, common_prefix_length
from arkor.backend.compute.tool_call_format import MARK
from arkor.protocol.row_formats import Row

#: The end of a block of thoughts, and its beginning at the end of a prompt.
_THOUGHTS_END = "</think>"
_OPEN_THOUGHTS = re.compile(r"<think>\s*\Z")

_QUESTION = {"role": "user", "content": "probe?"}

Message = Mapping[str, Any]


class LayoutError(ValueError):
    """A chat cannot be laid out; the text says why."""


@frozen
class LabelledText:
    """A text in segments, each with whether it is learnt, for `turns` turns of the assistant."""

    segments: tuple[tuple[str, bool], ...]
    turns: int


@define
class LabelledChat:
    """The texts of a chat; `lost` names what the template does not write, and `context` counts turns."""

    texts: list[LabelledText]
    context: int = 0
    lost: set[str] = field(factory=set)


@define
class _Text:
    """A prompt with its answer, and the spans of learnt turns in it."""

    text: str
    prompt: str
    spans: list[tuple[int, int]]

    def labelled(self) -> LabelledText:
        segments: list[tuple[str, bool]] = []
        position = 0
        for begin, end in sorted(self.spans):
            segments += [(self.text[position:begin], False), (self.text[begin:end], True)]
            position = end
        segments.append((self.text[position:], False))
        return LabelledText(tuple(segment for segment in segments if segment[0]), len(self.spans))


def lay_out(row: Row, template: ChatTemplate, *, answers_only: bool) -> LabelledChat:
    """Return the texts of a chat, in the order of its turns. Raise `LayoutError`."""
    given = row["messages"]
    weights = [message.get("weight", 1) for message in given if message["role"] == "assistant"]
    chat = template.prepare(given, row.get("tools", ()))
    messages = template.escaper.escape(chat.messages, trusted=("assistant",))
    tools, options = template.escaper.escape_in(chat.tools), row.get("chat_template_kwargs")
    layouter = _Layouter(template, messages, tools, options)
    indices = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    learnt = [index for index, weight in zip(indices, weights, strict=True) if weight]
    texts = list(layouter.texts(learnt))
    if not answers_only:
        whole = texts[-1]
        context = [index for index in indices if index not in learnt]
        labelled = [LabelledText(tuple(layouter.without(whole, context)), len(learnt))]
    else:
        labelled = [text.labelled() for text in texts]
    return LabelledChat(labelled, len(indices) - len(learnt), layouter.lost(learnt, texts[-1].text))


def answer_lead(template: ChatTemplate, messages: Sequence[Message], tools: Any, options: Any = None) -> str:
    """Return the marks that are learnt before the text of an answer to these messages, without reasoning.

    An example is the end of an empty block of thoughts. Empty if the template refuses an answer.
    """
    answered = [*map(dict, messages), {"role": "assistant", "content": MARK}]
    try:
        prompt, answer = _Layouter(template, answered, tools, options)._turn(len(messages))
        continues = prompt == template.render(messages, tools, options=options)
    except Exception:  # noqa: BLE001 - a template may raise anything
        return ""
    lead, mark, _ = answer.partition(MARK)
    return lead if mark and continues else ""


@define
class _Layouter:
    """Renders the turns of one chat."""

    template: ChatTemplate
    messages: list[dict[str, Any]]
    tools: Any
    options: Mapping[str, Any] | None
    _answers: dict[int, str] = field(factory=dict)

    def _render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        return self.template.render(messages, self.tools, prompt, self.options)

    def texts(self, learnt: Sequence[int]) -> Iterator[_Text]:
        """Yield the texts in which these turns are learnt, with a turn in a later text if possible."""
        found: list[_Text] = []
        for index in reversed(learnt):
            prompt, answer = self._turn(index)
            self._answers[index] = answer
            if not any(self._place(text, prompt, answer) for text in found):
                found.append(self._text(prompt, answer, is_last=not found))
        yield from reversed(found)

    def _place(self, text: _Text, prompt: str, answer: str) -> bool:
        """Place a turn in the text of a later one if the text has it, character by character."""
        for written in (answer, self._without_close(answer)):
            if text.prompt.startswith(prompt + written):
                text.spans.append((len(prompt), len(prompt) + len(written)))
                return True
        return False

    def _without_close(self, answer: str) -> str:
        """Return an answer without the token that some templates write at the end of a whole chat."""
        eos = self.template.tokenizer.eos_token or ""
        shorter = answer.removesuffix(eos)
        return shorter if self.template.added_tokens_in(shorter) else answer

    def _text(self, prompt: str, answer: str, *, is_last: bool) -> _Text:
        """Return the text of a turn: the last one with the messages after it, and each with an end."""
        if is_last and self.messages[-1]["role"] != "assistant":
            with suppress(Exception):  # a template may refuse this end; it is not learnt anyway
                whole, written = self._render(self.messages), self._without_close(answer)
                if whole.startswith(prompt + written):
                    return _Text(whole, prompt, [(len(prompt), len(prompt + written))])
        eos = self.template.tokenizer.eos_token
        text = prompt + answer + ("" if self.template.writes_end or not eos else eos)
        return _Text(text, prompt, [(len(prompt), len(text))])

    def _turn(self, index: int) -> tuple[str, str]:
        """Return the prompt and the answer of the turn at `index`."""
        through = self._through(index)
        prompt = self._render(self.messages[:index], prompt=True) if index else self._first_prompt(through)
        prompt, answer = self._split(prompt, through, index)
        if not answer.strip():
            raise LayoutError("the chat template writes nothing for an answer")
        return prompt, answer

    def _through(self, index: int) -> str:
        """Return the text from the beginning of the chat through the turn at `index`."""
        try:
            return self._render(self.messages[: index + 1])
        except Exception:  # a template may require a message of the user, which comes later
            if not any(message["role"] == "user" for message in self.messages[index:]):
                raise
            marked = self._render(self._marked(index)).rpartition(MARK)[2]
            whole = self._render(self.messages)
            if not marked.startswith(self.template.turn_tail):
                raise
            return whole[: len(whole) - len(marked) + len(self.template.turn_tail)]

    def _marked(self, index: int) -> list[dict[str, Any]]:
        """Return the messages with a mark as the answer at `index`."""
        return [*self.messages[:index], {"role": "assistant", "content": MARK}, *self.messages[index + 1 :]]

    def _first_prompt(self, through: str) -> str:
        """Return what the template writes before an answer that begins the chat."""
        try:
            marked = self._render([{"role": "assistant", "content": MARK}])
        except Exception:  # noqa: BLE001 - as above
            marked = self._render(self._marked(0))
        before = marked.partition(MARK)[0]
        head = self.template.turn_head
        prompt = before[: before.rfind(head) + len(head)] if head in before else before
        if MARK not in marked or not through.startswith(prompt):
            raise LayoutError("the answer that begins the chat cannot be located in the text of the chat template")
        return prompt

    def _split(self, prompt: str, through: str, index: int) -> tuple[str, str]:
        """Return the prompt and the answer, given the text through the turn."""
        if through.startswith(prompt):
            return prompt, through[len(prompt) :]
        found = self._split_head(self.messages[:index], prompt, through, index)
        if found:
            return found
        alone = [_QUESTION, self.messages[index]]  # the template writes other messages elsewhere
        asked, answered = self._render(alone[:1], prompt=True), self._render(alone)
        if answered.startswith(asked):
            answer = answered[len(asked) :]
        else:
            _, answer = self._split_head(alone[:1], asked, answered, index) or ("", "")
        written = answer.rpartition(_THOUGHTS_END)[2]
        if not written or not through.endswith((written, written.strip())):
            raise LayoutError("an answer cannot be located in the text of the chat template")
        return prompt, answer

    def _split_head(
        self, before: list[dict[str, Any]], prompt: str, through: str, index: int
    ) -> tuple[str, str] | None:
        """Return prompt and answer where the generation prompt is not what the template writes in the turn."""
        marked = self._render([*before, {"role": "assistant", "content": MARK}])
        common = min(common_prefix_length(prompt, marked), common_prefix_length(prompt, through))
        if len(prompt) - common > len(self.template.generation_prompt):
            return None
        answer, thoughts = through[common:], _thoughts(self.messages[index])
        if _THOUGHTS_END in prompt[common:] and _THOUGHTS_END in answer:  # the prompt is for answers without thoughts
            common = common_prefix_length(prompt, through)
            return through[:common], through[common:]
        if _OPEN_THOUGHTS.search(prompt) and _THOUGHTS_END not in answer:
            answer = f"{thoughts}\n{_THOUGHTS_END}\n\n{answer.lstrip()}"
        return prompt, answer

    def without(self, whole: _Text, context: Sequence[int]) -> Iterator[tuple[str, bool]]:
        """Yield the segments of a text of which all is learnt but these turns."""
        spans = _Text(whole.text, whole.prompt, [])
        for index in context:
            if not self._place(spans, *self._turn(index)):
                raise LayoutError("a message of weight 0 cannot be located in the text of the chat template")
        for text, is_context in spans.labelled().segments:
            yield text, not is_context

    def lost(self, learnt: Sequence[int], text: str) -> set[str]:
        """Return which parts of the chat the template does not write."""
        found: set[str] = set()
        for index, message in enumerate(self.messages[: learnt[-1] + 1]):
            content = str(message.get("content") or "").rpartition(_THOUGHTS_END)[2].strip()
            where = self._answers.get(index, text)
            if content and not _writes(where, content) and (index in learnt or message["role"] != "assistant"):
                found.add(_LOST[message["role"]])
            if index not in learnt:
                continue
            if thoughts := message.get("reasoning_content"):
                found |= set() if _writes(where, thoughts.strip()) else {"the reasoning of an answer"}
            if any(call["function"]["name"] not in where for call in message.get("tool_calls", ())):
                raise LayoutError("the chat template does not write its tool calls")
        return found


_LOST = {
    "system": "the system message",
    "user": "a message of the user",
    "assistant": "the text of an answer",
    "tool": "a result of a tool",
}


def _writes(text: str, content: str) -> bool:
    """Whether a text has a content, in JSON perhaps."""
    return content in text or content.replace("\n", "\\n").replace('"', '\\"') in text


def _thoughts(message: Message) -> str:
    """Return the thoughts of an answer, from their own field or from its text."""
    inline, found, _ = str(message.get("content") or "").rpartition(_THOUGHTS_END)
    given = message.get("reasoning_content") or (inline if found else "")
    return str(given).removeprefix("<think>").strip()
