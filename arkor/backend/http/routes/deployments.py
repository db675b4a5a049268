"""Deployments and their API keys, managed by the members of a project.

The OpenAI-compatible routes of a deployment are in `openai_chat.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.compute.models import submission_problem
from arkor.backend.http.authentication import PROJECT, deployment_not_found, require_job
from arkor.backend.http.errors import ApiError, invalid_field
from arkor.backend.http.openapi import ResponseSpec, RouteTable, id_links
from arkor.backend.http.schema import BOOLEAN, TEXT, any_of, array_schema, object_schema, string_schema
from arkor.backend.http.state import AppState
from arkor.backend.inference.service import adapter_folder
from arkor.backend.runs.paths import run_folder
from arkor.backend.store.deployments import MAX_KEYS, TooManyKeys
from arkor.backend.store.schema import AlreadyExists
from arkor.backend.store.store import new_id
from arkor.formatting import quote
from arkor.protocol.accounts import Project
from arkor.protocol.codec import camel_case, to_wire
from arkor.protocol.deployments import (
    AUTH_MODES,
    LABEL_LENGTH,
    MAX_RETENTION_DAYS,
    RETENTION_MODES,
    SLUG,
    Deployment,
    DeploymentKey,
)
from arkor.protocol.events import now
from arkor.protocol.model_target import ModelTarget

#: Slugs that could be taken for the backend's own pages, or that have a meaning where a slug
#: becomes a host name.
RESERVED = (  # noqa: SIM905
    "www api admin root app apps auth login logout signin signup oauth account accounts billing status health healthz "
    "static assets cdn docs help support blog mail smtp imap ftp dns ns1 ns2 localhost internal system dashboard "
    "console studio arkor v1 e endpoints jobs projects orgs me"
).split()

#: How long conversations are stored by default.
DEFAULT_RETENTION_MODE, DEFAULT_RETENTION_DAYS = "days", 7

_TARGET = any_of(
    object_schema(kind={"const": "base_model"}, baseModel=TEXT),
    object_schema(
        kind={"const": "adapter"},
        adapter=any_of(
            object_schema(kind={"const": "final"}, jobId=TEXT),
            object_schema(kind={"const": "checkpoint"}, jobId=TEXT, step={"type": "integer", "minimum": 0}),
        ),
    ),
)
_AUTH_MODE = {"enum": [*AUTH_MODES]}
_RETENTION_DAYS = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_RETENTION_DAYS}
_RETENTION = {"runRetentionMode": {"enum": [*RETENTION_MODES, None]}, "runRetentionDays": _RETENTION_DAYS}
_NEW_RETENTION = {**_RETENTION, "runRetentionMode": {"enum": [*RETENTION_MODES]}}

NEW_DEPLOYMENT = object_schema(_RETENTION, slug=SLUG, target=_TARGET, authMode=_AUTH_MODE)
DEPLOYMENT_CHANGE = object_schema({"target": _TARGET, "authMode": _AUTH_MODE, "enabled": BOOLEAN, **_NEW_RETENTION})

_DEPLOYMENT = object_schema(deployment=Deployment)
_LINKS = id_links(
    "deployment",
    deployment="getV1EndpointsId",
    change="patchV1EndpointsId",
    removal="deleteV1EndpointsId",
    key="postV1EndpointsIdKeys",
)
_MODEL_ERRORS = {400: "The model cannot be used.", 404: "The run has no such adapter."}

_LABEL_RULE = f"one line of {LABEL_LENGTH[0]} to {LABEL_LENGTH[1]} visible characters"
_LABEL = string_schema(_LABEL_RULE, minLength=LABEL_LENGTH[0], maxLength=LABEL_LENGTH[1])
NEW_KEY = object_schema(label=_LABEL)
_LISTED_KEY = object_schema(
    id=TEXT, label=TEXT, prefix=TEXT, enabled=BOOLEAN, createdAt=TEXT, lastUsedAt={"type": ["string", "null"]}
)
_CREATED_KEY = object_schema(id=TEXT, label=TEXT, plaintext=TEXT, prefix=TEXT, createdAt=TEXT)

routes = RouteTable()


@routes.add(
    "GET /v1/endpoints",
    PROJECT,
    responses={200: ResponseSpec("By slug.", object_schema(deployments=array_schema(Deployment)))},
)
def list_deployments(state: AppState, project: Project) -> Response:
    """List the deployments of the project."""
    found = state.store.deployments.of_project(project.id)
    return JSONResponse({"deployments": [_json(deployment) for deployment in found]})


@routes.add(
    "POST /v1/endpoints",
    PROJECT,
    body=NEW_DEPLOYMENT,
    responses={201: ResponseSpec("The deployment.", _DEPLOYMENT, links=_LINKS)},
    errors={**_MODEL_ERRORS, 409: "The slug is taken; slugs are unique on the backend, not in a project."},
)
def create_deployment(state: AppState, project: Project, body: dict[str, Any]) -> Response:
    """Deploy a model at an address of its own."""
    slug, time = body["slug"], now()
    if slug in RESERVED or slug.startswith("xn--"):
        raise invalid_field("slug", f"{slug!r} is reserved", "choose another one")
    ids = {"id": new_id(), "org_id": project.org_id, "project_id": project.id}
    fields: dict[str, Any] = {**ids, "created_at": time, "updated_at": time, **_parse_change(body, None)}
    deployment = Deployment(slug=slug, **fields)
    try:
        with _pinned_target(state, project, deployment.id, deployment.target):
            state.store.deployments.add(deployment)
    except AlreadyExists:
        raise ApiError(409, f"The slug {slug!r} is taken; choose another.", "slug_taken") from None
    return JSONResponse({"deployment": _json(deployment)}, 201)


@routes.add("GET /v1/endpoints/{id}", PROJECT, responses={200: ResponseSpec("The deployment.", _DEPLOYMENT)})
def get_deployment(deployment: Deployment) -> Response:
    """Return a deployment."""
    return JSONResponse({"deployment": _json(deployment)})


@routes.add(
    "PATCH /v1/endpoints/{id}",
    PROJECT,
    body=DEPLOYMENT_CHANGE,
    responses={200: ResponseSpec("The deployment.", _DEPLOYMENT)},
    errors=_MODEL_ERRORS,
)
def update_deployment(state: AppState, project: Project, deployment: Deployment, body: dict[str, Any]) -> Response:
    """Change the given fields.

    Conversations that are older than a new retention period are deleted at once.
    """
    change = _parse_change(body, deployment)
    with _pinned_target(state, project, deployment.id, change.get("target")):
        changed = state.store.deployments.replace(deployment.id, change)
        if changed is None:
            raise deployment_not_found(project, deployment.id)
    state.conversations.apply_retention(changed)
    return JSONResponse({"deployment": _json(changed)})


@routes.add("DELETE /v1/endpoints/{id}", PROJECT, responses={204: ResponseSpec("The deployment is deleted.")})
def delete_deployment(state: AppState, deployment: Deployment) -> Response:
    """Delete a deployment with its keys and its conversations."""
    state.conversations.delete(deployment.id)
    with state.checkpoint_pins.pin_moved(deployment.id, lambda: state.store.deployments.get(deployment.id), None):
        state.store.deployments.remove(deployment.id)
    state.conversations.delete(deployment.id)  # those stored in the meantime
    return Response(status_code=204)


def _json(deployment: Deployment) -> dict[str, Any]:
    return {"customDomain": None, **to_wire(deployment)}


# Changes


def _parse_change(body: Mapping[str, Any], current: Deployment | None) -> dict[str, Any]:
    """Return the fields that the body sets, by their Python names; a new one has no `current`."""
    change = {name: body[camel_case(name)] for name in ("auth_mode", "enabled") if camel_case(name) in body}
    if "target" in body:
        change["target"] = ModelTarget.parse(body["target"], reject_unknown=True).to_wire()
    if current is None or {"runRetentionMode", "runRetentionDays"} & body.keys():
        mode, days = _parse_retention(body, current)
        change.update(run_retention_mode=mode, run_retention_days=days)
    return change


def _parse_retention(body: Mapping[str, Any], current: Deployment | None) -> tuple[str, int | None]:
    """Return the new retention mode and days; by default the current ones, or the defaults."""
    given_mode, given_days = body.get("runRetentionMode"), body.get("runRetentionDays")
    mode = given_mode or (current and current.run_retention_mode) or DEFAULT_RETENTION_MODE
    if mode != "days":
        if given_days is not None:
            raise invalid_field("runRetentionDays", f'requires the retention mode "days", not "{mode}"')
        return mode, None
    return mode, given_days or (current and current.run_retention_days) or DEFAULT_RETENTION_DAYS


# Keys


@routes.add(
    "GET /v1/endpoints/{id}/keys",
    PROJECT,
    responses={200: ResponseSpec("The keys, revoked ones included.", object_schema(keys=array_schema(_LISTED_KEY)))},
)
def list_keys(state: AppState, deployment: Deployment) -> Response:
    """List the keys of a deployment."""
    found = state.store.deployments.keys_of(deployment.id)
    return JSONResponse({"keys": [_key_json(key, _LISTED_KEY) for key in found]})


@routes.add(
    "POST /v1/endpoints/{id}/keys",
    PROJECT,
    body=NEW_KEY,
    responses={201: ResponseSpec("The key; its plaintext is shown only here.", object_schema(key=_CREATED_KEY))},
    errors={409: f"The deployment has {MAX_KEYS} keys already."},
)
def create_key(state: AppState, project: Project, deployment: Deployment, body: dict[str, Any]) -> Response:
    """Create a key."""
    label = body["label"].strip()
    if not label.isprintable():
        raise invalid_field("label", f"must be {_LABEL_RULE}")
    try:
        key = state.store.deployments.add_key(deployment.id, label)
    except TooManyKeys:
        problem = f"The deployment {deployment.slug!r} has {MAX_KEYS} keys."
        raise ApiError(409, problem, "too_many_keys", remedy="Revoke one first.") from None
    except LookupError:
        raise deployment_not_found(project, deployment.id) from None
    return JSONResponse({"key": _key_json(key, _CREATED_KEY)}, 201)


@routes.add(
    "DELETE /v1/endpoints/{id}/keys/{keyId}",
    PROJECT,
    responses={204: ResponseSpec("The key is revoked; it remains listed.")},
)
def revoke_key(request: Request, state: AppState, deployment: Deployment) -> Response:
    """Revoke a key."""
    key_id = request.path_params["keyId"]
    if not state.store.deployments.revoke_key(deployment.id, key_id):
        raise ApiError(404, f"The deployment {deployment.slug!r} has no key {quote(key_id)}.", "key_not_found")
    return Response(status_code=204)


def _key_json(key: DeploymentKey, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the key that the schema has."""
    names = {camel_case(field.name): field.name for field in attrs.fields(DeploymentKey)}
    return {name: getattr(key, names[name]) for name in schema["properties"]}


# Model targets


def resolve_target(
    state: AppState, project: Project, target: ModelTarget, field: str = "baseModel"
) -> tuple[str, str | None]:
    """Return the base model and the adapter's folder. Raises a 400, 404 or `GenerationError`."""
    if target.adapter is None:
        model = target.base_model or ""
        if state.engine == "trl" and (problem := submission_problem(model, state.home)):
            raise invalid_field(field, problem.problem, problem.remedy)
        return model, None
    job = require_job(state, project, target.adapter.job_id)
    return str(job.config["model"]), str(adapter_folder(run_folder(state.home, job.id), target.adapter))


@contextmanager
def _pinned_target(
    state: AppState, project: Project, deployment_id: str, target: Mapping[str, Any] | None
) -> Iterator[None]:
    """Pin a new target's checkpoint during a change; None keeps it. Raises a 400 or 404."""
    if target is None:
        yield
        return
    parsed = ModelTarget.parse(target)
    resolve_target(state, project, parsed, "target.baseModel")
    with state.checkpoint_pins.pin_moved(deployment_id, lambda: state.store.deployments.get(deployment_id), target):
        resolve_target(state, project, parsed, "target.baseModel")  # it may have been pruned before it was pinned
        yield
