"""What training needs to go on as if nothing had happened ⇄ files that hold no code: safetensors and JSON.

A tree of dicts, lists, tuples, numbers, texts and tensors is written as a JSON file that mirrors it, and a safetensors
file for the tensors in it. What is in the tree is the trainer's business, the random states and the fingerprints of
what a run learns from aside.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy
import torch
from attrs import asdict
from safetensors.torch import load_file, save_file
from torch import Tensor

from arkor.backend.engine.hyperparameters import Hyperparameters
from arkor.backend.engine.interface import RunError
from arkor.backend.training.tokenization import EncodedDataset

#: Of each weight of the base model, so many numbers go into its fingerprint.
_SAMPLE_SIZE = 1024

#: Raised whenever what is in a training state changes, so that one of another arkor is not misread.
_FORMAT_VERSION = 1


class NotSerializable(TypeError):
    """Something in a tree that neither JSON nor safetensors can say."""


def write_tree(folder: Path, name: str, tree: Any) -> None:
    """`tree` as `name.json` and `name.safetensors`. Raises `NotSerializable` before it has written anything."""
    tensors = _Tensors()
    serialized = json.dumps(_to_plain(tree, tensors), allow_nan=False)
    save_file(tensors.named, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(serialized)


def read_tree(folder: Path, name: str) -> Any:
    """What was written, its tensors in main memory; those that were one tensor are one again."""
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / f"{name}.safetensors").items()}
    return _from_plain(json.loads((folder / f"{name}.json").read_bytes()), tensors)


class _Tensors:
    """Tensors by name; one that several places share has one name."""

    def __init__(self) -> None:
        self.named: dict[str, Tensor] = {}
        self._names: dict[Any, str] = {}

    def name(self, tensor: Tensor) -> str:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.is_complex():
            raise NotSerializable(type(tensor).__name__)
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else id(tensor)
        if key not in self._names:
            name = self._names[key] = str(len(self.named))
            whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
            self.named[name] = tensor.detach() if whole and tensor.is_contiguous() else tensor.detach().clone()
        return self._names[key]


def _to_plain(value: Any, tensors: _Tensors) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": tensors.name(value)}
    if isinstance(value, dict):
        return {"dict": [[_to_plain(key, tensors), _to_plain(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_to_plain(item, tensors) for item in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise NotSerializable(type(value).__name__)


def _from_plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "float":
        return float(inner)
    if kind == "dict":
        return {_from_plain(key, tensors): _from_plain(item, tensors) for key, item in inner}
    items = [_from_plain(item, tensors) for item in inner]
    return tuple(items) if kind == "tuple" else items


# Randomness


def random_states() -> dict[str, Any]:
    """Where every source of random numbers in this process stands."""
    name, numbers, *rest = numpy.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, [int(number) for number in numbers], *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random(states: dict[str, Any]) -> None:
    """Set them all back, as far as their devices are here."""
    random.setstate(states["python"])
    name, numbers, *rest = states["numpy"]
    numpy.random.set_state((name, numpy.array(numbers, dtype=numpy.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


# What a run learns from


def fingerprints(
    numbers: Hyperparameters, model: Any, train: EncodedDataset, evaluation: EncodedDataset | None
) -> dict[str, Any]:
    """What must not change under a run, by what a person calls it."""
    return {
        "the rows to train on": _rows_fingerprint(train),
        "the rows to evaluate on": _rows_fingerprint(evaluation) if evaluation else None,
        "the weights of the model": _weights_fingerprint(model),
        "the version of arkor": _FORMAT_VERSION,
        "the configuration": json.loads(json.dumps(asdict(numbers))),
    }


def assert_same(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises `RunError` with what is not as it was."""
    changed = [name for name in now if now[name] != saved.get(name)]
    if changed:
        raise RunError(
            f"The run cannot go on from its last checkpoint: since it began, {' and '.join(changed)} changed. "
            "Submit it again to train on what is there now."
        )


def _rows_fingerprint(examples: EncodedDataset) -> dict[str, Any]:
    digest = hashlib.sha256()
    for ids, labels in zip(examples.input_ids, examples.labels, strict=True):
        digest.update(len(ids).to_bytes(8, "little") + ids.tobytes() + labels.tobytes())
    return {"count": len(examples), "sha256": digest.hexdigest()}


def _weights_fingerprint(model: Any) -> str:
    """The beginning of each frozen weight; reading all of a large model would take longer than is worth it."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            sample = weight.detach().flatten()[:_SAMPLE_SIZE].cpu().contiguous()
            digest.update(name.encode() + sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
