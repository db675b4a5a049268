"""How a model writes the calls of tools: learned from its chat template, and read from its text as it comes.

A template that knows no tools gets them as words of the system, the user and the assistant. Which tools may be called
is in `tool_choice.py`.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from arkor.backend.inference.constraints import WHITESPACE
from arkor.backend.inference.detokenizer import overlap
from arkor.backend.inference.json_schema import close_objects
from arkor.backend.inference.messages import CallDelta, Constraint, Delta, GenerationError, ToolChoice
from arkor.protocol.chat import message_text

#: Calls in one answer.
MAX_CALLS = 8

Message = Mapping[str, Any]


@frozen
class ToolCallFormat:
    """What stands around the calls in an answer: `opening {…} between {…} closing`.

    A call is an object with `name` and, under the name `arguments`, what it is called with. `between` None: one call
    is all that an answer may have. `native`: the model's own template writes it so.
    """

    opening: str
    closing: str
    between: str | None
    arguments: str = "arguments"
    native: bool = True


#: How calls are written for a template that knows none.
DEFAULT_FORMAT = ToolCallFormat("<tool_call>\n", "\n</tool_call>", "\n</tool_call>\n<tool_call>\n", native=False)

Render = Callable[..., str]


# Learned from the template

_PROBES = [
    {"id": f"probe{number}abc"[:9], "type": "function", "function": {"name": name, "arguments": {"probed": number}}}
    for number, name in enumerate(("probe_one", "probe_two"), start=1)
]
_DESCRIPTION = "Probes a template"
_PARAMETERS = {"type": "object", "properties": {"probed": {"type": "integer", "description": "Which."}}}
_TOOL = {
    "type": "function",
    "function": {"name": "probe_one", "description": _DESCRIPTION, "parameters": _PARAMETERS},
}
_QUESTION = {"role": "user", "content": "probe?"}


def detect_format(render: Render, end_tokens: Sequence[str]) -> ToolCallFormat:
    """How the template writes calls, by letting it; `DEFAULT_FORMAT` when it has no place for tools.

    `render(messages, tools=…, add_generation_prompt=…)` is the template, which may raise anything; `end_tokens` are
    the texts
    of tokens that end a turn.
    """
    try:
        if _DESCRIPTION not in render([_QUESTION], tools=[_TOOL]):
            return DEFAULT_FORMAT
        rendered = _render_calls(render, _PROBES[:1])
    except Exception:  # noqa: BLE001 - a template is a program of the model's makers: it may raise anything
        return DEFAULT_FORMAT
    first = _find_call(rendered, "probe_one")
    if first is None:
        return DEFAULT_FORMAT
    opening, arguments = rendered[: first[0]], first[2]
    closing = rendered[first[1] :]
    for end in end_tokens:
        closing = closing.partition(end)[0]
    return ToolCallFormat(opening, closing.rstrip(), _detect_separator(render), arguments)


def _detect_separator(render: Render) -> str | None:
    try:
        rendered = _render_calls(render, _PROBES)
    except Exception:  # noqa: BLE001 - many templates refuse more than one call
        return None
    first, second = _find_call(rendered, "probe_one"), _find_call(rendered, "probe_two")
    return rendered[first[1] : second[0]] if first and second else None


def _render_calls(render: Render, calls: Sequence[Mapping[str, Any]]) -> str:
    """What the template makes of an assistant's turn of these calls."""
    before = render([_QUESTION], tools=[_TOOL], add_generation_prompt=True)
    assistant_message = {"role": "assistant", "content": "", "tool_calls": list(calls)}
    after = render([_QUESTION, assistant_message], tools=[_TOOL], add_generation_prompt=False)
    if not after.startswith(before):
        raise ValueError("the turn of an assistant begins in another way than it is asked for")
    return after[len(before) :]


def _find_call(text: str, name: str) -> tuple[int, int, str] | None:
    """Where the JSON of the call of that name begins and ends, and what it calls the arguments."""
    for found in re.finditer(r"\{", text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, found.start())
        except ValueError:
            continue
        if isinstance(value, dict) and value.get("name") == name:
            key = next((key for key in ("arguments", "parameters") if isinstance(value.get(key), dict)), None)
            return (found.start(), end, key) if key else None
    return None


# Said to the model


def render_tools(
    messages: Sequence[Message], tool_choice: ToolChoice | None, call_format: ToolCallFormat
) -> list[dict[str, Any]]:
    """The messages as the template takes them; without tools of its own, it gets them in words."""
    if call_format.native:
        return [_with_parsed_arguments(message) for message in messages]
    converted = _merge_tool_results([_as_plain_text(message) for message in messages])
    return converted if tool_choice is None else _with_tool_prompt(converted, tool_choice)


def _with_parsed_arguments(message: Message) -> dict[str, Any]:
    """Arguments as an object: the templates write it as JSON themselves."""
    copied = {**message, "content": message_text(message)}
    if message.get("tool_calls"):
        copied["tool_calls"] = [_with_arguments_object(call) for call in message["tool_calls"]]
    return copied


def _with_arguments_object(call: Mapping[str, Any]) -> dict[str, Any]:
    return {**call, "type": "function", "function": {**call["function"], "arguments": _parse_arguments(call)}}


def _parse_arguments(call: Mapping[str, Any]) -> Any:
    try:
        return json.loads(call["function"]["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call["function"]["arguments"]


def _as_plain_text(message: Message) -> dict[str, Any]:
    text = message_text(message)
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    if message.get("tool_calls"):
        calls = [
            {"name": call["function"]["name"], "arguments": _parse_arguments(call)} for call in message["tool_calls"]
        ]
        rendered = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
        text = "\n".join([text, *rendered] if text else rendered)
    return {"role": message["role"], "content": text}


def _merge_tool_results(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of several calls as one turn, for templates that want the turns to alternate."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        is_result = message["content"].startswith("<tool_response>") and message["role"] == "user"
        if is_result and merged and merged[-1]["role"] == "user" and "<tool_response>" in merged[-1]["content"]:
            merged[-1] = {**message, "content": f"{merged[-1]['content']}\n{message['content']}"}
        else:
            merged.append(message)
    return merged


def _with_tool_prompt(messages: list[dict[str, Any]], tool_choice: ToolChoice) -> list[dict[str, Any]]:
    """With the tools told of in the system's message."""
    listing = "\n".join(json.dumps(function, ensure_ascii=False) for function in tool_choice.callable)
    prompt = (
        "You can call these functions, each described by a line of JSON:\n"
        f"<tools>\n{listing}\n</tools>\n"
        "To call one, write:\n"
        '<tool_call>\n{"name": <its name>, "arguments": <an object that fits its parameters>}\n</tool_call>'
    )
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{prompt}"}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]


# Held to it


def call_constraint(
    tool_choice: ToolChoice, call_format: ToolCallFormat, special: Callable[[str], int | None]
) -> Constraint:
    """The constraint under which calls are well formed and fit their schemas.

    Forced calls begin behind the opening, which is part of the prompt; others after any text. `special` gives the
    token of a text that is one by itself, and that plain text cannot spell.
    """
    calls = [_call_rule(function, call_format) for function in tool_choice.callable]
    rules = ["%llguidance {}", f"calls: call{_repetition(tool_choice, call_format)}", "call: " + "\n  | ".join(calls)]
    if tool_choice.forced:
        rules.append(f"start: calls {_literal(call_format.closing)}")
        return Constraint("lark", "\n".join(rules), "tools")
    opening = call_format.opening.strip()
    token = special(opening)
    if not opening:
        rules += [r"text: /([^{](.|\n)*)?/", "start: text | calls"]
    elif token is not None:
        rules += [r"TEXT: /(.|\n)*/", f"start: TEXT | TEXT <[{token}]> rest"]
    else:
        rules += [r"TEXT: /(.|\n)*/", f"head[lazy]: TEXT {_literal(opening)}", "start: TEXT | head rest"]
    if opening:
        rules.append(rf"rest: /\s{{0,4}}/ calls {_literal(call_format.closing.rstrip())} /\s{{0,4}}/")
    return Constraint("lark", "\n".join(rules), "tools")


def _call_rule(function: Mapping[str, Any], call_format: ToolCallFormat) -> str:
    """Each schema is a whole of its own, for the references in it; what it leaves open is of no use to a function."""
    parameters = {"type": "object", **(function.get("parameters") or {})}
    is_composed = '"allOf"' in json.dumps(parameters)  # each of which, closed, would shut the others out
    schema = {**(parameters if is_composed else close_objects(parameters)), "x-guidance": _JSON}
    head = f'{{"name": "{function["name"]}", "{call_format.arguments}": '
    return f'{_literal(head)} %json {json.dumps(schema)} "}}"'


def _repetition(tool_choice: ToolChoice, call_format: ToolCallFormat) -> str:
    if not tool_choice.parallel or call_format.between is None:
        return ""
    return f" ({_literal(call_format.between)} call){{0,{MAX_CALLS - 1}}}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else '""'


#: How the library is to write JSON.
_JSON = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE, "lenient": False}


# Read again

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*')


@define
class ToolCallParser:
    """The text of an answer → what is said in it and what is called, as it comes; never the markup.

    Only what a constraint of `call_constraint()` let through can be read.
    """

    id: str
    call_format: ToolCallFormat
    in_call: bool  # whether the next that comes is a call
    count: int = 0
    _pending: str = ""
    _arguments: bool = False
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False
    _text_started: bool = field(default=False, init=False)

    def push(self, text: str) -> list[Delta | CallDelta]:
        """The pieces that this text makes final."""
        self._pending += text
        return list(self._parse())

    def flush(self) -> list[Delta | CallDelta]:
        """What was held back, when no more text comes."""
        text, self._pending = self._pending, ""
        return [Delta(self.id, text)] if text and not self.in_call else []

    def _parse(self) -> Iterator[Delta | CallDelta]:
        if not self.in_call:
            yield from self._emit_text()
        while self.in_call and self._pending:
            before = self._pending
            yield from self._emit_arguments() if self._arguments else self._begin_call()
            if self._pending == before:
                return

    def _emit_text(self) -> Iterator[Delta]:
        """Text, up to where the calls begin."""
        opening = self.call_format.opening.strip()
        if not opening:
            self.in_call = not self._text_started and self._pending.startswith("{")
            visible = "" if self.in_call else self._pending
        else:
            visible, found, _ = self._pending.partition(opening)
            self.in_call = bool(found)
            if not found:
                visible = visible[: len(visible) - overlap(visible, opening)]
        self._text_started = self._text_started or bool(self._pending)
        self._pending = self._pending[len(visible) + (len(opening) if self.in_call else 0) :]
        if visible:
            yield Delta(self.id, visible)

    def _begin_call(self) -> Iterator[CallDelta]:
        """The name of the next call, once it is there; what stands between two calls goes by."""
        position = self._pending.find("{")
        found = _HEAD.match(self._pending, position) if position >= 0 else None
        if found is None:
            return
        self._pending = self._pending[found.end() :]
        self._arguments, self._depth = True, 0
        yield CallDelta(self.id, self.count, "", f"call_{uuid.uuid4().hex[:24]}", found[1])

    def _emit_arguments(self) -> Iterator[CallDelta]:
        """Arguments, up to the bracket that closes them."""
        if self._depth == 0 and not (stripped := self._pending.lstrip()):
            return
        elif self._depth == 0:
            self._pending = stripped
        for position, char in enumerate(self._pending):
            self._track(char)
            if self._depth == 0 and not self._in_string:
                self._arguments = False
                visible, self._pending = self._pending[: position + 1], self._pending[position + 1 :]
                yield CallDelta(self.id, self.count, visible)
                self.count += 1
                self._pending = self._pending.lstrip()
                return
        visible, self._pending = self._pending, ""
        yield CallDelta(self.id, self.count, visible)

    def _track(self, char: str) -> None:
        if self._in_string:
            self._in_string = self._escaped or char != '"'
            self._escaped = char == "\\" and not self._escaped
        elif char == '"':
            self._in_string = True
        else:
            self._depth += (char in "{[") - (char in "}]")


def require_tool_support(tool_choice: ToolChoice, call_format: ToolCallFormat, model: str) -> None:
    """Raise `GenerationError` (400) when it is left to the model whether to call, and the model was never taught
    how.
    """
    if not tool_choice.forced and not call_format.native:
        sentence = (
            f"tools: the chat template of {model} has no place for tools, so it cannot choose to call one. "
            'Ask for a call with "required" or the name of a function as tool choice, or forbid it with "none".'
        )
        raise GenerationError(400, "tool_calling_not_configured", sentence)
