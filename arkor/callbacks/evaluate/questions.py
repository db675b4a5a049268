"""The questions that a model is asked again and again, and where there are any, the answers that are expected.

They come from prompts, from rows as they are trained on, or from a file of such rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from arkor.errors import InvalidConfig
from arkor.protocol.chat import InferenceRequest, message_text
from arkor.protocol.datasets import BlobDataset, FileDataset, HuggingFaceDataset
from arkor.protocol.row_formats import InvalidRow, Row, detect_format, read_row

_FIELD = "Evaluate.questions"


@frozen
class Question:
    """What is asked, as messages; `expected` is the right answer, None where there is none."""

    messages: tuple[Mapping[str, Any], ...]
    expected: str | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None

    @property
    def text(self) -> str:
        """The last message alone."""
        return message_text(self.messages[-1])


def parse_questions(given: Any) -> tuple[Question, ...]:
    """A list of prompts, messages or rows, `{prompt: expected}`, or a file of rows. Raises `InvalidConfig`."""
    rows = _rows(given)
    found = tuple(_question(place, row) for place, row in rows)
    if not found:
        raise InvalidConfig(_FIELD, "has no question in it")
    return found


def _rows(given: Any) -> Iterator[tuple[str, Any]]:
    """Each row with the place to name when there is something wrong with it."""
    if isinstance(given, Mapping) and given.get("type") == "file" and isinstance(given.get("path"), str):
        given = FileDataset(given["path"])
    if isinstance(given, (FileDataset, Path)):
        return _read_lines(Path(given.path if isinstance(given, FileDataset) else given).expanduser())
    if isinstance(given, (HuggingFaceDataset, BlobDataset)) or _is_remote_dataset(given):
        raise InvalidConfig(_FIELD, 'are read here, before the run: name a file, FileDataset("questions.jsonl")')
    if isinstance(given, Mapping) and given and all(isinstance(item, str) for pair in given.items() for item in pair):
        return ((f"{_FIELD}[{prompt!r}]", (prompt, expected)) for prompt, expected in given.items())
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        shapes = 'a list of prompts or rows, {"prompt": "expected answer"}, or FileDataset("questions.jsonl")'
        raise InvalidConfig(_FIELD, f"must be {shapes}, not {type(given).__name__}")
    return ((f"{_FIELD}[{index}]", row) for index, row in enumerate(given))


def _is_remote_dataset(given: Any) -> bool:
    """Whether it is the dict of a data set that only a backend fetches, and not of prompts and answers."""
    names = {"huggingface": "name", "blob": "url"}
    return isinstance(given, Mapping) and names.get(str(given.get("type"))) in given


def _read_lines(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidConfig(_FIELD, f"{file} cannot be read ({reason})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{file.name}, line {number}", _json(f"{file.name}, line {number}", line)


def _json(place: str, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidConfig(place, "is not JSON; a file of questions has a row of JSON on each line") from None


def _question(place: str, row: Any) -> Question:
    if isinstance(row, str):
        return _checked(place, [{"role": "user", "content": row}], None)
    if isinstance(row, tuple) and len(row) == 2 and all(isinstance(item, str) for item in row):
        return _checked(place, [{"role": "user", "content": row[0]}], row[1])
    if isinstance(row, Mapping):
        return _from_row(place, row)
    if isinstance(row, Sequence) and not isinstance(row, bytes):
        return _from_messages(place, row, None)
    raise InvalidConfig(place, f'must be a prompt, messages, or a row {{"messages": […]}}, not {type(row).__name__}')


def _from_row(place: str, row: Mapping[str, Any]) -> Question:
    """A row as it is trained on; one of messages or of a prompt may lack the answer."""
    if row.get("completion") is None and isinstance(row.get("prompt"), str):
        opening = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        return _checked(place, [*opening, {"role": "user", "content": row["prompt"]}], None)
    if not isinstance(row.get("messages"), (list, tuple)):
        row = _read(place, row)
    tools = row.get("tools")
    return _from_messages(place, row["messages"], tuple(tools) if isinstance(tools, Sequence) and tools else None)


def _read(place: str, row: Mapping[str, Any]) -> Row:
    try:
        read = read_row(row, detect_format(row))
    except InvalidRow as fault:
        raise InvalidConfig(place, str(fault)) from None
    if "messages" not in read:
        raise InvalidConfig(place, "is a text, which asks nothing; a question has messages, or a prompt")
    return read


def _from_messages(place: str, messages: Sequence[Any], tools: tuple[Any, ...] | None) -> Question:
    """The last message is the expected answer if it is the assistant's."""
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        return _checked(place, messages, None, tools)
    expected = last.get("content")
    return _checked(place, messages[:-1], expected if isinstance(expected, str) else None, tools)


def _checked(
    place: str, messages: Sequence[Any], expected: str | None, tools: tuple[Any, ...] | None = None
) -> Question:
    try:
        InferenceRequest(messages=messages, base_model="any").check()
    except InvalidConfig as error:
        raise InvalidConfig(place, str(error)) from None
    return Question(tuple(messages), expected, tools)
