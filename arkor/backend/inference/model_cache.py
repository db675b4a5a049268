"""The models that are in memory: each base once, with the adapters that were switched in lately.

What is asked of them is in `generator.py`; how a base is found and read in `backend/compute/models.py`.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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

#: Adapters of one base that stay in memory; the one that was used longest ago makes room.
MAX_ADAPTERS = 8

#: An adapter computes in the number format of its base, as in training; in fp32 a token takes half as long again.
_AS_TRAINED = {"autocast_adapter_dtype": False}


def weights_mtime(folder: str) -> int:
    """When the weights in a folder were last written, so that new ones are never mistaken for old; 0 without any."""
    return max((file.stat().st_mtime_ns for file in Path(folder).glob("*.safetensors")), default=0)


class ServedModel:
    """A base model in memory, ready to answer with any of its adapters or with none.

    An adapter that was not used for long leaves when a further one does not fit into `limit` bytes beside the base.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, limit: int = sys.maxsize) -> None:
        self.name = name
        self._memory_limit = limit
        self.model = model
        self.tokenizer = tokenizer
        self.broken = False
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.stop_tokens = self._stop_tokens()
        self.vocabulary: int = model.get_output_embeddings().weight.shape[0]
        self.prompts = PromptBuilder(name, tokenizer, self.context)
        self.grammars = GrammarCompiler(tokenizer, self.vocabulary, sorted(self.stop_tokens))
        self._peft: Any = None
        self._adapters: OrderedDict[tuple[str, int], str] = OrderedDict()
        self._active: str | None = None
        self._load_count = 0

    @property
    def bytes(self) -> int:
        """What it takes of the device's memory, its adapters included."""
        return sum(tensor.nbytes for tensor in self.model.parameters())

    @property
    def repetition_penalty(self) -> float:
        """What the makers of the model recommend in its `generation_config.json`; 1 is none."""
        return float(getattr(self.model.generation_config, "repetition_penalty", None) or 1.0)

    def _stop_tokens(self) -> frozenset[int]:
        eos_tokens = getattr(self.model.generation_config, "eos_token_id", None)
        listed = eos_tokens if isinstance(eos_tokens, (list, tuple)) else [eos_tokens]
        return frozenset(token for token in (*listed, self.tokenizer.eos_token_id) if token is not None)

    # Adapters

    def activate(self, adapter: str | None) -> None:
        """Answer with the adapter in that folder from now on, or with the base alone. Raises `GenerationError`."""
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
        from peft import PeftModel  # noqa: PLC0415 - slow to import, and a base alone needs none of it

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
            self.broken = True  # half of it may be in the model now
            sentence = f"The adapter in {folder} does not fit {self.name}: {' '.join(str(error).split())[:300]}"
            raise GenerationError(409, "adapter_unusable", sentence) from error
        self.model.eval()
        return name

    def _evict(self, needed: int) -> None:
        """For one more adapter: among `MAX_ADAPTERS`, and within the limit as far as others can leave."""
        while len(self._adapters) >= MAX_ADAPTERS or (self._adapters and self.bytes + needed > self._memory_limit):
            key = next((key for key, name in self._adapters.items() if name != self._active), None)
            if key is None:
                return
            self._peft.delete_adapter(self._adapters.pop(key))


def _check_adapter_files(folder: str) -> None:
    """Whole safetensors and nothing else: PEFT would unpickle a `.bin` in their place."""
    try:
        with safe_open(str(Path(folder, "adapter_model.safetensors")), "pt") as file:
            file.keys()
    except (OSError, SafetensorError) as error:
        sentence = f"The adapter in {folder} cannot be read: {error}"
        raise GenerationError(409, "adapter_unusable", sentence) from error


class ModelCache:
    """The bases in memory, loaded one at a time in a thread of their own while others answer.

    A base that is being built changes torch's default number format for the whole process, so nothing that runs
    beside it may rely on the default.

    Before a further one is loaded, those that were used longest ago go until all together fit into `limit` bytes
    (half of the device's memory by default); one that is larger than that by itself is loaded all the same.
    """

    def __init__(self, home: Path, limit: int | None = None) -> None:
        self._home = home
        self._limit = limit if limit is not None else _device_memory() // 2
        self._lock = Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._models: OrderedDict[tuple[str, int], Future[ServedModel]] = OrderedDict()

    def get(self, model: str) -> Future[ServedModel]:
        """The weights of that id or folder, once they are there; `GenerationError` comes out of the future."""
        key = (model, weights_mtime(model))
        with self._lock:
            if key not in self._models or _is_lost(self._models[key]):
                self._models[key] = self._loader.submit(self._load, model)
            self._models.move_to_end(key)
            return self._models[key]

    def evict_idle(self, used: Sequence[ServedModel]) -> None:
        """Let go of every base that is not in use."""
        with self._lock:
            for key, future in list(self._models.items()):
                if future.done() and (_is_lost(future) or not any(future.result() is model for model in used)):
                    del self._models[key]

    def _load(self, model: str) -> ServedModel:
        try:
            folder = local_folder(model, self._home, _log)
            self._evict(_size_on_disk(folder))
            device = choose_device()
            loaded = load_model(folder, dtype=device.dtype).to(device.kind).eval()
            return ServedModel(model, loaded, load_tokenizer(folder), self._limit)
        except RunError as error:
            raise GenerationError(400, "model_unavailable", str(error)) from error

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
    """Whether a base could not be loaded, or was spoiled since."""
    if not future.done():
        return False
    return future.cancelled() or future.exception() is not None or future.result().broken


def _device_memory() -> int:
    """Of the device that answers, in bytes."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size_on_disk(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - the log of the serving process
