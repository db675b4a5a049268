"""A base model in torch, with its recently used adapters."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from arkor.backend.inference.messages import GenerationError
from arkor.backend.inference.reference.merging import MergedAdapter, needed_bytes
from arkor.backend.inference.served_model import ServedModel, check_adapter_files, size_on_disk, weights_mtime
from arkor.backend.runs.checkpoints import locate
from arkor.formatting import one_line

#: Adapters of a base model in memory; the least recently used one is evicted.
MAX_ADAPTERS = 8

#: Forward passes with the same adapter before it is merged.
MIN_PASSES = 16

#: Adapters compute in the number format of their base, as in training; in fp32 a token takes 50%
#: longer.
_AS_TRAINED = {"autocast_adapter_dtype": False}


class TorchModel(ServedModel):
    """A base model of transformers.

    Base and adapters take at most `limit` bytes if evicting adapters can achieve it.
    """

    engine = "transformers"

    def __init__(self, name: str, model: Any, tokenizer: Any, limit: int = sys.maxsize) -> None:
        vocabulary: int = model.get_output_embeddings().weight.shape[0]
        super().__init__(name, tokenizer, model.config, model.generation_config, vocabulary)
        self._memory_limit = limit
        self.model = model
        self._peft: Any = None
        self._adapters: OrderedDict[tuple[str, int], str] = OrderedDict()
        self._active: str | None = None
        self._merged: MergedAdapter | None = None
        self._mergeable: dict[str, bool] = {}
        self._passes = 0  # with the active adapter, one after the other
        self._load_count = 0

    @property
    def bytes(self) -> int:
        parameters: Iterable[torch.Tensor] = self.model.parameters()
        kept = 0 if self._merged is None else self._merged.bytes
        return kept + sum(tensor.nbytes for tensor in parameters)

    @property
    def threads_change_rounding(self) -> bool:
        return bool(self.model.device.type == "cpu" and self.model.dtype == torch.float32)

    def set_threads(self, count: int) -> None:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)

    def activate(self, adapter: str | None, *, may_merge: bool = False) -> None:
        """Switch to the adapter in that folder, or to the base alone. Raise `GenerationError`.

        An adapter that is the only one for a while is merged if the caller allows it, which changes
        the rounding.
        """
        name = None if adapter is None else self._adapter_name(adapter)
        self._passes = self._passes + 1 if may_merge and name == self._active else 0
        merge = self._passes >= MIN_PASSES and name is not None and self._can_merge(name)
        if name == self._active and merge == (self._merged is not None):
            return
        self._unmerge()
        if name is None:
            self._peft.base_model.disable_adapter_layers()
        elif merge:
            self._peft.base_model.disable_adapter_layers()
            self._merged = MergedAdapter(self.model, name)
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(name)
        self._active = name

    def _can_merge(self, name: str) -> bool:
        if self._merged is not None:
            return True
        if name not in self._mergeable:
            needed = needed_bytes(self.model, self._peft.peft_config[name].to_dict(), name)
            self._mergeable[name] = needed is not None and self.bytes + needed <= self._memory_limit
        return self._mergeable[name]

    def _unmerge(self) -> None:
        if self._merged is not None:
            self._merged.restore()
            self._merged = None

    def _adapter_name(self, wanted: str) -> str:
        folder = str(locate(Path(wanted)))
        key = (folder, weights_mtime(folder))
        if key not in self._adapters:
            self._evict(size_on_disk(folder))
            self._adapters[key] = self._load(folder)
        self._adapters.move_to_end(key)
        return self._adapters[key]

    def _load(self, folder: str) -> str:
        from peft import PeftModel  # noqa: PLC0415 - slow to import, and only adapters need it

        self._unmerge()
        self._active, self._passes = None, 0
        self._load_count += 1
        name = f"adapter-{self._load_count}"
        check_adapter_files(folder)
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self.model, folder, adapter_name=name, **_AS_TRAINED)
                self._peft.base_model.disable_adapter_layers()
            else:
                self._peft.load_adapter(folder, name, **_AS_TRAINED)
                self._peft.base_model.disable_adapter_layers()
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
