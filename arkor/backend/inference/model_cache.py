"""The models in memory: each base model once, with its recently used adapters."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from arkor.backend.compute.device import choose_device
from arkor.backend.compute.models import load_model, load_tokenizer, local_folder
from arkor.backend.engine.interface import RunError
from arkor.backend.inference.grammar import GrammarCompiler
from arkor.backend.inference.messages import GenerationError
from arkor.backend.inference.prompts import PromptBuilder
from arkor.backend.runs.checkpoints import locate
from arkor.formatting import one_line

#: Adapters of a base model in memory; the least recently used one is evicted.
MAX_ADAPTERS = 8

#: Adapters compute in the number format of their base, as in training; in fp32 a token takes 50%
#: longer.
_AS_TRAINED = {"autocast_adapter_dtype": False}


def weights_mtime(folder: str) -> int:
    """Return when the weights in a folder were last written, in ns; 0 without weights."""
    return max((file.stat().st_mtime_ns for file in Path(folder).glob("*.safetensors")), default=0)


class ServedModel:
    """A base model in memory, with adapters that can be switched.

    Base and adapters take at most `limit` bytes if evicting adapters can achieve it.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, limit: int = sys.maxsize) -> None:
        self.name = name
        self._memory_limit = limit
        self.model = model
        self.tokenizer = tokenizer
        self.broken = False
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.prompts = PromptBuilder(tokenizer, self.context)
        self.stop_tokens = self._stop_tokens()
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        self.grammars = GrammarCompiler(tokenizer, self.vocabulary, sorted(self.stop_tokens))
        self._token_bytes: dict[int, tuple[int, ...]] = {}
        self._peft: Any = None
        self._adapters: OrderedDict[tuple[str, int], str] = OrderedDict()
        self._active: str | None = None
        self._load_count = 0

    @property
    def bytes(self) -> int:
        """The size of the base and its adapters in memory."""
        return sum(tensor.nbytes for tensor in self.model.parameters())

    def token_bytes(self, token: int) -> tuple[int, ...]:
        """Return the bytes of a token. Raise `GenerationError` for an unsupported tokenizer."""
        if token not in self._token_bytes:
            self._token_bytes[token] = tuple(self.grammars.token_bytes(token))
        return self._token_bytes[token]

    @property
    def repetition_penalty(self) -> float:
        """The default of the model's `generation_config.json`; 1 has no effect."""
        return float(getattr(self.model.generation_config, "repetition_penalty", None) or 1.0)

    def _stop_tokens(self) -> frozenset[int]:
        """Return the end tokens of the model and of its chat template, which training teaches."""
        eos_tokens = getattr(self.model.generation_config, "eos_token_id", None)
        listed = eos_tokens if isinstance(eos_tokens, (list, tuple)) else [eos_tokens]
        tokens = (*listed, self.tokenizer.eos_token_id, *self.prompts.end_token_ids)
        return frozenset(token for token in tokens if token is not None)

    def activate(self, adapter: str | None) -> None:
        """Switch to the adapter in that folder, or to the base alone. Raise `GenerationError`."""
        name = None if adapter is None else self._adapter_name(adapter)
        if name == self._active:
            return
        if name is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            if self._active is None:
                self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(name)
        self._active = name

    def _adapter_name(self, wanted: str) -> str:
        folder = str(locate(Path(wanted)))
        key = (folder, weights_mtime(folder))
        if key not in self._adapters:
            self._evict(_size_on_disk(folder))
            self._adapters[key] = self._load(folder)
        self._adapters.move_to_end(key)
        return self._adapters[key]

    def _load(self, folder: str) -> str:
        from peft import PeftModel  # noqa: PLC0415 - slow to import, and only adapters need it

        self._load_count += 1
        name = f"adapter-{self._load_count}"
        _check_adapter_files(folder)
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self.model, folder, adapter_name=name, **_AS_TRAINED)
                self._peft.base_model.disable_adapter_layers()
            else:
                self._peft.load_adapter(folder, name, **_AS_TRAINED)
        except Exception as error:
            self.broken = True  # part of the adapter may be in the model now
            detail = f"The adapter in {folder} cannot be added to {self.name}: {one_line(str(error), 300)}"
            problem = "The adapter does not fit its base model."
            raise GenerationError(409, "adapter_unusable", problem, remedy=detail) from error
        self.model.eval()
        return name

    def _evict(self, needed: int) -> None:
        """Evict adapters but the active one until `needed` bytes and one more adapter fit."""
        while len(self._adapters) >= MAX_ADAPTERS or (self._adapters and self.bytes + needed > self._memory_limit):
            key = next((key for key, name in self._adapters.items() if name != self._active), None)
            if key is None:
                return
            self._peft.delete_adapter(self._adapters.pop(key))


def _check_adapter_files(folder: str) -> None:
    """Require a complete safetensors file; without it, PEFT unpickles a `.bin` file."""
    try:
        with safe_open(str(Path(folder, "adapter_model.safetensors")), "pt") as file:
            file.keys()
    except (OSError, SafetensorError) as error:
        problem = "The adapter cannot be read."
        raise GenerationError(409, "adapter_unusable", problem, remedy=f"Its folder is {folder}: {error}") from error


class ModelCache:
    """Base models in memory, loaded one at a time in a separate thread.

    Loading changes torch's default dtype for the whole process, so concurrent code must not rely on
    it.

    Before a model is loaded, the least recently used ones are evicted until all fit into `limit`
    bytes (default: half of the device's memory). A model that is larger than the limit is loaded
    nevertheless.
    """

    def __init__(self, home: Path, limit: int | None = None) -> None:
        self._home = home
        self._limit = limit if limit is not None else _device_memory() // 2
        self._lock = Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._models: OrderedDict[tuple[str, int], Future[ServedModel]] = OrderedDict()

    def get(self, model: str) -> Future[ServedModel]:
        """Return the future of a model, which raises `GenerationError` if loading fails."""
        key = (model, weights_mtime(model))
        with self._lock:
            if key not in self._models or _is_lost(self._models[key]):
                self._models[key] = self._loader.submit(self._load, model)
            self._models.move_to_end(key)
            return self._models[key]

    def evict_idle(self, used: Sequence[ServedModel]) -> None:
        """Evict every base model that is not in use."""
        with self._lock:
            for key, future in list(self._models.items()):
                if future.done() and (_is_lost(future) or not any(future.result() is model for model in used)):
                    del self._models[key]

    def _load(self, model: str) -> ServedModel:
        try:
            folder = local_folder(model, self._home, partial(print, file=sys.stderr, flush=True))
            self._evict(_size_on_disk(folder))
            device = choose_device()
            loaded = load_model(folder, dtype=device.dtype).to(device.kind).eval()
            return ServedModel(model, loaded, load_tokenizer(folder), self._limit)
        except RunError as error:
            problem = "The base model cannot be loaded."
            raise GenerationError(400, "model_unavailable", problem, remedy=str(error)) from error

    def _evict(self, needed: int) -> None:
        with self._lock:
            for key, future in list(self._models.items()):
                total = sum(
                    other.result().bytes for other in self._models.values() if other.done() and not _is_lost(other)
                )
                if total + needed <= self._limit:
                    return
                if future.done():
                    del self._models[key]


def _is_lost(future: Future[ServedModel]) -> bool:
    """Whether a model could not be loaded, or was broken by an adapter."""
    if not future.done():
        return False
    return future.cancelled() or future.exception() is not None or future.result().broken


def _device_memory() -> int:
    """Return the memory of the device in bytes."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size_on_disk(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
