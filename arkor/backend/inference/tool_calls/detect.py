"""Detect the format of tool calls by rendering the chat template with example calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

from arkor.backend.inference.messages import GenerationError, ToolChoice


@frozen
class ToolCallFormat:
    """The text around the calls in an answer: `opening {…} between {…} closing`.

    A call is a JSON object with the keys `name` and `arguments` (the attribute has the template's
    name for the latter). `between` None allows one call only. `native`: the
    template itself supports tools.
    """

    opening: str
    closing: str
    between: str | None
    arguments: str = "arguments"
    native: bool = True


#: The format for templates that do not support tools.
DEFAULT_FORMAT = ToolCallFormat("<tool_call>\n", "\n</tool_call>", "\n</tool_call>\n<tool_call>\n", native=False)

#: `render(messages, tools=…, add_generation_prompt=…)` renders a chat template, which may raise
#: anything.
Render = Callable[..., str]

_CALLS = [
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
    """Return the format of the template, or `DEFAULT_FORMAT` if it does not support tools.

    `end_tokens` are the texts of the tokens that end a turn.
    """
    try:
        if _DESCRIPTION not in render([_QUESTION], tools=[_TOOL]):
            return DEFAULT_FORMAT
        rendered = _render_calls(render, _CALLS[:1])
    except Exception:  # noqa: BLE001 - a template may raise anything
        return DEFAULT_FORMAT
    first = _find_call(rendered, "probe_one")
    if first is None:
        return DEFAULT_FORMAT
    begin, end, arguments = first
    closing = rendered[end:]
    for token in end_tokens:
        closing = closing.partition(token)[0]
    return ToolCallFormat(rendered[:begin], closing.rstrip(), _detect_separator(render), arguments)


def _detect_separator(render: Render) -> str | None:
    try:
        rendered = _render_calls(render, _CALLS)
    except Exception:  # noqa: BLE001 - many templates raise for more than one call
        return None
    first, second = _find_call(rendered, "probe_one"), _find_call(rendered, "probe_two")
    return rendered[first[1] : second[0]] if first and second else None


def _render_calls(render: Render, calls: Sequence[Mapping[str, Any]]) -> str:
    """Render an assistant's turn with these calls, without what precedes it."""
    before = render([_QUESTION], tools=[_TOOL], add_generation_prompt=True)
    assistant_message = {"role": "assistant", "content": "", "tool_calls": list(calls)}
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


def require_tool_support(tool_choice: ToolChoice, call_format: ToolCallFormat) -> None:
    """Raise `GenerationError` (400) if the model must choose and does not support tools."""
    if not tool_choice.forced and not call_format.native:
        raise GenerationError(
            400,
            "tool_calling_not_configured",
            "The chat template of this model does not support tools, so the model cannot choose to call one. "
            'Set the tool choice to "required" or the name of a function to force a call, or to "none".',
            field="tools",
        )
