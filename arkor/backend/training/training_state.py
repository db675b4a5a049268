"""Read and write training states as safetensors and JSON, which contain no code.

`write_tree` stores a tree of dicts, lists, tuples, numbers, strings and tensors: JSON for the tree,
and safetensors for its tensors. The trainer defines the contents; random states and the
fingerprints of a run's inputs are defined here.
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
from arkor.backend.runs.paths import STATE_FOLDER
from arkor.backend.training.tokenization import EncodedDataset

#: The number of elements of each base weight that the fingerprint includes.
_SAMPLE_SIZE = 1024


class NotSerializable(TypeError):
    """A tree contains a value that neither JSON nor safetensors can represent."""


def write_tree(folder: Path, name: str, tree: Any) -> None:
    """Write `name.json` and `name.safetensors`, or raise `NotSerializable` before."""
    tensors = _Tensors()
    serialized = json.dumps(_to_plain(tree, tensors), allow_nan=False)
    save_file(tensors.named, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(serialized)


def read_tree(folder: Path, name: str) -> Any:
    """Read a tree with its tensors on the CPU; shared tensors are shared again."""
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / f"{name}.safetensors").items()}
    return _from_plain(json.loads((folder / f"{name}.json").read_bytes()), tensors)


class _Tensors:
    """Assigns names to tensors; a tensor that occurs several times has one name."""

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


def random_states() -> dict[str, Any]:
    """Return the states of all random number generators of this process."""
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
    """Restore the states, except for devices that are not available."""
    random.setstate(states["python"])
    name, numbers, *rest = states["numpy"]
    numpy.random.set_state((name, numpy.array(numbers, dtype=numpy.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def fingerprints(
    hyperparameters: Hyperparameters, model: Any, train: EncodedDataset, evaluation: EncodedDataset | None
) -> dict[str, Any]:
    """Return the fingerprints of a run's inputs, by description."""
    return {
        "the rows to train on": _rows_fingerprint(train),
        "the rows to evaluate on": _rows_fingerprint(evaluation) if evaluation else None,
        "the weights of the model": _weights_fingerprint(model),
        "the version of arkor": train.version,
        "the configuration": json.loads(json.dumps(asdict(hyperparameters))),
    }


def saved_fingerprints(checkpoint: Path) -> dict[str, Any]:
    """Return the fingerprints of the inputs with which a checkpoint was trained."""
    found: dict[str, Any] = read_tree(checkpoint / STATE_FOLDER, "training")["learns_from"]
    return found


def assert_same(saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `RunError` if inputs differ from the saved fingerprints."""
    changed = [name for name in now if now[name] != saved.get(name)]
    if changed:
        raise RunError(
            f"The run cannot resume from its last checkpoint: {' and '.join(changed)} changed since it started.",
            remedy="Submit it again to train on the current inputs.",
        )


def _rows_fingerprint(examples: EncodedDataset) -> dict[str, Any]:
    digest = hashlib.sha256()
    for ids, labels in zip(examples.input_ids, examples.labels, strict=True):
        digest.update(len(ids).to_bytes(8, "little") + ids.tobytes() + labels.tobytes())
    return {"count": len(examples), "sha256": digest.hexdigest()}


def _weights_fingerprint(model: Any) -> str:
    """Hash the first elements of each frozen weight; hashing all takes too long."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            sample = weight.detach().flatten()[:_SAMPLE_SIZE].cpu().contiguous()
            digest.update(name.encode() + sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
