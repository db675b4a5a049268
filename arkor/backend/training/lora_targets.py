"""Choose the weights that a LoRA adapter adapts.

The default is every linear layer of the language model that a text passes through, except the
output head and the routers. Not adapted by default: the parts of a model that read images or audio,
and the fused experts of a mixture, whose adapters cost much time and memory.
`lora.target_modules` of a run selects other layers, and experts too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from arkor.backend.engine.interface import RunError

#: Parts of a name that mark a router, which selects the experts of a token.
_ROUTER = re.compile(r"(^|\.)(\w*router\w*|gate|shared_expert_gate|wg)(\.|$)")

#: A part of a name that marks the experts of a mixture.
_EXPERTS = re.compile(r"(^|\.)\w*experts?(\.|$)")

#: The largest relative difference of two products in 16 bits that is due to rounding.
ROUNDING = 0.02

#: Tokens of the text that is used to find the layers that a text passes through.
_TEXT_TOKENS = 8


@frozen
class AdapterTargets:
    """What an adapter adapts, as PEFT names it, and the number of weights by what is done to them.

    `adapted`, `experts` (left out), `towers` (left out) and `total` count the weights of linear
    layers and experts; `total` is without towers.
    """

    modules: list[str]
    parameters: list[str]
    adapted: int = 0
    total: int = 0
    experts: int = 0
    towers: int = 0

    def __str__(self) -> str:
        text = f"LoRA adapts {self.adapted:,} of the {self.total:,} weights ({_percent(self.adapted, self.total)}) in "
        text += "the layers of the language model"
        if self.experts:
            text += f"; {self.experts:,} weights of experts are left out (lora.target_modules can add them)"
        if self.towers:
            text += f"; {self.towers:,} weights that read images or audio are left out"
        return text


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 1 or not part else f"{share:.2g} %"


def choose_targets(model: Any, names: Sequence[str] | None = None) -> AdapterTargets:
    """Return the default targets, or the ones with these names. Raise `RunError`."""
    layers = _Layers(model)
    linear, experts = layers.named(names) if names is not None else (layers.default, [])
    if not linear and not experts:
        raise RunError(f"A {type(model).__name__} has no linear layers to adapt.", remedy="Use another model.")
    count = layers.count
    return AdapterTargets(
        _short_names(model, linear),
        sorted(experts),
        adapted=count([*linear, *experts]),
        total=count([*layers.text, *layers.experts]),
        experts=count(set(layers.experts) - set(experts)),
        towers=count(set(layers.towers) - set(linear)),
    )


def targets_of_checkpoint(checkpoint: Path) -> AdapterTargets:
    """Return the targets of a run that resumes, which are the ones that it began with."""
    config = json.loads((checkpoint / "adapter_config.json").read_bytes())
    return AdapterTargets(sorted(config["target_modules"] or []), sorted(config.get("target_parameters") or []))


def target_modules(model: Any) -> list[str]:
    """Return the names of the linear layers that are adapted by default."""
    return choose_targets(model).modules


class _Layers:
    """The weights of a model that can be adapted, by name: linear layers and fused experts."""

    def __init__(self, model: Any) -> None:
        self._model = model
        head = model.get_output_embeddings()
        called = _called_layers(model)
        linear = {name: module for name, module in _linear_layers(model) if module is not head}
        self.text = [name for name in linear if name in called or _block_of_experts(name) in called]
        self.towers = [name for name in linear if name not in self.text and name.rpartition(".")[0] not in called]
        self.default = [name for name in self.text if not _ROUTER.search(name)]
        self.experts = list(_fused_experts(model, called))

    def named(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the linear layers and the experts with these names, or inside modules with them."""
        found: set[str] = set()
        for name in names:
            matches = [path for path in (*self.text, *self.experts) if path == name or path.endswith(f".{name}")]
            everything = (*self.text, *self.experts, *self.towers)
            matches = matches or [path for path in everything if f".{name}." in f".{path}."]
            if not matches:
                raise RunError(
                    f"lora.target_modules: {name!r} names no layer of this model.",
                    remedy=f"Choose from {', '.join(self._choices())}, or a longer part of a layer's name.",
                )
            found |= set(matches)
        return [path for path in (*self.text, *self.towers) if path in found], [
            path for path in self.experts if path in found
        ]

    def _choices(self) -> list[str]:
        linear = {name.rpartition(".")[2] for name in self.text}
        return sorted(
            {name for name in linear if not name.isdigit()} | {".".join(n.split(".")[-2:]) for n in self.experts}
        )

    def count(self, names: Sequence[str] | set[str]) -> int:
        """Return the number of weights with these names."""
        return sum(self._size(name) for name in names)

    def _size(self, name: str) -> int:
        if name in self.experts:
            return int(self._model.get_parameter(name).numel())
        module = self._model.get_submodule(name)
        rows, columns = (
            (module.nf, module.nx) if isinstance(module, Conv1D) else (module.out_features, module.in_features)
        )
        return int(rows * columns)


def _block_of_experts(name: str) -> str | None:
    """Return the name of the block whose experts contain that layer: few tokens reach all of them."""
    found = _EXPERTS.search(name)
    return name[: found.start()] if found else None


def _linear_layers(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield `nn.Linear` (also quantized) and GPT-2's transposed `Conv1D` layers with their names.

    Left out: the output layer of a state-space block (with a `conv1d` in the same block), whose
    kernels read the weight directly and would bypass an adapter; and layers with another
    computation, such as routers and grouped layers.
    """
    for name, module in model.named_modules():
        block, _, last = name.rpartition(".")
        fused = last == "out_proj" and hasattr(model.get_submodule(block), "conv1d")
        if isinstance(module, (nn.Linear, Conv1D)) and not fused and _computes_product(module):
            yield name, module


def _computes_product(module: Any) -> bool:
    """Whether a layer multiplies by its weight; a model's own class of linear layers may do something else."""
    own = type(module).__module__.startswith("transformers.models.") and isinstance(module, nn.Linear)
    if not own or type(module).forward is nn.Linear.forward:
        return True
    weight = module.weight
    example = torch.linspace(-1, 1, module.in_features, dtype=weight.dtype, device=weight.device)[None]
    with torch.no_grad():
        expected = nn.functional.linear(example, weight, module.bias)
        try:
            found = module(example)
        except Exception:  # noqa: BLE001 - it may expect inputs of another shape
            return False
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= ROUNDING * expected.abs().max())


def _called_layers(model: Any) -> set[str]:
    """Return the names of the modules that a text passes through, in training as in evaluation.

    A layer whose weight is read directly in one of the two would lose its adapter there.
    """
    called: dict[bool, set[str]] = {True: set(), False: set()}
    hooks = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: called[model.training].add(name))
        for name, module in model.named_modules()
    ]
    tokens = torch.tensor([_plain_tokens(model.config)], device=model.device)
    was_training = model.training
    try:
        with torch.no_grad():
            for training in (True, False):
                model.train(training)
                model(input_ids=tokens)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return called[True] & called[False]


def _plain_tokens(config: Any) -> list[int]:
    """Return the first tokens that no setting refers to, such as the token of an image."""
    parts = [config, config.get_text_config()]
    special = {value for part in parts for value in vars(part).values() if type(value) is int}
    vocabulary = int(config.get_text_config().vocab_size)
    return [token for token in range(vocabulary) if token not in special][:_TEXT_TOKENS]


def _fused_experts(model: Any, called: set[str]) -> Iterator[str]:
    """Yield the names of the parameters that hold all experts of a layer in one tensor."""
    for name, weight in model.named_parameters():
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, (nn.Linear, Conv1D, nn.modules.conv._ConvNd)) or "bias" in last or _ROUTER.search(name):
            continue
        is_expert = weight.ndim == 3 or (weight.ndim == 2 and _EXPERTS.search(f"{path}.") is not None)
        if is_expert and path in called:
            yield name


def _short_names(model: Any, layers: Sequence[str]) -> list[str]:
    """Name each layer by its last part, or by its full name where another layer ends the same."""
    targets = set(layers)
    others = {name for name, _ in model.named_modules()} - targets
    short = {name.rpartition(".")[2] for name in targets}
    endings = {name.rpartition(".")[2] for name in others}
    ambiguous = {part for part in short if part.isdigit() or part in endings}
    return sorted((short - ambiguous) | {name for name in targets if name.rpartition(".")[2] in ambiguous})
