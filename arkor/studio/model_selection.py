"""Which weights are meant: by an address, by a form, by the target of a deployment; and what a person calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from arkor.client.api import CloudApiClient
from arkor.errors import CloudApiError, InvalidConfig
from arkor.protocol.chat import Adapter
from arkor.protocol.jobs import TrainingJob

#: What stands in the place of a step for the model that a run began with.
BASE = "base"


@frozen
class ModelRef:
    """The final adapter of the run `job_id`, with a `step` that of a checkpoint; without a run the `model` as it is."""

    job_id: str | None = None
    step: int | None = None
    model: str | None = None

    @property
    def adapter(self) -> Adapter | None:
        """As a request for an answer names them; None for a base model."""
        if self.job_id is None:
            return None
        return Adapter("final", self.job_id) if self.step is None else Adapter("checkpoint", self.job_id, self.step)

    @property
    def target(self) -> dict[str, Any]:
        """As a deployment names them."""
        if self.job_id is None:
            return {"kind": "base_model", "baseModel": self.model or ""}
        step = {} if self.step is None else {"step": self.step}
        return {"kind": "adapter", "adapter": {"kind": "checkpoint" if step else "final", "jobId": self.job_id, **step}}

    @property
    def label(self) -> str:
        """`"final adapter"`, `"step 20"`, `"base model"`."""
        if self.job_id is None:
            return "base model"
        return "final adapter" if self.step is None else f"step {self.step}"


def model_ref_of_target(target: Mapping[str, Any]) -> ModelRef:
    """What a deployment answers with; of a kind that is not known, as much as can be read."""
    adapter = target.get("adapter")
    if not isinstance(adapter, Mapping):
        return ModelRef(model=str(target.get("baseModel") or "an unknown kind of model"))
    step = adapter.get("step")
    return ModelRef(job_id=str(adapter.get("jobId", "")), step=step if isinstance(step, int) else None)


@frozen
class ModelOption:
    """What is chosen in a picker: a run, if it is one of this project, and of which the weights are."""

    weights: ModelRef
    job: TrainingJob | None = None

    @property
    def name(self) -> str:
        """The name of the run, or of the base model."""
        if self.job is not None:
            return self.job.name
        return self.weights.model or self.weights.job_id or ""

    @property
    def base_model(self) -> str:
        """The model that the run began with, or that is asked as it is."""
        return str(self.job.config.model if self.job is not None else self.weights.model or "")

    @property
    def step(self) -> str:
        """As it stands in an address: nothing for the final adapter."""
        if self.weights.job_id is None:
            return BASE
        return "" if self.weights.step is None else str(self.weights.step)


def parse_option(client: CloudApiClient, values: Mapping[str, Any], suffix: str = "") -> ModelOption | None:
    """What the fields `run`, `step` and `model` of an address or a form choose; None for nothing.

    Raises `InvalidConfig` for what is no step, and what asking for the run raises.
    """
    run, step, model = (str(values.get(name + suffix) or "").strip() for name in ("run", "step", "model"))
    if not run:
        return ModelOption(ModelRef(model=model)) if model else None
    job = client.get_job(run)
    if step == BASE:
        return ModelOption(ModelRef(model=job.config.model), job)
    if step and not (step.isascii() and step.isdigit() and len(step) < 10):
        raise InvalidConfig("step", f"must be the step of a checkpoint, not {step[:40]!r}")
    return ModelOption(ModelRef(job.id, int(step) if step else None), job)


def option_of(client: CloudApiClient, target: Mapping[str, Any]) -> ModelOption:
    """What a deployment answers with, and the run that it is from, if that is still there."""
    weights = model_ref_of_target(target)
    if weights.job_id is None:
        return ModelOption(weights)
    try:
        return ModelOption(weights, client.get_job(weights.job_id))
    except (CloudApiError, InvalidConfig):
        return ModelOption(weights)
