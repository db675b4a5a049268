"""Endpoints as Studio sees them: where one is found, which one answers with some weights, whether a backend has any."""

from __future__ import annotations

from arkor.client.api import CloudApiClient
from arkor.errors import CloudApiError
from arkor.protocol.deployments import Deployment
from arkor.settings import MANAGED_CLOUD_API_URL
from arkor.studio.model_selection import ModelRef, model_ref_of_target


def address_of(client: CloudApiClient, endpoint: Deployment) -> str | None:
    """What an OpenAI client takes as its `base_url`; None where only the backend knows it, and does not say."""
    named = endpoint.url
    if named is not None and named.startswith(("https://", "http://")):
        return named
    if endpoint.custom_domain:
        return f"https://{endpoint.custom_domain}/v1"
    return None if client.base_url == MANAGED_CLOUD_API_URL else f"{client.base_url}/e/{endpoint.slug}/v1"


def find_endpoint(client: CloudApiClient, weights: ModelRef) -> Deployment | None:
    """One that is enabled and answers with these weights; None on a backend that has no endpoints."""
    try:
        found = client.list_deployments()
    except CloudApiError:
        return None
    return next((one for one in found if one.enabled and model_ref_of_target(one.target) == weights), None)


def is_unsupported_route(error: CloudApiError) -> bool:
    """Whether a backend has no such route at all, instead of no such thing."""
    return error.status in (405, 501) or (error.status == 404 and error.code is None)
