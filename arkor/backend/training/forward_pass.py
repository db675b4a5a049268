"""The losses of a micro-batch's targets: one forward pass of any causal language model."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from arkor.backend.training.collation import MicroBatch


class ForwardPass:
    """Computes the losses of a (PEFT) model. `inputs`: the arguments of its forward, by name."""

    def __init__(self, model: Any) -> None:
        self._model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.inputs = inspect.signature(base.forward).parameters
        self._takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in self.inputs.values())
        self.keeps_logits = "logits_to_keep" in self.inputs

    def token_losses(self, micro_batch: MicroBatch) -> Tensor:
        """Return the negative log-likelihood of each target: fp32, (targets,).

        The output head runs on positions with a target only: `columns` are their (distinct)
        columns, and `column_indices`, (targets,), selects among them.
        """
        columns, column_indices = torch.unique(micro_batch.columns, return_inverse=True)
        options: dict[str, Any] = {"logits_to_keep": columns} if self.keeps_logits else {}
        options |= {"use_cache": False} if self._takes("use_cache") else {}
        options |= {"output_router_logits": False} if "output_router_logits" in self.inputs else {}
        inputs = {name: value for name, value in micro_batch.model_inputs.items() if self._takes(name)}
        logits = self._model(**inputs, **options).logits
        selected = logits[micro_batch.rows, column_indices if self.keeps_logits else micro_batch.columns]
        return cross_entropy(selected.float(), micro_batch.targets, reduction="none")

    def _takes(self, name: str) -> bool:
        return self._takes_any or name in self.inputs
