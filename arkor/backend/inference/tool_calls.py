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
from arkor.backend.inference.json_schema import closed
from arkor.backend.inference.messages import CallDelta, Calling, CannotAnswer, Constraint, Delta
from arkor.protocol.chat import message_text

#: Calls in one answer.
MOST_CALLS = 8

Message = Mapping[str, Any]


@frozen
class Markup:
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
PLAIN = Markup("<tool_call>\n", "\n</tool_call>", "\n</tool_call>\n<tool_call>\n", native=False)

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


def learn(render: Render, ends: Sequence[str]) -> Markup:
    """How the template writes calls, by letting it; `PLAIN` when it has no place for tools.

    `render(messages, tools=…, add_generation_prompt=…)` is the template, which may raise anything; `ends` are the texts
    of tokens that end a turn.
    """
    try:
        if _DESCRIPTION not in render([_QUESTION], tools=[_TOOL]):
            return PLAIN
        one = _written(render, _PROBES[:1])
    except Exception:  # noqa: BLE001 - a template is a program of the model's makers: it may raise anything
        return PLAIN
    first = _find_call(one, "probe_one")
    if first is None:
        return PLAIN
    opening, arguments = one[: first[0]], first[2]
    closing = one[first[1] :]
    for end in ends:
        closing = closing.partition(end)[0]
    return Markup(opening, closing.rstrip(), _between(render), arguments)


def _between(render: Render) -> str | None:
    try:
        two = _written(render, _PROBES)
    except Exception:  # noqa: BLE001 - many templates refuse more than one call
        return None
    first, second = _find_call(two, "probe_one"), _find_call(two, "probe_two")
    return two[first[1] : second[0]] if first and second else None


def _written(render: Render, calls: Sequence[Mapping[str, Any]]) -> str:
    """What the template makes of an assistant's turn of these calls."""
    before = render([_QUESTION], tools=[_TOOL], add_generation_prompt=True)
    turn = {"role": "assistant", "content": "", "tool_calls": list(calls)}
    after = render([_QUESTION, turn], tools=[_TOOL], add_generation_prompt=False)
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


def told(messages: Sequence[Message], calling: Calling | None, markup: Markup) -> list[dict[str, Any]]:
    """The messages as the template takes them; without tools of its own, it gets them in words."""
    if markup.native:
        return [_native(message) for message in messages]
    plain = _joined([_in_words(message) for message in messages])
    return plain if calling is None else _introduced(plain, calling)


def _native(message: Message) -> dict[str, Any]:
    """Arguments as an object: the templates write it as JSON themselves."""
    said = {**message, "content": message_text(message)}
    if message.get("tool_calls"):
        said["tool_calls"] = [_with_object(call) for call in message["tool_calls"]]
    return said


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    return {**call, "type": "function", "function": {**call["function"], "arguments": _arguments(call)}}


def _arguments(call: Mapping[str, Any]) -> Any:
    try:
        return json.loads(call["function"]["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call["function"]["arguments"]


def _in_words(message: Message) -> dict[str, Any]:
    text = message_text(message)
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    if message.get("tool_calls"):
        calls = [{"name": call["function"]["name"], "arguments": _arguments(call)} for call in message["tool_calls"]]
        written = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
        text = "\n".join([text, *written] if text else written)
    return {"role": message["role"], "content": text}


def _joined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of several calls as one turn, for templates that want the turns to alternate."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        is_result = message["content"].startswith("<tool_response>") and message["role"] == "user"
        if is_result and joined and joined[-1]["role"] == "user" and "<tool_response>" in joined[-1]["content"]:
            joined[-1] = {**message, "content": f"{joined[-1]['content']}\n{message['content']}"}
        else:
            joined.append(message)
    return joined


def _introduced(messages: list[dict[str, Any]], calling: Calling) -> list[dict[str, Any]]:
    """With the tools told of in the system's message."""
    listed = "\n".join(json.dumps(function, ensure_ascii=False) for function in calling.callable)
    words = (
        "You can call these functions, each described by a line of JSON:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "To call one, write:\n"
        '<tool_call>\n{"name": <its name>, "arguments": <an object that fits its parameters>}\n</tool_call>'
    )
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{words}"}, *messages[1:]]
    return [{"role": "system", "content": words}, *messages]


# Held to it


def held(calling: Calling, markup: Markup, special: Callable[[str], int | None]) -> Constraint:
    """The constraint under which calls are well formed and fit their schemas.

    Forced calls begin behind the opening, which is part of the prompt; others after any text. `special` gives the
    token of a text that is one by itself, and that plain text cannot spell.
    """
    calls = [_call_rule(function, markup) for function in calling.callable]
    rules = ["%llguidance {}", f"calls: call{_repeated(calling, markup)}", "call: " + "\n  | ".join(calls)]
    if calling.forced:
        rules.append(f"start: calls {_literal(markup.closing)}")
        return Constraint("lark", "\n".join(rules), "tools")
    opening = markup.opening.strip()
    token = special(opening)
    if not opening:
        rules += [r"text: /([^{](.|\n)*)?/", "start: text | calls"]
    elif token is not None:
        rules += [r"TEXT: /(.|\n)*/", f"start: TEXT | TEXT <[{token}]> rest"]
    else:
        rules += [r"TEXT: /(.|\n)*/", f"head[lazy]: TEXT {_literal(opening)}", "start: TEXT | head rest"]
    if opening:
        rules.append(rf"rest: /\s{{0,4}}/ calls {_literal(markup.closing.rstrip())} /\s{{0,4}}/")
    return Constraint("lark", "\n".join(rules), "tools")


def _call_rule(function: Mapping[str, Any], markup: Markup) -> str:
    """Each schema is a whole of its own, for the references in it; what it leaves open is of no use to a function."""
    parameters = {"type": "object", **(function.get("parameters") or {})}
    in_parts = '"allOf"' in json.dumps(parameters)  # each of which, closed, would shut the others out
    schema = {**(parameters if in_parts else closed(parameters)), "x-guidance": _JSON}
    head = f'{{"name": "{function["name"]}", "{markup.arguments}": '
    return f'{_literal(head)} %json {json.dumps(schema)} "}}"'


def _repeated(calling: Calling, markup: Markup) -> str:
    if not calling.several or markup.between is None:
        return ""
    return f" ({_literal(markup.between)} call){{0,{MOST_CALLS - 1}}}"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else '""'


#: How the library is to write JSON.
_JSON = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE, "lenient": False}


# Read again

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*')


@define
class CallReader:
    """The text of an answer → what is said in it and what is called, as it comes; never the markup.

    Only what a constraint of `held()` let through can be read.
    """

    id: str
    markup: Markup
    calling: bool  # whether the next that comes is a call
    count: int = 0
    _pending: str = ""
    _arguments: bool = False
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False
    _begun: bool = field(default=False, init=False)

    def push(self, text: str) -> list[Delta | CallDelta]:
        """The pieces that this text makes final."""
        self._pending += text
        return list(self._read())

    def flush(self) -> list[Delta | CallDelta]:
        """What was held back, when no more text comes."""
        text, self._pending = self._pending, ""
        return [Delta(self.id, text)] if text and not self.calling else []

    def _read(self) -> Iterator[Delta | CallDelta]:
        if not self.calling:
            yield from self._say()
        while self.calling and self._pending:
            before = self._pending
            yield from self._argue() if self._arguments else self._begin()
            if self._pending == before:
                return

    def _say(self) -> Iterator[Delta]:
        """Text, up to where the calls begin."""
        opening = self.markup.opening.strip()
        if not opening:
            self.calling = not self._begun and self._pending.startswith("{")
            shown = "" if self.calling else self._pending
        else:
            shown, found, _ = self._pending.partition(opening)
            self.calling = bool(found)
            if not found:
                shown = shown[: len(shown) - overlap(shown, opening)]
        self._begun = self._begun or bool(self._pending)
        self._pending = self._pending[len(shown) + (len(opening) if self.calling else 0) :]
        if shown:
            yield Delta(self.id, shown)

    def _begin(self) -> Iterator[CallDelta]:
        """The name of the next call, once it is there; what stands between two calls goes by."""
        place = self._pending.find("{")
        found = _HEAD.match(self._pending, place) if place >= 0 else None
        if found is None:
            return
        self._pending = self._pending[found.end() :]
        self._arguments, self._depth = True, 0
        yield CallDelta(self.id, self.count, "", f"call_{uuid.uuid4().hex[:24]}", found[1])

    def _argue(self) -> Iterator[CallDelta]:
        """Arguments, up to the bracket that closes them."""
        if self._depth == 0 and not (begun := self._pending.lstrip()):
            return
        elif self._depth == 0:
            self._pending = begun
        for place, letter in enumerate(self._pending):
            self._follow(letter)
            if self._depth == 0 and not self._in_string:
                self._arguments = False
                shown, self._pending = self._pending[: place + 1], self._pending[place + 1 :]
                yield CallDelta(self.id, self.count, shown)
                self.count += 1
                self._pending = self._pending.lstrip()
                return
        shown, self._pending = self._pending, ""
        yield CallDelta(self.id, self.count, shown)

    def _follow(self, letter: str) -> None:
        if self._in_string:
            self._in_string = self._escaped or letter != '"'
            self._escaped = letter == "\\" and not self._escaped
        elif letter == '"':
            self._in_string = True
        else:
            self._depth += (letter in "{[") - (letter in "}]")


def demand(calling: Calling, markup: Markup, model: str) -> None:
    """Raise `CannotAnswer` (400) when it is left to the model whether to call, and the model was never taught how."""
    if not calling.forced and not markup.native:
        sentence = (
            f"tools: the chat template of {model} has no place for tools, so it cannot choose to call one. "
            'Ask for a call with "required" or the name of a function as tool choice, or forbid it with "none".'
        )
        raise CannotAnswer(400, "tool_calling_not_configured", sentence)
