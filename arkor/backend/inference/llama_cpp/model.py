"""A base model in llama.cpp, with its recently used adapters."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from arkor.backend.compute.gguf import cache
from arkor.backend.compute.gguf.adapter import write_adapter
from arkor.backend.compute.gguf.architectures import architecture_of
from arkor.backend.inference.llama_cpp.context import Context, NativeModel
from arkor.backend.inference.served_model import ServedModel, check_adapter_files, weights_mtime
from arkor.backend.runs.checkpoints import locate

#: Adapters of a base model in memory; the least recently used one is evicted.
MAX_ADAPTERS = 8

#: Contexts without answers that are kept for the next one.
MAX_IDLE_CONTEXTS = 2

#: A folder of an adapter and the time of its weights; None is the base model.
AdapterKey = tuple[str, int] | None


class LlamaModel(ServedModel):
    """A base model that llama.cpp has loaded from a GGUF file."""

    engine = "llama.cpp"

    def __init__(self, name: str, file: Path, tokenizer: Any, config: Any, generation_config: Any) -> None:
        self._native = NativeModel(file)
        super().__init__(name, tokenizer, config, generation_config, self._native.vocabulary)
        self._config = config
        self._architecture = architecture_of(config)
        self._adapters: OrderedDict[tuple[str, int], int] = OrderedDict()
        self._contexts: OrderedDict[AdapterKey, Context] = OrderedDict()
        self._adapter_bytes: dict[tuple[str, int], int] = {}
        self.threads = 1

    @property
    def bytes(self) -> int:
        return self._native.bytes + sum(self._adapter_bytes.values())

    @property
    def threads_change_rounding(self) -> bool:
        return True  # attention over a long context is divided among the threads

    @property
    def full_precision(self) -> bool:
        """Whether keys and values have 32 bits, like the weights."""
        return cache.NUMBER_FORMAT == "f32"

    def warm_up(self) -> None:
        """Compute one token, so that the weights are in memory and errors are seen now."""
        context = self.context_of(None)
        number, _ = context.open(reuse=False)
        context.decode([(number, [0])], keep_all=False)
        context.close(number)

    def set_threads(self, count: int) -> None:
        """Compute with that number of threads; torch, which only samples here, uses one."""
        self.threads = count
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)

    def context_of(self, adapter: str | None) -> Context:
        """Return the context of the adapter in that folder, or of the base alone.

        Raise `GenerationError`, or what makes the reference engine answer instead.
        """
        key = self._key(adapter)
        if key not in self._contexts:
            self._evict_contexts()
            pointer = None if key is None else self._adapter(key)
            self._contexts[key] = Context(self._native, pointer, fp32=self.full_precision)
        self._contexts.move_to_end(key)
        return self._contexts[key]

    def states(
        self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return keys and values of transformers, by layer, as llama.cpp stores them.

        They are (heads, tokens, head size); the result is fp16, (tokens, heads × head size).
        """
        keys, values = [], []
        for number, (key, value) in enumerate(layers):
            rows = key.transpose(1, 2).flatten(0, 1)
            ordered = self._architecture.layout(f"model.layers.{number}.self_attn.k_proj", rows, self._config)
            keys.append(ordered.T.half())
            values.append(value.transpose(0, 1).flatten(1).half())
        return keys, values

    def missing_tokens(self, adapter: str | None, prompt: Sequence[int]) -> int:
        """Return how many tokens of a prompt are to be computed, since no answer began like it."""
        context = self._contexts.get(self._key(adapter))
        return len(prompt) - (0 if context is None else context.shared_tokens(prompt))

    def _key(self, adapter: str | None) -> AdapterKey:
        if adapter is None:
            return None
        folder = str(locate(Path(adapter)))
        return folder, weights_mtime(folder)

    def _evict_contexts(self) -> None:
        idle = [key for key, context in self._contexts.items() if context.idle]
        for key in idle[: max(0, len(idle) + 1 - MAX_IDLE_CONTEXTS)]:
            del self._contexts[key]

    def _adapter(self, key: tuple[str, int]) -> int:
        if key not in self._adapters:
            self._evict_adapters()
            self._adapters[key] = self._load(key)
        self._adapters.move_to_end(key)
        return self._adapters[key]

    def _load(self, key: tuple[str, int]) -> int:
        folder, _ = key
        check_adapter_files(folder)
        with tempfile.TemporaryDirectory(prefix="arkor-adapter-") as temporary:
            file = Path(temporary, "adapter.gguf")
            write_adapter(Path(folder), file, self._config)
            self._adapter_bytes[key] = file.stat().st_size
            return self._native.load_adapter(file)

    def _evict_adapters(self) -> None:
        """Evict adapters without answers until one more may be loaded."""
        for key in list(self._adapters):
            if len(self._adapters) < MAX_ADAPTERS:
                return
            context = self._contexts.get(key)
            if context is None or context.idle:
                self._contexts.pop(key, None)
                del context
                self._native.free_adapter(self._adapters.pop(key))
                del self._adapter_bytes[key]
