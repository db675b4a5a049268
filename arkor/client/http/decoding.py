"""The JSON object of an answer → the classes that it stands for; what makes no sense is an error of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import frozen

from arkor.errors import CloudApiError
from arkor.protocol.codec import from_wire
from arkor.protocol.datasets import BlobDataset

T = TypeVar("T")


@frozen
class Upload:
    """A stored file; `url` is relative to the backend."""

    url: str

    def as_source(self) -> BlobDataset:
        return BlobDataset(self.url)


def decode_one(cls: type[T], answer: Mapping[str, Any], key: str) -> T:
    """`answer[key]` as an instance of `cls`; what the class does not know is kept in its `extra`."""
    return decode(cls, answer.get(key), key)


def decode_list(cls: type[T], answer: Mapping[str, Any], key: str) -> list[T]:
    items = answer.get(key)
    if not isinstance(items, list):
        raise _invalid_response(key)
    return [decode(cls, item, key) for item in items]


def decode(cls: type[T], data: Any, name: str) -> T:
    try:
        return from_wire(cls, data)
    except (TypeError, AttributeError):
        raise _invalid_response(name) from None


def _invalid_response(name: str) -> CloudApiError:
    sentence = f"the backend's answer has no usable {name!r}; is this really the address of an Arkor backend?"
    return CloudApiError(200, "bad_answer", sentence)
