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
    """A file behind an HTTP(S) URL; `token` goes out as `Authorization: Bearer` and is never shown.

    A URL that begins with `/v1/datasets/` is a file that was uploaded to the backend itself.
    """

    url: str = field(metadata={"schema": {"type": "string", "pattern": "^(https?://|/v1/datasets/)"}})
    token: str | None = field(default=None, repr=False, metadata=_NOT_EMPTY)
    extra: Mapping[str, Any] = field(factory=dict, repr=False)
    type: str = field(default="blob", init=False)


def _path(value: str | os.PathLike[str]) -> str:
    """A path as text; what is none stays, for `parse_dataset` to refuse."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@frozen
class FileDataset:
    """A file on this machine; it is uploaded to the backend when the run is submitted."""

    path: str = field(converter=_path)
    type: str = field(default="file", init=False)


DatasetSource = HuggingFaceDataset | BlobDataset | FileDataset

_SECRETS = re.compile("tok|secret|passw|auth|key|header|cookie|credential", re.IGNORECASE)
_SOURCES: dict[str, type[Any]] = {"huggingface": HuggingFaceDataset, "blob": BlobDataset, "file": FileDataset}


def parse_dataset(value: Any, *, tolerant: bool = False) -> DatasetSource:
    """A data set object or the seeds' dict → a checked `DatasetSource`; raises `InvalidConfig`.

    `tolerant`: a field that is not known here, of another version, is kept as `extra`.
    """
    if isinstance(value, Mapping):
        value = dataset_from_dict(value, tolerant)
    if not isinstance(value, (HuggingFaceDataset, BlobDataset, FileDataset)):
        raise InvalidConfig("dataset", _dataset_hint(value))
    required = "path" if isinstance(value, FileDataset) else "url" if isinstance(value, BlobDataset) else "name"
    for name in _names(type(value)):
        item = getattr(value, name)
        if (item is None and name == required) or (item is not None and (not isinstance(item, str) or not item)):
            raise InvalidConfig(f"dataset.{name}", "must be a non-empty string")
    if isinstance(value, BlobDataset) and not value.url.startswith(("http://", "https://", "/v1/datasets/")):
        raise InvalidConfig("dataset.url", "must begin with http:// or https://; for a file on disk use FileDataset")
    return value


def _dataset_hint(value: Any) -> str:
    """What to write instead of a plain string, or of anything else."""
    if isinstance(value, (list, tuple)):
        return 'cannot be a list of rows; write them into a file, one JSON object a line: {"type": "file", "path": …}'
    value = _path(value)
    if not isinstance(value, str):
        return f'must be {{"type": "huggingface" | "blob" | "file", …}}, not {quote(value)}'
    if value.startswith(("http://", "https://")):
        return f'write {{"type": "blob", "url": {value!r}}}'
    return f'write {{"type": "file", "path": {value!r}}}, or {{"type": "huggingface", "name": …}} for one of the hub'


def _names(cls: Any) -> list[str]:
    return [f.name for f in attrs.fields(cls) if f.init and f.name != "extra"]


def dataset_from_dict(value: Mapping[str, Any], tolerant: bool) -> Any:
    cls = _SOURCES.get(str(value.get("type")))
    if cls is None:
        raise InvalidConfig("dataset.type", f'must be "huggingface", "blob" or "file", not {quote(value.get("type"))}')
    rest = {key: item for key, item in value.items() if key != "type"}
    known = _names(cls)
    extra = {key: item for key, item in rest.items() if key not in known}
    for key in extra:
        if not tolerant or cls is FileDataset or _SECRETS.search(key):  # what is kept is shown
            problem = f"is no field of a {value['type']} data set; it has {', '.join(known)}"
            raise InvalidConfig(f"dataset.{key}", problem)
    if known[0] not in rest:
        raise InvalidConfig(f"dataset.{known[0]}", "is missing")
    named = {key: item for key, item in rest.items() if key in known}
    return cls(**named, **({"extra": extra} if extra else {}))
