"""Load a base model into llama.cpp; its GGUF file is written when it is first needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arkor.backend.compute.gguf.cache import converted_base
from arkor.backend.compute.models import load_configs, load_tokenizer
from arkor.backend.inference.llama_cpp.library import EngineUnavailable, load_library
from arkor.backend.inference.llama_cpp.model import LlamaModel

#: Processes that may end while they load a model, before its answers go to the reference engine.
MAX_CRASHES = 2


def load_llama_model(name: str, model: str, home: Path) -> LlamaModel:
    """Load the model in a folder, or of an id in the cache of the Hugging Face hub.

    Raise `RunError`, `NotConvertible`, `EngineUnavailable` or OSError.
    """
    load_library()
    folder = _snapshot(model)
    config, generation_config = load_configs(str(folder))
    tokenizer = load_tokenizer(str(folder))
    file = converted_base(folder, home, config, tokenizer)
    with _crashes_counted(file):
        loaded = LlamaModel(name, file, tokenizer, config, generation_config)
        loaded.warm_up()
    return loaded


@contextmanager
def _crashes_counted(file: Path) -> Iterator[None]:
    """Count the processes that end in the block, as llama.cpp ends them after a fatal error.

    Raise `EngineUnavailable` after `MAX_CRASHES`: the reference engine is to answer then. The count
    ends with a success, and with another conversion of the model.
    """
    record = file.with_suffix(".crashes")
    count = len(record.read_bytes()) if record.is_file() else 0
    if count >= MAX_CRASHES:
        problem = f"llama.cpp has ended {count} processes that used {file}."
        raise EngineUnavailable(problem, remedy=f"Delete {record} to try again.")
    record.write_bytes(b"." * (count + 1))
    try:
        yield
    finally:
        record.unlink(missing_ok=True)


def _snapshot(model: str) -> Path:
    """Return the folder of a model. Raise `EngineUnavailable` if it is not on this machine yet."""
    if Path(model).is_dir():
        return Path(model)
    import huggingface_hub  # noqa: PLC0415 - slow to import, and only models of the hub need it

    cached: Any = huggingface_hub.try_to_load_from_cache(model, "config.json")
    folder = Path(cached).parent if isinstance(cached, str) else None
    if folder is None or not any(folder.glob("*.safetensors")):
        raise EngineUnavailable(f"{model} has not been downloaded yet.")
    return folder
