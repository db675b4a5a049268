"""Find the JSON schema that a system message asks the answer to follow.

Clients without structured output of their own describe the answer in the system message and send
`response_format: {"type": "json_object"}`: pydantic-ai's `PromptedOutput`, instructor's `Mode.JSON`.
A small model repeats the schema instead of following it, unless the answer is constrained to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arkor.backend.inference.json_schema import InvalidSchema, check_schema
from arkor.protocol.chat import message_text

#: Longer messages are not searched, nor further positions, of which each may be a long way from the
#: end of its JSON.
MAX_LENGTH, MAX_POSITIONS = 100_000, 200


def find_prompted_schema(messages: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the last schema of an object in the system messages, None without a valid one."""
    texts = [message_text(message) for message in messages if message["role"] == "system"]
    found = [value for text in texts for value in _json_objects(text) if _is_schema(value)]
    return found[-1] if found else None


def _json_objects(text: str) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON objects in a text, the outermost ones."""
    if len(text) > MAX_LENGTH:
        return
    decoder, position = json.JSONDecoder(), 0
    for _ in range(MAX_POSITIONS):
        position = text.find("{", position)
        if position < 0:
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position += 1
        else:
            yield value


def _is_schema(value: Mapping[str, Any]) -> bool:
    properties = value.get("properties")
    if value.get("type") != "object" or not isinstance(properties, Mapping) or not properties:
        return False
    try:
        check_schema("response_format", value, strict=False)
    except InvalidSchema:
        return False
    return True
