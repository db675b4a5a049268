"""Where the rows of a run come from: the Hugging Face hub, a URL, or a file on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import attrs
from attrs import field, frozen

from arkor.errors import InvalidConfig
from arkor.formatting import quote

_NOT_EMPTY = {"schema": {"type": "string", "minLength": 1}}


@frozen
class HuggingFaceDataset:
    """A data set of the Hugging Face hub; `split` and `subset` override its defaults."""

    name: str = field(metadata=_NOT_EMPTY)
    split: str | None = field(default=None, metadata=_NOT_EMPTY)
    subset: str | None = field(default=None, metadata=_NOT_EMPTY)
    extra: Mapping[str, Any] = field(factory=dict, repr=False)
    type: str = field(default="huggingface", init=False)


@frozen
class BlobDataset:
    """A file at an HTTP(S) URL; `token` is sent as `Authorization: Bearer` and never shown.

    A URL that begins with `/v1/datasets/` is a file that was uploaded to the backend.
    """

    url: str = field(metadata={"schema": {"type": "string", "pattern": "^(https?://|/v1/datasets/)"}})
    token: str | None = field(default=None, repr=False, metadata=_NOT_EMPTY)
    extra: Mapping[str, Any] = field(factory=dict, repr=False)
    type: str = field(default="blob", init=False)


def _fspath(value: str | os.PathLike[str]) -> str:
    """Convert a PathLike to str; return anything else unchanged."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@frozen
class FileDataset:
    """A file on this machine; it is uploaded to the backend when the run is submitted."""

    path: str = field(converter=_fspath)
    type: str = field(default="file", init=False)


DatasetSource = HuggingFaceDataset | BlobDataset | FileDataset

_SECRETS = re.compile("tok|secret|passw|auth|key|header|cookie|credential", re.IGNORECASE)
_SOURCES: dict[str, type[Any]] = {"huggingface": HuggingFaceDataset, "blob": BlobDataset, "file": FileDataset}


def parse_dataset(value: Any, *, tolerant: bool = False) -> DatasetSource:
    """Return the checked source of an object or a dict; `tolerant` keeps unknown fields."""
    if isinstance(value, Mapping):
        value = dataset_from_dict(value, tolerant)
    if not isinstance(value, (HuggingFaceDataset, BlobDataset, FileDataset)):
        raise InvalidConfig("dataset", _dataset_hint(value))
    names = _field_names(type(value))
    for name in names:
        item = getattr(value, name)
        if (item is None and name == names[0]) or (item is not None and (not isinstance(item, str) or not item)):
            raise InvalidConfig(f"dataset.{name}", "must be a non-empty string")
    if isinstance(value, BlobDataset) and not value.url.startswith(("http://", "https://", "/v1/datasets/")):
        raise InvalidConfig("dataset.url", "must begin with http:// or https://", "for a file on disk use FileDataset")
    return value


def dataset_from_dict(value: Mapping[str, Any], tolerant: bool) -> Any:
    """Decode a data set object without checking its values. Raises `InvalidConfig` for its form."""
    cls = _SOURCES.get(str(value.get("type")))
    if cls is None:
        raise InvalidConfig("dataset.type", f'must be "huggingface", "blob" or "file", not {quote(value.get("type"))}')
    known = _field_names(cls)
    named = {key: item for key, item in value.items() if key in known}
    extra = {key: item for key, item in value.items() if key not in known and key != "type"}
    for key in extra:
        if not tolerant or cls is FileDataset or _SECRETS.search(key):  # `extra` is shown, so it must not hold a secret
            problem = f"is not a field of a {value['type']} data set; it has {', '.join(known)}"
            raise InvalidConfig(f"dataset.{key}", problem)
    if known[0] not in named:
        raise InvalidConfig(f"dataset.{known[0]}", "is missing")
    return cls(**named, **({"extra": extra} if extra else {}))


def _field_names(cls: Any) -> list[str]:
    """Return the fields of a source that a user gives; the first is required."""
    return [f.name for f in attrs.fields(cls) if f.init and f.name != "extra"]


def _dataset_hint(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return 'cannot be a list of rows; write them into a file, one JSON object a line: {"type": "file", "path": …}'
    value = _fspath(value)
    if not isinstance(value, str):
        return f'must be {{"type": "huggingface" | "blob" | "file", …}}, not {quote(value)}'
    if value.startswith(("http://", "https://")):
        return f'write {{"type": "blob", "url": {value!r}}}'
    return f'write {{"type": "file", "path": {value!r}}}, or {{"type": "huggingface", "name": …}} for one of the hub'
