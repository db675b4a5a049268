"""Read the messages, tool calls and tools of a training row, in the forms of the known data formats.

`row_formats.py` finds them in a record. `docs/data.md` lists all fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from arkor.errors import StructuredError
from arkor.formatting import quote


class InvalidRow(StructuredError, ValueError):
    """A record that cannot be used for training; `field` is None if the whole record is wrong."""

    def __init__(self, field: str | None, problem: str, remedy: str | None = None) -> None:
        super().__init__(problem, field=field, remedy=remedy)
        self.args = (field, problem, remedy)


#: Names that data sets use for the roles.
ROLE_ALIASES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response", "ipython"), "tool"),
}

#: Roles whose content is a call, or a list of calls, as JSON.
_CALL_ROLES = ("function_call", "tool_call")

#: Names of the field with an assistant's thoughts.
_REASONING = ("reasoning_content", "reasoning", "thinking")

#: Names of the field that says whether an assistant's message is learnt.
_WEIGHTS = ("weight", "train", "training")

#: Message fields that would change what is learnt, and are not supported.
_UNSUPPORTED = {
    "audio": "audio is not supported; only text is trained on",
    "train_detail": "parts of a message cannot be selected; use weight for whole messages",
    "training_detail": "parts of a message cannot be selected; use weight for whole messages",
}

#: The fields of a message that are read.
FIELDS = {"role", "from", "content", "value", "name", "tool_calls", "tool_call_id", "function_call", "refusal"}
FIELDS |= {*_REASONING, *_WEIGHTS, *_UNSUPPORTED}

_TEXT_PARTS = ("text", "input_text", "output_text")


def read_messages(field: str, value: Any) -> list[dict[str, Any]]:
    """Return the messages of a chat. Raise `InvalidRow`."""
    items = as_list(field, value)
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        message = _message(f"{field}[{index}]", item)
        if messages and _is_call(item) and _is_call(items[index - 1]):  # parallel calls
            messages[-1]["tool_calls"] += message["tool_calls"]
        else:
            messages.append(message)
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise InvalidRow(field, "has no message of the assistant, so there is nothing to learn", "add the answer")
    if all(message.get("weight") == 0 for message in answers):
        raise InvalidRow(field, "has only messages of the assistant with the weight 0, so there is nothing to learn")
    return messages


def read_tools(field: str, value: Any) -> list[dict[str, Any]]:
    """Return tools in OpenAI's format, from that format, from bare functions, or from JSON of either."""
    tools = []
    for index, item in enumerate(as_list(field, value, "tools") if value else ()):
        tool = _json_object(item)
        if not isinstance(tool, Mapping):
            raise InvalidRow(f"{field}[{index}]", f'must be {{"type": "function", "function": …}}, not {quote(item)}')
        wrapped = {"type": "function", "function": dict(tool)} if "name" in tool else dict(tool)
        function = wrapped.get("function")
        if isinstance(function, Mapping) and isinstance(function.get("parameters"), str):
            wrapped["function"] = {**function, "parameters": _json_object(function["parameters"])}
        tools.append(wrapped)
    return tools


def unused_fields(messages: Any) -> set[str]:
    """Return the fields of messages that are not read."""
    found: set[str] = set()
    for message in messages if isinstance(messages, (list, tuple)) else ():
        if isinstance(message, Mapping):
            found |= {str(key) for key, value in message.items() if key not in FIELDS and value not in (None, [], {})}
            if ROLE_ALIASES.get(message.get("role", message.get("from"))) != "assistant":
                found |= {key for key in _WEIGHTS if message.get(key)}
    return found


def read_text(field: str, value: Any, *, empty: bool = False) -> str:
    """Return a text that can be encoded; `empty` allows an empty one."""
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


def as_list(field: str, value: Any, of: str = "messages") -> list[Any]:
    """Check a list, which a CSV file has as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidRow(field, "looks like a JSON list but cannot be read as one") from None
    if isinstance(value, Mapping) and _is_columns(value):  # a sequence of the `datasets` library
        value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    if not isinstance(value, (list, tuple)):
        raise InvalidRow(field, f"must be a list of {of}, not {quote(value)}")
    if not value and of == "messages":
        raise InvalidRow(
            field, "is an empty list", "a row needs at least one message of the user and one of the assistant"
        )
    return list(value)


def _is_columns(value: Mapping[str, Any]) -> bool:
    lengths = {len(column) if isinstance(column, list) else -1 for column in value.values()}
    return len(lengths) == 1 and -1 not in lengths


def names(record: Mapping[str, Any]) -> str:
    """Return the names of a record's fields, for a message."""
    return ", ".join(str(key) for key in list(record)[:8]) or "no fields"


def _json_object(value: Any) -> Any:
    """Return the object of a text that is JSON of one; return anything else unchanged."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_call(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role", message.get("from")) in _CALL_ROLES


def _message(field: str, value: Any) -> dict[str, Any]:
    role_key, content_key = ("from", "value") if _uses_from(field, value) else ("role", "content")
    _check_fields(field, value, role_key, content_key)
    role = _role(f"{field}.{role_key}", value[role_key])
    if _is_call(value):
        return _called(f"{field}.{content_key}", value, value[content_key])
    read: dict[str, Any] = {"role": role, **(_weight(field, value) if role == "assistant" else {})}
    given = value.get(content_key)
    content, thoughts = _content(f"{field}.{content_key}", _result(given) if role == "tool" else given)
    calls = _calls(field, value, role)
    if content is None:
        content = value.get("refusal") if value.get("refusal") is not None else "" if calls else None
    answered = role == "assistant" and not calls and read.get("weight") != 0
    read["content"] = read_text(f"{field}.{content_key}", content, empty=not answered)
    read |= {key: value[key] for key in ("name", "tool_call_id") if value.get(key) is not None}
    thoughts = next((value[key] for key in _REASONING if value.get(key)), thoughts)
    if thoughts:
        read["reasoning_content"] = read_text(f"{field}.reasoning_content", thoughts)
    return read | ({"tool_calls": calls} if calls else {})


def _check_fields(field: str, value: Any, role_key: str, content_key: str) -> None:
    """Raise `InvalidRow` for a message without its fields, or with one that is not supported."""
    if not isinstance(value, Mapping):
        raise InvalidRow(field, f'must be {{"{role_key}": …, "{content_key}": …}}, not {quote(value)}')
    has_other = any(value.get(key) for key in ("tool_calls", "function_call", "refusal"))
    for key in (role_key, content_key):
        if key not in value and not (key == content_key and has_other):
            raise InvalidRow(f"{field}.{key}", f"is missing; the message has {names(value)}")
    for key, problem in _UNSUPPORTED.items():
        if value.get(key):
            raise InvalidRow(f"{field}.{key}", problem)


def _uses_from(field: str, value: Any) -> bool:
    if not isinstance(value, Mapping):
        return field.startswith("conversations")
    return "role" not in value and ("from" in value or "value" in value)


def _role(field: str, value: Any) -> str:
    role = ROLE_ALIASES.get(value) if isinstance(value, str) else None
    if role is None:
        raise InvalidRow(field, f'must be "system", "user", "assistant" or "tool", not {quote(value)}')
    return role


def _weight(field: str, value: Mapping[str, Any]) -> dict[str, int]:
    key = next((key for key in _WEIGHTS if value.get(key) is not None), None)
    if key is None:
        return {}
    if value[key] not in (0, 1):
        raise InvalidRow(f"{field}.{key}", f"must be 0 (context only) or 1 (learnt), not {quote(value[key])}")
    return {} if value[key] else {"weight": 0}


def _result(value: Any) -> Any:
    """Return the result of a tool as text if it is a JSON value."""
    has_parts = isinstance(value, (list, tuple)) and all(isinstance(p, Mapping) and "type" in p for p in value)
    return value if value is None or isinstance(value, str) or has_parts else json.dumps(value, ensure_ascii=False)


def _content(field: str, value: Any) -> tuple[Any, str]:
    """Return the text of a content, and the thoughts among its parts."""
    if not isinstance(value, (list, tuple)):
        return value, ""
    texts: list[str] = []
    thoughts: list[str] = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text" if kind in _TEXT_PARTS else kind) if kind is not None else None
        if isinstance(part, str):
            texts.append(part)
        elif kind in (*_TEXT_PARTS, "refusal") and isinstance(text, str):
            texts.append(text)
        elif kind in ("thinking", "reasoning") and isinstance(text, str):
            thoughts.append(text)
        else:
            problem = f"must be a string or a list of text parts, but part {index} is {quote(part)}"
            raise InvalidRow(field, problem, "only text is trained on")
    return "".join(texts), "".join(thoughts)


def _called(field: str, value: Mapping[str, Any], content: Any) -> dict[str, Any]:
    """Return the message of a role whose content is a call, or a list of calls, as JSON."""
    thoughts, found, rest = content.rpartition("</think>") if isinstance(content, str) else ("", "", content)
    try:
        given = json.loads(rest) if isinstance(rest, str) else rest
    except (ValueError, RecursionError):
        given = None
    listed = given if isinstance(given, list) else [given]
    calls = [_call(field, call) for call in listed if isinstance(call, Mapping) and "name" in call]
    if not calls or len(calls) < len(listed):
        raise InvalidRow(field, f'must be JSON like {{"name": …, "arguments": {{…}}}}, not {quote(content)}')
    reasoning = {"reasoning_content": thoughts.replace("<think>", "").strip()} if found else {}
    return {"role": "assistant", "content": "", **_weight(field, value), **reasoning, "tool_calls": calls}


def _calls(field: str, value: Mapping[str, Any], role: str) -> list[dict[str, Any]]:
    listed = value.get("tool_calls") or ([value["function_call"]] if value.get("function_call") else [])
    if not listed:
        return []
    if role != "assistant":
        raise InvalidRow(f"{field}.tool_calls", "belong in messages of the assistant only")
    calls = as_list(f"{field}.tool_calls", listed, "calls")
    return [_call(f"{field}.tool_calls[{index}]", call) for index, call in enumerate(calls)]


def _call(field: str, value: Any) -> dict[str, Any]:
    """Return a call as `{"id"?, "function": {"name", "arguments"}}`."""
    call = _json_object(value)
    flat = isinstance(call, Mapping) and "name" in call and "function" not in call
    function = call if flat else _json_object(call.get("function")) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRow(field, f'must be {{"function": {{"name": …, "arguments": …}}}}, not {quote(value)}')
    arguments = function.get("arguments", function.get("parameters"))
    parsed = _json_object(arguments)
    if not isinstance(parsed, Mapping) and arguments not in (None, ""):
        problem = f"must be an object, or JSON of one, not {quote(arguments)}"
        raise InvalidRow(f"{field}.function.arguments", problem)
    kept = {key: item for key, item in call.items() if key in ("id", "type") and item is not None}
    return {**kept, "function": {"name": function["name"], "arguments": {} if arguments is None else arguments}}


def with_system(messages: Sequence[dict[str, Any]], system: Any) -> list[dict[str, Any]]:
    """Put the text of a system field before the messages, unless they begin with one."""
    if not system or (messages and messages[0]["role"] == "system"):
        return list(messages)
    return [{"role": "system", "content": read_text("system", system)}, *messages]
