"""Build the grammar of an answer that contains tool calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from arkor.backend.compute.tool_call_format import ToolCallFormat
from arkor.backend.inference.constraints import WHITESPACE
from arkor.backend.inference.json_schema import close_objects
from arkor.backend.inference.messages import Constraint, GenerationError, ToolChoice

#: The maximum number of calls in one answer.
MAX_CALLS = 8

#: llguidance's options for JSON.
_JSON_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": WHITESPACE, "lenient": False}


def call_constraint(
    tool_choice: ToolChoice,
    call_format: ToolCallFormat,
    special_token: Callable[[str], int | None],
    answer: Constraint | None = None,
) -> Constraint:
    """Return the constraint under which calls are well formed and match their schemas.

    The opening of forced calls is part of the prompt; optional calls follow any text.
    `special_token` returns the token of a text that is a special token, which plain text cannot
    spell. With an `answer`, of JSON, the model either writes that or calls, without further text.
    Raise `GenerationError` if the two begin in the same way.
    """
    calls = [_call_rule(function, call_format) for function in tool_choice.callable]
    repetition = ""
    if tool_choice.parallel and call_format.between is not None:
        repetition = f" ({_literal(call_format.between)} call){{0,{MAX_CALLS - 1}}}"
    rules = ["%llguidance {}", f"calls: call{repetition}", "call: " + "\n  | ".join(calls)]
    opening = call_format.opening.strip()
    if tool_choice.forced:
        rules.append(f"start: calls {_literal(call_format.closing)}")
    elif answer is not None:
        rules += _call_or_answer(answer, opening, special_token(opening))
        rules.append(rf"rest: /\s{{0,4}}/ calls {_literal(call_format.closing.rstrip())} /\s{{0,4}}/")
    elif not opening:
        rules += [r"text: /([^{](.|\n)*)?/", "start: text | calls"]
    else:
        if (token := special_token(opening)) is not None:
            rules += [r"TEXT: /(.|\n)*/", f"start: TEXT | TEXT <[{token}]> rest"]
        else:
            rules += [r"TEXT: /(.|\n)*/", f"head[lazy]: TEXT {_literal(opening)}", "start: TEXT | head rest"]
        rules.append(rf"rest: /\s{{0,4}}/ calls {_literal(call_format.closing.rstrip())} /\s{{0,4}}/")
    return Constraint("lark", "\n".join(rules), "tools", prompted=answer is not None and answer.prompted)


def _call_or_answer(answer: Constraint, opening: str, token: int | None) -> list[str]:
    """Return the rules of an answer that is either JSON or calls."""
    if not opening or opening.startswith("{"):
        problem = "cannot be combined with optional tools: calls of this model are JSON like the answer"
        raise GenerationError(400, "invalid_request", problem, field=answer.field)
    options = {
        "whitespace_flexible": bool(answer.whitespace),
        "whitespace_pattern": answer.whitespace,
        "lenient": False,
    }
    if not answer.whitespace:
        del options["whitespace_pattern"]
    schema = json.dumps({**answer.value, "x-guidance": options})
    begin = _literal(opening) if token is None else f"<[{token}]>"
    return [f"answer: %json {schema}", f"start: answer | {begin} rest"]


def _call_rule(function: Mapping[str, Any], call_format: ToolCallFormat) -> str:
    """Return the rule of one function, with its own schema so that references resolve.

    Objects are closed, since a function cannot use further properties; not under `allOf`, whose
    closed parts would exclude each other.
    """
    parameters = {"type": "object", **(function.get("parameters") or {})}
    is_composed = '"allOf"' in json.dumps(parameters)
    schema = {**(parameters if is_composed else close_objects(parameters)), "x-guidance": _JSON_OPTIONS}
    head = f'{{"name": "{function["name"]}", "{call_format.arguments}": '
    call_id = f' ({_literal(call_format.before_id)} /[A-Za-z0-9]{{9}}/ "\\"")?' if call_format.before_id else ""
    return f'{_literal(head)} %json {json.dumps(schema)}{call_id} "}}"'


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
