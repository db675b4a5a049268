"""Convert a record to a training row: a chat (`messages`, optionally `tools`), a `text`, or tokens.

A data set with other names of columns is read with a column mapping. `backend/data/` reads the
records, `row_messages.py` reads messages and tools, `pretokenized.py` reads tokens,
`backend/training/tokenization.py` tokenizes the other rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from arkor.formatting import quote
from arkor.protocol.pretokenized import read_tokens
from arkor.protocol.row_messages import InvalidRow as InvalidRow  # noqa: PLC0414 - re-exported
from arkor.protocol.row_messages import names, read_messages, read_text, read_tools, unused_fields, with_system

#: A training row: `{"text": str}`, `{"input_ids": […], "labels"?: […]}`, or `{"messages":
#: [{"role", "content", …}], "tools"?: […], "chat_template_kwargs"?: {…}}`. A message may have
#: `name`, `tool_calls`, `tool_call_id`, `reasoning_content`, and `weight` 0 if it is context only.
Row = dict[str, Any]


_TO_READ_TOKENS = 'for rows that are tokens, set dataset_format={"type": "pretokenized"}'


def _field(record: Mapping[str, Any], name: str) -> Any:
    if name not in record or record[name] is None:
        remedy = _TO_READ_TOKENS if "input_ids" in record and name != "input_ids" else None
        raise InvalidRow(name, f"is missing; the row has {names(record)}", remedy)
    return record[name]


def _chat(record: Mapping[str, Any], messages: list[dict[str, Any]]) -> Row:
    """Add system text, tools and the template's options to the messages."""
    row: Row = {"messages": with_system(messages, record.get("system") or record.get("system_prompt"))}
    tools = read_tools("tools", record.get("tools")) or read_tools("functions", record.get("functions"))
    options = _template_options(record.get("chat_template_kwargs"))
    return row | ({"tools": tools} if tools else {}) | ({"chat_template_kwargs": options} if options else {})


#: Arguments of `apply_chat_template` itself: the others are options of a template.
_NOT_OPTIONS = {"messages", "conversation", "tools", "tokenize", "chat_template", "add_generation_prompt"}
_NOT_OPTIONS |= {"continue_final_message", "return_assistant_tokens_mask", "return_dict", "return_tensors"}


def _template_options(value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidRow("chat_template_kwargs", f"must be an object, not {quote(value)}") from None
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRow("chat_template_kwargs", f"must be an object, not {quote(value)}")
    if reserved := sorted(_NOT_OPTIONS & set(value)):
        raise InvalidRow(f"chat_template_kwargs.{reserved[0]}", "is not an option of a chat template")
    return {str(key): item for key, item in value.items() if item is not None}


def _chatml(record: Mapping[str, Any]) -> Row:
    return _chat(record, read_messages("messages", _field(record, "messages")))


def _sharegpt(record: Mapping[str, Any]) -> Row:
    return _chat(record, read_messages("conversations", _field(record, "conversations")))


def _alpaca(record: Mapping[str, Any]) -> Row:
    """The instruction and its input make the message of the user, after the turns of `history`."""
    question = read_text("instruction", _field(record, "instruction"))
    given = record.get("input")
    if given:
        question = f"{question}\n\n{read_text('input', given)}"
    answer = read_text("output", _field(record, "output"))
    return _chat(record, [*_history(record.get("history")), *_turn(question, answer)])


def _history(value: Any) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for index, pair in enumerate(value or ()):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise InvalidRow(f"history[{index}]", f'must be ["question", "answer"], not {quote(pair)}')
        turns += _turn(*(read_text(f"history[{index}]", text) for text in pair))
    return turns


def _prompt_completion(record: Mapping[str, Any]) -> Row:
    """The prompt makes the message of the user; both may also be lists of messages.

    Answers in a prompt are context.
    """
    if record.get("label") is False:
        problem = "is false, which marks a completion that is not to be learnt"
        raise InvalidRow("label", problem, "leave the row out, or remove the field")
    prompt, completion = _field(record, "prompt"), _field(record, "completion")
    if isinstance(prompt, (list, tuple)) and isinstance(completion, (list, tuple)):
        messages = read_messages("prompt + completion", [*prompt, *completion])
        asked = len(messages) - len(read_messages("completion", completion))
        before = [{**m, "weight": 0} if m["role"] == "assistant" else m for m in messages[:asked]]
        return _chat(record, [*before, *messages[asked:]])
    return _chat(record, _turn(read_text("prompt", prompt), read_text("completion", completion)))


def _turn(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _plain(record: Mapping[str, Any]) -> Row:
    return {"text": read_text("text", _field(record, "text"))}


def _pretokenized(record: Mapping[str, Any]) -> Row:
    _field(record, "input_ids")
    return dict(read_tokens(record))


#: Format → the fields by which it is detected, and its reader. The first match is used.
ROW_FORMATS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Row]]] = {
    "chatml": (("messages",), _chatml),
    "sharegpt": (("conversations",), _sharegpt),
    "alpaca": (("instruction", "output"), _alpaca),
    "prompt_completion": (("prompt", "completion"), _prompt_completion),
    "text": (("text",), _plain),
    "pretokenized": (("input_ids",), _pretokenized),
}

_READ_IN_CHATS = {"system", "system_prompt", "tools", "functions", "chat_template_kwargs"}

#: The fields that each format reads if a record has them.
OPTIONAL_FIELDS = {
    "chatml": _READ_IN_CHATS,
    "sharegpt": _READ_IN_CHATS,
    "alpaca": {*_READ_IN_CHATS, "input", "history"},
    "prompt_completion": {*_READ_IN_CHATS, "label"},
    "text": set(),
    "pretokenized": {"labels", "attention_mask"},
}

#: Fields with media. A row with a non-empty one is refused.
MEDIA = ("images", "image", "videos", "video", "audios", "audio")

#: Fields of rows for other kinds of training → why they cannot be trained on.
OTHER_TRAINING = {
    "chosen": "holds a preference pair, which needs another kind of training",
    "rejected": "holds a preference pair, which needs another kind of training",
    "preferred_output": "holds a preference pair, which needs another kind of training",
    "segments": "holds labelled segments, which are not supported; write messages instead",
}


def fields_of(format_name: str) -> tuple[str, ...]:
    """Return the fields of a format, the required ones first."""
    return (*ROW_FORMATS[format_name][0], *sorted(OPTIONAL_FIELDS[format_name]))


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
    for field, problem in OTHER_TRAINING.items():
        if field in record:
            raise InvalidRow(field, problem)
    expected = "; ".join(" and ".join(fields) for fields, _ in ROW_FORMATS.values())
    raise InvalidRow(None, f"the row has {names(record)}, but a row must have one of: {expected}")


def read_row(record: Any, format_name: str) -> Row:
    """Convert a record of a format to a row. Raises `InvalidRow`."""
    if not isinstance(record, Mapping):
        raise InvalidRow(None, f"a row must be an object, not {quote(record)}")
    for field in MEDIA:
        if record.get(field) and format_name != "text":
            raise InvalidRow(
                field, "is not empty, but only text is trained on", "remove the field or leave the row out"
            )
    return ROW_FORMATS[format_name][1](record)


def ignored_fields(record: Mapping[str, Any], format_name: str) -> list[str]:
    """Return the fields of a record, and of its messages, that training does not use."""
    fields = ROW_FORMATS[format_name][0]
    read = {*fields, *OPTIONAL_FIELDS[format_name], *MEDIA}
    ignored = [str(key) for key, value in record.items() if key not in read and value not in (None, [], {}, "")]
    lists = [field for field in fields if field in ("messages", "conversations", "prompt", "completion")]
    return ignored + [f"{field}[].{key}" for field in lists for key in sorted(unused_fields(record.get(field)))]
