"""Rows that are tokens already: `input_ids`, and optionally `labels` and `attention_mask`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from arkor.formatting import quote
from arkor.protocol.row_messages import InvalidRow

#: The label of a token that is not learnt, in all libraries.
IGNORED_LABEL = -100


def read_tokens(record: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return `input_ids`, and `labels` if there are any, without the padding. Raise `InvalidRow`."""
    ids = _integers("input_ids", record.get("input_ids"), minimum=0)
    columns = {"input_ids": ids}
    if record.get("labels") is not None:
        columns["labels"] = _integers("labels", record["labels"], minimum=IGNORED_LABEL)
    mask = record.get("attention_mask")
    kept = ids if mask is None else _integers("attention_mask", mask, minimum=0)
    for name, column in (*columns.items(), ("attention_mask", kept)):
        if len(column) != len(ids):
            raise InvalidRow(name, f"has {len(column)} items, but input_ids has {len(ids)}")
    if mask is not None:
        columns = {
            name: [item for item, keep in zip(column, kept, strict=True) if keep] for name, column in columns.items()
        }
    if not columns["input_ids"]:
        raise InvalidRow("input_ids", "has no tokens", "leave the row out")
    if any(label < 0 and label != IGNORED_LABEL for label in columns.get("labels", ())):
        raise InvalidRow("labels", f"must be token ids, or {IGNORED_LABEL} for tokens that are not learnt")
    return columns


def _integers(name: str, value: Any, minimum: int) -> list[int]:
    if isinstance(value, str):  # a CSV file has lists as JSON
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidRow(name, f"must be a list of numbers, not {quote(value)}") from None
    if not isinstance(value, (list, tuple)):
        raise InvalidRow(name, f"must be a list of token ids, not {quote(value)}")
    for item in value:
        if type(item) is not int or not minimum <= item < 2**31:
            raise InvalidRow(name, f"must contain token ids, not {quote(item)}")
    return list(value)
