"""Convert a record to a training row: a chat (`messages`, `tools`), a plain `text`, or tokens.

A data set with other names of columns is read with a column mapping.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from arkor.errors import StructuredError
from arkor.formatting import quote
from arkor.protocol.pretokenized import InvalidTokens, read_tokens

#: A training row: `{"messages": [{"role", "content", …}], "tools"?: […]}`, `{"text": str}` or
#: `{"input_ids": […], "labels"?: […]}`.
Row = dict[str, Any]


class InvalidRow(StructuredError, ValueError):
    """A record that cannot be used for training; `field` is None if the whole record is wrong."""

    def __init__(self, field: str | None, problem: str, remedy: str | None = None) -> None:
        super().__init__(problem, field=field, remedy=remedy)
        self.args = (field, problem, remedy)


#: Names that data sets use for the roles.
ROLE_ALIASES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}

_OPTIONAL_MESSAGE_FIELDS = ("name", "tool_calls", "tool_call_id", "reasoning_content")


def _text(field: str, value: Any, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise InvalidRow(field, f'must be a string like "Hello", not {quote(value)}')
    if not empty and not value.strip():
        raise InvalidRow(field, "is empty", "write a text there or leave the row out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        broken = value[error.start]
        raise InvalidRow(
            field, f"contains an unpaired surrogate (\\u{ord(broken):04x})", "write the whole character"
        ) from None
    return value


def _list(field: str, value: Any) -> list[Any]:
    """Check a list, which a CSV file has as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidRow(field, "looks like a JSON list but cannot be read as one") from None
    if not isinstance(value, (list, tuple)):
        raise InvalidRow(field, f"must be a list of messages, not {quote(value)}")
    if not value:
        raise InvalidRow(
            field, "is an empty list", "a row needs at least one message of the user and one of the assistant"
        )
    return list(value)


def _role(field: str, value: Any) -> str:
    role = ROLE_ALIASES.get(value) if isinstance(value, str) else None
    if role is None:
        raise InvalidRow(field, f'must be "system", "user", "assistant" or "tool", not {quote(value)}')
    return role


def _message(field: str, value: Any, role_key: str, content_key: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRow(field, f'must be {{"{role_key}": …, "{content_key}": …}}, not {quote(value)}')
    for key in (role_key, content_key):
        if key not in value and not (key == content_key and value.get("tool_calls")):
            raise InvalidRow(f"{field}.{key}", f"is missing; the message has {_names(value)}")
    role = _role(f"{field}.{role_key}", value[role_key])
    content = value.get(content_key)
    if content is None and value.get("tool_calls"):
        content = ""
    kept = {key: value[key] for key in _OPTIONAL_MESSAGE_FIELDS if value.get(key) is not None}
    answered = role == "assistant" and not value.get("tool_calls")
    return {"role": role, "content": _text(f"{field}.{content_key}", content, empty=not answered), **kept}


def _chat(field: str, value: Any, role_key: str, content_key: str) -> list[dict[str, Any]]:
    items = enumerate(_list(field, value))
    messages = [_message(f"{field}[{index}]", item, role_key, content_key) for index, item in items]
    if not any(message["role"] == "assistant" for message in messages):
        raise InvalidRow(field, "has no message of the assistant, so there is nothing to learn", "add the answer")
    return messages


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(str(key) for key in list(record)[:8]) or "no fields"


def _field(record: Mapping[str, Any], name: str) -> Any:
    if name not in record or record[name] is None:
        raise InvalidRow(name, f"is missing; the row has {_names(record)}")
    return record[name]


def _with_tools(record: Mapping[str, Any], messages: list[dict[str, Any]]) -> Row:
    tools = record.get("tools")
    return {"messages": messages, "tools": _list("tools", tools)} if tools else {"messages": messages}


def _chatml(record: Mapping[str, Any]) -> Row:
    return _with_tools(record, _chat("messages", _field(record, "messages"), "role", "content"))


def _sharegpt(record: Mapping[str, Any]) -> Row:
    turns = _field(record, "conversations")
    listed = _list("conversations", turns)
    uses_role = isinstance(listed[0], Mapping) and "role" in listed[0] and "from" not in listed[0]
    keys = ("role", "content") if uses_role else ("from", "value")
    messages = _chat("conversations", listed, *keys)
    system = record.get("system")
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": _text("system", system)})
    return _with_tools(record, messages)


def _alpaca(record: Mapping[str, Any]) -> Row:
    """The instruction and its input make the message of the user."""
    question = _text("instruction", _field(record, "instruction"))
    given = record.get("input")
    if given:
        question = f"{question}\n\n{_text('input', given)}"
    return _turns(record, question, _text("output", _field(record, "output")))


def _prompt_completion(record: Mapping[str, Any]) -> Row:
    """The prompt makes the message of the user; both may also be lists of messages."""
    prompt, completion = _field(record, "prompt"), _field(record, "completion")
    if isinstance(prompt, (list, tuple)) and isinstance(completion, (list, tuple)):
        return {"messages": _chat("prompt + completion", [*prompt, *completion], "role", "content")}
    return _turns(record, _text("prompt", prompt), _text("completion", completion))


def _turns(record: Mapping[str, Any], question: str, answer: str) -> Row:
    system = record.get("system")
    opening = [{"role": "system", "content": _text("system", system)}] if system else []
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [*opening, *turns]}


def _pretokenized(record: Mapping[str, Any]) -> Row:
    _field(record, "input_ids")
    try:
        return dict(read_tokens(record))
    except InvalidTokens as error:
        raise InvalidRow(error.field, error.problem, error.remedy) from None


#: Format → the fields by which it is detected, and its reader. The first match is used.
ROW_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Row]]] = {
    "chatml": (("messages",), _chatml),
    "sharegpt": (("conversations",), _sharegpt),
    "alpaca": (("instruction", "output"), _alpaca),
    "prompt_completion": (("prompt", "completion"), _prompt_completion),
    "text": (("text",), lambda row: {"text": _text("text", _field(row, "text"))}),
    "pretokenized": (("input_ids",), _pretokenized),
}

#: Optional fields: those of tokens, and those of the other formats.
_TOKEN_FIELDS = {"labels", "attention_mask"}
_ALSO_READ = {"system", "tools", "input", *_TOKEN_FIELDS}


def fields_of(format_name: str) -> tuple[str, ...]:
    """Return the fields of a format, the required ones first."""
    optional = _TOKEN_FIELDS if format_name == "pretokenized" else _ALSO_READ - _TOKEN_FIELDS
    return (*ROW_FORMATS[format_name][0], *sorted(optional))


def field_columns(mapping: Mapping[str, str], format_name: str) -> dict[str, str]:
    """Return field → column of a column mapping, which may also be written the other way round."""
    fields = fields_of(format_name)
    return dict((key, column) if key in fields else (column, key) for key, column in mapping.items())


def map_columns(record: Any, mapping: Mapping[str, str], format_name: str) -> Any:
    """Return a record under the names of the format; columns that are not mapped keep theirs."""
    if not isinstance(record, Mapping):
        return record
    columns = field_columns(mapping, format_name)
    used = set(columns.values())
    others = {name: value for name, value in record.items() if name not in used and name not in columns}
    return {**{field: record[column] for field, column in columns.items() if column in record}, **others}


def detect_format(record: Any) -> str:
    """Return the format that matches the fields of a record. Raises `InvalidRow`."""
    if not isinstance(record, Mapping):
        raise InvalidRow(None, f'a row must be an object like {{"messages": […]}}, not {quote(record)}')
    for name, (fields, _) in ROW_FORMATS.items():
        if all(field in record for field in fields):
            return name
    expected = "; ".join(" and ".join(fields) for fields, _ in ROW_FORMATS.values())
    raise InvalidRow(None, f"the row has {_names(record)}, but a row must have one of: {expected}")


def read_row(record: Any, format_name: str) -> Row:
    """Convert a record of a format to a row. Raises `InvalidRow`."""
    if not isinstance(record, Mapping):
        raise InvalidRow(None, f"a row must be an object, not {quote(record)}")
    return ROW_FORMATS[format_name][1](record)


def ignored_fields(record: Mapping[str, Any], format_name: str) -> list[str]:
    """Return the fields of a record that training does not use."""
    return [str(key) for key in record if key not in ROW_FORMATS[format_name][0] and key not in _ALSO_READ]
