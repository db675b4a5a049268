"""The text of tool calls: detect how a chat template writes them, or write them in words.

A template that lists tools and writes calls as JSON is used as it is (`native`). For any other
template, tools, calls and results are written into ordinary messages by `write_in_words`, as
Qwen 2.5 writes them. Training and inference use the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from attrs import frozen

Message = Mapping[str, Any]


@frozen
class ToolCallFormat:
    """The text around the calls in an answer: `opening {…} between {…} closing`.

    A call is a JSON object with the keys `name` and `arguments` (the attribute has the template's
    name for the latter). `between` None allows one call only. `native`: the template itself
    supports tools; it then takes arguments as JSON text if `text_arguments`, and calls without
    content as `""` unless `content_absent`. `lead` is the text that the template writes before
    every answer without reasoning, such as an empty block of thoughts. `before_id` is the text
    between the arguments and the id of a call, if the template writes ids.
    """

    opening: str
    closing: str
    between: str | None
    arguments: str = "arguments"
    native: bool = True
    lead: str = ""
    text_arguments: bool = False
    content_absent: bool = False
    before_id: str | None = None


#: The format for templates that do not support tools.
DEFAULT_FORMAT = ToolCallFormat("<tool_call>\n", "\n</tool_call>", "\n</tool_call>\n<tool_call>\n", native=False)

#: `render(messages, tools=…, add_generation_prompt=…)` renders a chat template, which may raise
#: anything.
Render = Callable[..., str]

#: Texts that no template contains.
MARK = "\ufdd2answer\ufdd2"

_NAMES = ("probe_one", "probe_two")
_DESCRIPTION = "Probes a template"
_PARAMETERS = {"type": "object", "properties": {"probed": {"type": "integer", "description": "Which."}}}
_TOOL = {
    "type": "function",
    "function": {"name": "probe_one", "description": _DESCRIPTION, "parameters": _PARAMETERS},
}
_QUESTION = {"role": "user", "content": "probe?"}


def _probe_call(number: int, text_arguments: bool) -> dict[str, Any]:
    arguments: Any = {"probed": number}
    function = {"name": _NAMES[number - 1], "arguments": json.dumps(arguments) if text_arguments else arguments}
    return {"id": f"probe{number}abc", "type": "function", "function": function}


def detect_format(render: Render, end_tokens: Sequence[str]) -> ToolCallFormat:
    """Return the format of the template, or `DEFAULT_FORMAT` if it does not support tools.

    `end_tokens` are the texts of the tokens that end a turn.
    """
    for text_arguments, content_absent in product((False, True), repeat=2):
        try:
            if _DESCRIPTION not in render([_QUESTION], tools=[_TOOL]):
                return DEFAULT_FORMAT
            rendered = _render_calls(render, [_probe_call(1, text_arguments)], content_absent)
        except Exception:  # noqa: BLE001, S112 - a template may raise anything
            continue
        first = _find_call(rendered, _NAMES[0])
        if first is None:
            continue
        begin, end, arguments = first
        closing = rendered[end:]
        for token in end_tokens:
            closing = closing.partition(token)[0]
        lead = _lead(render)
        opening = rendered[:begin]
        return ToolCallFormat(
            opening=opening.removeprefix(lead),
            closing=closing.rstrip(),
            between=_detect_separator(render, text_arguments, content_absent),
            arguments=arguments,
            lead=lead if opening.startswith(lead) else "",
            text_arguments=text_arguments,
            content_absent=content_absent,
            before_id=_before_id(rendered[begin:end]),
        )
    return DEFAULT_FORMAT


def _before_id(call: str) -> str | None:
    found = re.search(r"\}(\s*,\s*\"id\"\s*:\s*\")probe1abc\"\s*\}\Z", call)
    return found[1] if found else None


def _lead(render: Render) -> str:
    """Return what the template writes between the generation prompt and an answer."""
    try:
        before = render([_QUESTION], tools=[_TOOL], add_generation_prompt=True)
        after = render([_QUESTION, {"role": "assistant", "content": MARK}], tools=[_TOOL], add_generation_prompt=False)
    except Exception:  # noqa: BLE001 - a template may raise anything
        return ""
    return after.partition(MARK)[0][len(before) :] if after.startswith(before) else ""


def _detect_separator(render: Render, text_arguments: bool, content_absent: bool) -> str | None:
    try:
        rendered = _render_calls(render, [_probe_call(number, text_arguments) for number in (1, 2)], content_absent)
    except Exception:  # noqa: BLE001 - many templates raise for more than one call
        return None
    first, second = (_find_call(rendered, name) for name in _NAMES)
    return rendered[first[1] : second[0]] if first and second else None


def _render_calls(render: Render, calls: Sequence[Mapping[str, Any]], content_absent: bool) -> str:
    """Render an assistant's turn with these calls, without what precedes it."""
    before = render([_QUESTION], tools=[_TOOL], add_generation_prompt=True)
    assistant_message = {"role": "assistant", **({} if content_absent else {"content": ""}), "tool_calls": list(calls)}
    after = render([_QUESTION, assistant_message], tools=[_TOOL], add_generation_prompt=False)
    if not after.startswith(before):
        raise ValueError("the assistant's turn does not start with the generation prompt")
    return after[len(before) :]


def _find_call(text: str, name: str) -> tuple[int, int, str] | None:
    """Find the JSON of the call of that name: its begin, its end, and its key for the arguments."""
    for found in re.finditer(r"\{", text):
        try:
            value, end = json.JSONDecoder().raw_decode(text, found.start())
        except ValueError:
            continue
        if isinstance(value, dict) and value.get("name") == name:
            key = next((key for key in ("arguments", "parameters") if isinstance(value.get(key), dict)), None)
            return (found.start(), end, key) if key else None
    return None


def call_arguments(call: Mapping[str, Any]) -> Any:
    """Return the arguments of a call as an object if they are JSON of one, else unchanged."""
    given = call["function"].get("arguments")
    if not isinstance(given, str):
        return {} if given is None else given
    try:
        return json.loads(given or "{}")
    except (ValueError, RecursionError):
        return given


# In words


def write_in_words(messages: Iterable[Message], functions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write calls and results into the text of the messages, and `functions` into the system message."""
    converted = _merge_tool_results([_as_plain_text(message) for message in messages])
    return _with_tool_prompt(converted, functions) if functions else converted


def _as_plain_text(message: Message) -> dict[str, Any]:
    text = message["content"]
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    kept = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
    if message.get("tool_calls"):
        calls = [{"name": c["function"]["name"], "arguments": call_arguments(c)} for c in message["tool_calls"]]
        rendered = [f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" for call in calls]
        text = "\n".join([text, *rendered] if text else rendered)
    return {**kept, "content": text}


def _merge_tool_results(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge consecutive results to one turn, for templates that require alternating turns."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        is_result = message["content"].startswith("<tool_response>") and message["role"] == "user"
        if is_result and merged and merged[-1]["role"] == "user" and "<tool_response>" in merged[-1]["content"]:
            merged[-1] = {**message, "content": f"{merged[-1]['content']}\n{message['content']}"}
        else:
            merged.append(message)
    return merged


def _with_tool_prompt(messages: list[dict[str, Any]], functions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Describe the tools in the system message."""
    listing = "\n".join(json.dumps(function, ensure_ascii=False) for function in functions)
    prompt = (
        "You can call these functions, each described by a line of JSON:\n"
        f"<tools>\n{listing}\n</tools>\n"
        "To call one, write:\n"
        '<tool_call>\n{"name": <its name>, "arguments": <an object that fits its parameters>}\n</tool_call>'
    )
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{prompt}"}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]
