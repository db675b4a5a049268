"""The adapter: which layers it goes on, and its arithmetic.

PEFT keeps the weights, names and files. What is replaced here is how one adapted linear layer computes: the frozen
weight and the two small ones in one step of autograd, in the number format of the frozen weight, with nothing kept
for the backward pass but the input. The small weights stay fp32, as their updates are finer than bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from arkor.backend.engine.interface import RunError


def add_adapter(model: Any, *, r: int, alpha: float) -> Any:
    """`model` with a LoRA adapter on each linear layer but the head, frozen beside it. Raises `RunError`."""
    targets = target_modules(model)
    if not targets:
        raise RunError(f"A {type(model).__name__} has no linear layers that an adapter could go on; use another model.")
    conv = all(isinstance(module, Conv1D) for name, module in model.named_modules() if _is_target(name, targets))
    config = LoraConfig(
        r=r, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=conv, lora_dropout=0.0
    )
    adapted = get_peft_model(model, config)
    for module in adapted.modules():
        if isinstance(module, LoraLinear) and type(module.get_base_layer()) is nn.Linear:
            module.forward = partial(_forward, module)
    return adapted


def target_modules(model: Any) -> list[str]:
    """The linear layers of `model` but its head: by the last part of their names where that is enough, else in full."""
    head = model.get_output_embeddings()
    linear_layers = {name for name, module in _linear_layers(model) if module is not head}
    others = {name for name, _ in model.named_modules()} - linear_layers
    short = {name.rpartition(".")[2] for name in linear_layers}
    ambiguous = {part for part in short if part.isdigit() or any(name.rpartition(".")[2] == part for name in others)}
    return sorted((short - ambiguous) | {name for name in linear_layers if name.rpartition(".")[2] in ambiguous})


def _linear_layers(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """`nn.Linear`, what stands in for it in a quantized model, and GPT-2's transposed one.

    The last layer of a state-space block (it has a convolution beside it) is left out: its kernels take the bare
    weight, past any adapter.
    """
    for name, module in model.named_modules():
        block, _, last = name.rpartition(".")
        fused = last == "out_proj" and hasattr(model.get_submodule(block), "conv1d")
        if isinstance(module, (nn.Linear, Conv1D)) and not fused:
            yield name, module


def _is_target(name: str, targets: list[str]) -> bool:
    return name in targets or name.rpartition(".")[2] in targets


def _forward(module: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """In place of the PEFT layer's own forward."""
    base = module.get_base_layer()
    if module.disable_adapters or not module.active_adapters:
        return linear(x, base.weight, base.bias)
    (name,) = module.active_adapters
    down, up = module.lora_A[name].weight, module.lora_B[name].weight
    apply: Callable[..., Tensor] = _AdaptedLinear.apply
    return apply(x, (base.weight, base.bias), down, up, module.scaling[name])


class _AdaptedLinear(torch.autograd.Function):
    """`x @ weight.T + bias + scale * x @ down.T @ up.T`, where weight and bias are `frozen`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frozen: Any, down: Tensor, up: Tensor, scale: float) -> Tensor:  # noqa: PLR0917
        rows = x.reshape(-1, x.shape[-1])
        down, up = down.to(x.dtype), (up * scale).to(x.dtype)
        inner = rows @ down.T
        out = linear(rows, *frozen).addmm_(inner, up.T)
        ctx.save_for_backward(rows, frozen[0], down, up, inner)
        ctx.scale, ctx.shape = scale, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        rows, weight, down, up, inner = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        inner_grad = grad @ up
        x_grad = None
        if ctx.needs_input_grad[0]:
            x_grad = (grad @ weight).addmm_(inner_grad, down).view(ctx.shape)
        down_grad = (inner_grad.T @ rows).float()
        up_grad = (grad.T @ inner).float() * ctx.scale
        return x_grad, None, down_grad, up_grad, None
