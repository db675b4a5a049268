"""Models in a URL, a form or a deployment; and the URL of a deployment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from arkor.client.api import CloudApiClient
from arkor.errors import CloudApiError, InvalidConfig
from arkor.protocol.deployments import Deployment
from arkor.protocol.jobs import TrainingJob
from arkor.protocol.model_target import ModelTarget, parse_step
from arkor.settings import MANAGED_CLOUD_APP_DOMAIN, is_managed_cloud

#: The `step` of a run's base model, in a URL or a form.
BASE = "base"


@frozen
class ModelOption:
    """A choice of a model picker: the model, and its run if that belongs to this project."""

    target: ModelTarget
    job: TrainingJob | None = None

    @property
    def name(self) -> str:
        if self.job is not None:
            return self.job.name
        if self.target.menu is not None:
            return "model menu"
        return self.target.adapter.job_id if self.target.adapter else self.target.base_model or ""

    @property
    def base_model(self) -> str:
        return str(self.job.config.model if self.job is not None else self.target.base_model or "")

    @property
    def step(self) -> str:
        """The step as written in a URL: empty for the final adapter, `BASE` for a base model."""
        if self.target.adapter is None:
            return BASE
        return "" if self.target.adapter.step is None else str(self.target.adapter.step)

    @property
    def weights(self) -> str:
        """`"final adapter"`, `"step 20"`, `"base model"` or `"any model of the menu"`."""
        if self.target.menu is not None:
            return "any model of the menu"
        if self.target.adapter is None:
            return "base model"
        return "final adapter" if self.target.adapter.step is None else f"step {self.target.adapter.step}"


def parse_option(client: CloudApiClient, values: Mapping[str, Any], suffix: str = "") -> ModelOption | None:
    """Parse the fields `run`, `step` and `model` of a URL or a form; None if they are empty."""
    run, step, model = (str(values.get(name + suffix) or "").strip() for name in ("run", "step", "model"))
    if not run:
        return ModelOption(ModelTarget(model)) if model else None
    job = client.get_job(run)
    if step == BASE:
        return ModelOption(ModelTarget(job.config.model), job)
    return ModelOption(ModelTarget.of_run(job.id, parse_step(step) if step else None), job)


def latest_option(runs: Sequence[TrainingJob], *, completed: bool = True) -> ModelOption | None:
    """Return the final adapter of the latest completed run; unless `completed`, else of the latest."""
    job = next((job for job in runs if job.status == "completed"), None)
    if job is None and runs and not completed:
        job = runs[0]
    return None if job is None else ModelOption(ModelTarget.of_run(job.id), job)


def target_of(deployment: Deployment) -> ModelTarget:
    """Return the model of a deployment; a target of an unknown form becomes a base model."""
    return ModelTarget.parse_or_none(deployment.target) or ModelTarget("an unknown kind of model")


def option_of(client: CloudApiClient, deployment: Deployment) -> ModelOption:
    """Return the model of a deployment, with its run if that still exists."""
    target = target_of(deployment)
    if target.adapter is None:
        return ModelOption(target)
    try:
        return ModelOption(target, client.get_job(target.adapter.job_id))
    except (CloudApiError, InvalidConfig):
        return ModelOption(target)


def address_of(client: CloudApiClient, deployment: Deployment) -> str:
    """Return the `base_url` for an OpenAI client."""
    if deployment.url is not None and deployment.url.startswith(("https://", "http://")):
        return deployment.url
    if deployment.custom_domain:
        return f"https://{deployment.custom_domain}/v1"
    if is_managed_cloud(client.base_url):
        return f"https://{deployment.slug}.{MANAGED_CLOUD_APP_DOMAIN}/v1"
    return f"{client.base_url}/e/{deployment.slug}/v1"


def find_endpoint(client: CloudApiClient, target: ModelTarget) -> Deployment | None:
    """Return an enabled endpoint that serves this model; None if the backend has no endpoints."""
    try:
        found = client.list_deployments()
    except CloudApiError:
        return None
    return next((item for item in found if item.enabled and target_of(item) == target), None)


def is_unsupported_route(error: CloudApiError) -> bool:
    """True if the backend does not have this route, instead of lacking the resource."""
    return error.status in (405, 501) or (error.status == 404 and error.code is None)
