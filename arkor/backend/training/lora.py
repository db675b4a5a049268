"""LoRA adapters: the choice of layers, and their arithmetic.

PEFT keeps the weights, names and files. This module replaces the computation of an adapted linear
layer: the frozen weight and the two low-rank weights are one autograd step in the number format of
the frozen weight, which saves nothing but its input for the backward pass. The low-rank weights
stay fp32, because their updates are smaller than the precision of bf16.
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
    """Freeze the model and add LoRA to all linear layers but the head. Raise `RunError`."""
    targets = target_modules(model)
    if not targets:
        raise RunError(f"A {type(model).__name__} has no linear layers to adapt.", remedy="Use another model.")
    adapted_layers = [m for name, m in model.named_modules() if {name, name.rpartition(".")[2]} & set(targets)]
    conv = all(isinstance(module, Conv1D) for module in adapted_layers)
    config = LoraConfig(
        r=r, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=conv, lora_dropout=0.0
    )
    adapted = get_peft_model(model, config)
    for module in adapted.modules():
        if isinstance(module, LoraLinear) and type(module.get_base_layer()) is nn.Linear:
            module.forward = partial(_forward, module)
    return adapted


def target_modules(model: Any) -> list[str]:
    """Return the linear layers except the output head, by unambiguous last part or full name."""
    head = model.get_output_embeddings()
    linear_layers = {name for name, module in _linear_layers(model) if module is not head}
    others = {name for name, _ in model.named_modules()} - linear_layers
    short = {name.rpartition(".")[2] for name in linear_layers}
    ambiguous = {part for part in short if part.isdigit() or any(name.rpartition(".")[2] == part for name in others)}
    return sorted((short - ambiguous) | {name for name in linear_layers if name.rpartition(".")[2] in ambiguous})


def _linear_layers(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield `nn.Linear` (also quantized) and GPT-2's transposed `Conv1D` layers with their names.

    The output layer of a state-space block (with a `conv1d` in the same block) is left out: its
    kernels read the weight directly and would bypass an adapter.
    """
    for name, module in model.named_modules():
        block, _, last = name.rpartition(".")
        fused = last == "out_proj" and hasattr(model.get_submodule(block), "conv1d")
        if isinstance(module, (nn.Linear, Conv1D)) and not fused:
            yield name, module


def _forward(module: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Replace the forward of a PEFT layer: (…, in) → (…, out)."""
    base = module.get_base_layer()
    if module.disable_adapters or not module.active_adapters:
        return linear(x, base.weight, base.bias)
    (name,) = module.active_adapters
    down, up = module.lora_A[name].weight, module.lora_B[name].weight
    apply: Callable[..., Tensor] = _AdaptedLinear.apply
    return apply(x, (base.weight, base.bias), down, up, module.scaling[name])


class _AdaptedLinear(torch.autograd.Function):
    """`x @ weight.T + bias + scale * x @ down.T @ up.T`, with `frozen = (weight, bias)`.

    Shapes: `x` (…, in), `weight` (out, in), `bias` (out,), `down` (r, in), `up` (out, r); result
    (…, out). `x` and `frozen` have the model's dtype, `down`, `up` and their gradients are fp32.
    """

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
