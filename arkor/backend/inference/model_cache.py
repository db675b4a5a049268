"""The models in memory: each base model once for each engine that answers with it."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock

import torch

from arkor.backend.compute.device import choose_device
from arkor.backend.compute.models import load_model, load_tokenizer, local_folder
from arkor.backend.engine.interface import RunError
from arkor.backend.inference.llama_cpp.loading import load_llama_model
from arkor.backend.inference.messages import GenerationError
from arkor.backend.inference.reference.model import TorchModel
from arkor.backend.inference.served_model import ServedModel, size_on_disk, weights_mtime


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
        self._models: OrderedDict[tuple[str, str, int], Future[ServedModel]] = OrderedDict()

    def get(self, model: str, engine: str = TorchModel.engine) -> Future[ServedModel]:
        """Return the future of a model, which raises `GenerationError` if loading fails.

        For engines other than the reference, it raises `NotConvertible`, `EngineUnavailable` or
        OSError if they cannot use the model.
        """
        key = (model, engine, weights_mtime(model))
        with self._lock:
            if key not in self._models or _is_lost(self._models[key]):
                self._models[key] = self._loader.submit(self._load, model, engine)
            self._models.move_to_end(key)
            return self._models[key]

    def evict_idle(self, used: Sequence[ServedModel]) -> None:
        """Evict every base model that is not in use."""
        with self._lock:
            for key, future in list(self._models.items()):
                if future.done() and (_is_lost(future) or not any(future.result() is model for model in used)):
                    del self._models[key]

    def _load(self, model: str, engine: str) -> ServedModel:
        try:
            folder = local_folder(model, self._home, partial(print, file=sys.stderr, flush=True))
            self._evict(size_on_disk(folder))
            if engine != TorchModel.engine:
                return load_llama_model(model, folder, self._home)
            device = choose_device()
            loaded = load_model(folder, dtype=device.dtype).to(device.kind).eval()
            return TorchModel(model, loaded, load_tokenizer(folder), self._limit)
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
