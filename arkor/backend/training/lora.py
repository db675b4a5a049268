"""LoRA adapters: their arithmetic.

PEFT keeps the weights, names and files. This module replaces the computation of an adapted linear
layer: the frozen weight and the two low-rank weights are one autograd step in the number format of
the frozen weight, which saves nothing but its input for the backward pass. The low-rank weights
stay fp32, because their updates are smaller than the precision of bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from arkor.backend.training.lora_targets import AdapterTargets, target_modules

__all__ = ["add_adapter", "target_modules"]


def add_adapter(model: Any, targets: AdapterTargets, *, r: int, alpha: float) -> Any:
    """Freeze the model and add LoRA to the targets."""
    names = {name for name, _ in model.named_modules()}
    adapted = [model.get_submodule(name) for name in names if _is_named(name, targets.modules)]
    conv = bool(adapted) and all(isinstance(module, Conv1D) for module in adapted)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        target_modules=targets.modules or None,
        target_parameters=targets.parameters or None,
        task_type="CAUSAL_LM",
        fan_in_fan_out=conv,
        lora_dropout=0.0,
    )
    adapted_model = get_peft_model(model, config)
    for module in adapted_model.modules():
        if isinstance(module, LoraLinear) and type(module.get_base_layer()) is nn.Linear:
            module.forward = partial(_forward, module)
    return adapted_model


def _is_named(name: str, targets: list[str]) -> bool:
    """Whether PEFT adapts that module: its name, or the end of it, is among the targets."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


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
        # a view of `out` could not be modified in place by the model
        result: Tensor = torch.ops.aten._unsafe_view(out, (*x.shape[:-1], out.shape[-1]))
        return result

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
