"""The questions of an evaluation, from prompts, rows of training data, or a file of rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from arkor.errors import InvalidConfig
from arkor.protocol.chat import InferenceRequest, message_text
from arkor.protocol.datasets import BlobDataset, FileDataset, HuggingFaceDataset
from arkor.protocol.row_formats import InvalidRow, detect_format, read_row

_FIELD = "Evaluate.questions"


@frozen
class Question:
    """The messages to send, and the expected answer if there is one."""

    messages: tuple[Mapping[str, Any], ...]
    expected: str | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None

    @property
    def text(self) -> str:
        return message_text(self.messages[-1])


def parse_questions(given: Any) -> tuple[Question, ...]:
    questions = tuple(_question(location, row) for location, row in _rows(given))
    if not questions:
        raise InvalidConfig(_FIELD, "must contain at least one question")
    return questions


def _rows(given: Any) -> Iterator[tuple[str, Any]]:
    """Return the rows, each with its location for error messages."""
    if isinstance(given, Mapping) and given.get("type") == "file" and isinstance(given.get("path"), str):
        given = FileDataset(given["path"])
    if isinstance(given, (FileDataset, Path)):
        return _read_lines(Path(given.path if isinstance(given, FileDataset) else given).expanduser())
    if isinstance(given, (HuggingFaceDataset, BlobDataset)) or _is_remote_dataset(given):
        raise InvalidConfig(_FIELD, "are read on this machine", 'use a file, FileDataset("questions.jsonl")')
    if isinstance(given, Mapping) and given and all(isinstance(item, str) for pair in given.items() for item in pair):
        return ((f"{_FIELD}[{prompt!r}]", (prompt, expected)) for prompt, expected in given.items())
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        shapes = 'a list of prompts or rows, {"prompt": "expected answer"}, or FileDataset("questions.jsonl")'
        raise InvalidConfig(_FIELD, f"must be {shapes}, not {type(given).__name__}")
    return ((f"{_FIELD}[{index}]", row) for index, row in enumerate(given))


def _is_remote_dataset(given: Any) -> bool:
    """Return True for a dict like `{"type": "huggingface", "name": …}`, which a backend reads."""
    required_keys = {"huggingface": "name", "blob": "url"}
    return isinstance(given, Mapping) and required_keys.get(str(given.get("type"))) in given


def _read_lines(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidConfig(_FIELD, f"{file} cannot be read ({reason})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            location = f"{file.name}, line {number}"
            try:
                yield location, json.loads(line)
            except (ValueError, RecursionError):
                raise InvalidConfig(location, "is not JSON; each line must be one row as a JSON object") from None


def _question(location: str, row: Any) -> Question:
    if isinstance(row, str):
        return _checked(location, [{"role": "user", "content": row}])
    if isinstance(row, tuple) and len(row) == 2 and all(isinstance(item, str) for item in row):
        return _checked(location, [{"role": "user", "content": row[0]}], row[1])
    if isinstance(row, Mapping):
        return _from_row(location, row)
    if isinstance(row, Sequence) and not isinstance(row, bytes):
        return _from_messages(location, row, None)
    raise InvalidConfig(location, f'must be a prompt, messages, or a row {{"messages": […]}}, not {type(row).__name__}')


def _from_row(location: str, row: Mapping[str, Any]) -> Question:
    """Convert a row of training data; unlike there, the answer may be missing."""
    if row.get("completion") is None and isinstance(row.get("prompt"), str):
        system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        return _checked(location, [*system, {"role": "user", "content": row["prompt"]}])
    if not isinstance(row.get("messages"), (list, tuple)):
        try:
            row = read_row(row, detect_format(row))
        except InvalidRow as error:
            raise InvalidConfig(location, str(error)) from None
        if "messages" not in row:
            kind = "a list of tokens" if "input_ids" in row else "a plain text without a question"
            raise InvalidConfig(location, f"is {kind}; give messages or a prompt")
    tools = row.get("tools")
    return _from_messages(location, row["messages"], tuple(tools) if isinstance(tools, Sequence) and tools else None)


def _from_messages(location: str, messages: Sequence[Any], tools: tuple[Any, ...] | None) -> Question:
    """Take the last message as the expected answer if its role is assistant."""
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        return _checked(location, messages, None, tools)
    expected = last.get("content")
    return _checked(location, messages[:-1], expected if isinstance(expected, str) else None, tools)


def _checked(
    location: str, messages: Sequence[Any], expected: str | None = None, tools: tuple[Any, ...] | None = None
) -> Question:
    try:
        InferenceRequest(messages=messages, base_model="any").check()
    except InvalidConfig as error:
        raise InvalidConfig(location, f"{error.field}: {error.problem}", error.remedy) from None
    return Question(tuple(messages), expected, tools)
