"""The GGUF files of base models, which are converted once and kept below the backend's home."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from arkor.backend.compute.gguf.base_model import write_base
from arkor.backend.runs.paths import models_folder
from arkor.files import Lock, atomic_writer

#: The version of the conversion: files of other versions are written again.
VERSION = 1

#: The number format of the weights, a key of `base_model.FORMATS`.
NUMBER_FORMAT = "f16"

#: The files that a conversion depends on.
_SOURCES = ("*.safetensors", "*.json", "*.jinja")


def converted_base(folder: Path, home: Path, config: Any, tokenizer: Any) -> Path:
    """Return the GGUF file of a model with weights of 16 bits; write it if it is missing or old.

    Raise `NotConvertible`, or OSError.
    """
    folder = folder.resolve()
    cache = models_folder(home) / "gguf"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    file = cache / f"{name}-{_source_digest(folder)}.gguf"
    with Lock(cache / f".{name}.lock"):
        if not file.is_file():
            _require_space(cache, folder)
            with atomic_writer(file) as partial:
                write_base(folder, Path(partial.name), config, tokenizer, NUMBER_FORMAT)
            for old in cache.glob(f"{name}-*"):
                if old != file:
                    old.unlink(missing_ok=True)  # a process that has it in memory keeps it
    return file


def _source_digest(folder: Path) -> str:
    """Return a digest of the names, sizes and times of the files that are converted."""
    files = sorted(file for pattern in _SOURCES for file in folder.glob(pattern))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([VERSION, NUMBER_FORMAT, stats]).encode()).hexdigest()[:16]


def _require_space(cache: Path, folder: Path) -> None:
    """Raise OSError unless 1.5 times the size of the weights is free."""
    needed = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if shutil.disk_usage(cache).free < needed * 3 // 2:
        raise OSError(errno.ENOSPC, f"not enough free space in {cache}")
