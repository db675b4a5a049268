"""Deployments and their keys, managed by the members of a project; what a deployment answers is in `openai_chat.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.compute.models import submission_problem
from arkor.backend.http.openapi import (
    PROJECT,
    TEXT,
    ResponseSpec,
    array_schema,
    field_names,
    object_schema,
    one_of,
    route,
)
from arkor.backend.http.requests import ApiError, check_fields, invalid_field, quote, read_json_object, require_scope
from arkor.backend.inference.messages import GenerationError
from arkor.backend.inference.service import adapter_folder
from arkor.backend.runs.paths import run_folder
from arkor.backend.store.deployments import SlugAlreadyExists
from arkor.backend.store.store import ProjectRecord, new_id
from arkor.errors import InvalidConfig
from arkor.protocol.chat import Adapter
from arkor.protocol.codec import camel_case, from_wire, to_wire
from arkor.protocol.deployments import (
    AUTH_MODES,
    RETENTION_MODES,
    Deployment,
    check_auth_mode,
    check_retention,
    check_slug,
    check_target,
)
from arkor.protocol.events import now

#: Names that somebody could take for the backend's own, or that mean something where a slug becomes a host name.
RESERVED = frozenset(
    [
        "www",
        "api",
        "admin",
        "root",
        "app",
        "apps",
        "auth",
        "login",
        "logout",
        "signin",
        "signup",
        "oauth",
        "account",
        "accounts",
        "billing",
        "status",
        "health",
        "healthz",
        "static",
        "assets",
        "cdn",
        "docs",
        "help",
        "support",
        "blog",
        "mail",
        "smtp",
        "imap",
        "ftp",
        "dns",
        "ns1",
        "ns2",
        "localhost",
        "internal",
        "system",
        "dashboard",
        "console",
        "studio",
        "arkor",
        "v1",
        "e",
        "endpoints",
        "jobs",
        "projects",
        "orgs",
        "me",
    ]
)

#: How long conversations are kept where nobody says so.
DEFAULT_RETENTION_MODE, DEFAULT_RETENTION_DAYS = "days", 7

#: The longest retention, in days: a century.
MAX_RETENTION_DAYS = 36_500


# Deployments


async def list_deployments(request: Request) -> Response:
    """`GET /v1/endpoints`, by slug."""
    scope = await require_scope(request)
    found = await run_in_threadpool(request.app.state.store.deployments.of_project, scope.project.id)
    return JSONResponse({"deployments": [deployment_json(deployment) for deployment in found]})


async def create_deployment(request: Request) -> Response:
    """`POST /v1/endpoints`: 409 when the slug is taken; slugs are the backend's, not a project's."""
    scope = await require_scope(request)
    body = await read_json_object(request)
    check_fields(body, *field_names(NEW_DEPLOYMENT))
    fields = {"slug": checked_slug(body["slug"]), **checked_change(body, None)}
    owner = {"org_id": scope.org.id, "project_id": scope.project.id, "created_at": now(), "updated_at": now()}
    deployment = Deployment(**{"id": new_id(), **owner, **fields})
    state = request.app.state

    def write() -> None:
        with _pinned_target(state, scope.project, deployment.id, deployment.target):
            state.store.deployments.add(deployment)

    try:
        await run_in_threadpool(write)
    except SlugAlreadyExists:
        raise ApiError(409, f"The slug {deployment.slug!r} is taken; choose another.", "slug_taken") from None
    return JSONResponse({"deployment": deployment_json(deployment)}, 201)


async def get_deployment(request: Request) -> Response:
    """`GET /v1/endpoints/:id`."""
    _, deployment = await require_deployment(request)
    return JSONResponse({"deployment": deployment_json(deployment)})


async def update_deployment(request: Request) -> Response:
    """`PATCH /v1/endpoints/:id`: what is named is changed, at once; what is kept too long by a new setting goes."""
    project, deployment = await require_deployment(request)
    body = await read_json_object(request)
    check_fields(body, *field_names(DEPLOYMENT_CHANGE))
    change = checked_change(body, deployment)
    state = request.app.state

    def write() -> Deployment:
        with _pinned_target(state, project, deployment.id, change.get("target")):
            changed: Deployment | None = state.store.deployments.replace(deployment.id, change)
            if changed is None:
                raise deployment_not_found(project, deployment.id)
        state.conversations.apply_retention(changed)
        return changed

    changed = await run_in_threadpool(write)
    return JSONResponse({"deployment": deployment_json(changed)})


async def delete_deployment(request: Request) -> Response:
    """`DELETE /v1/endpoints/:id`: its keys and its conversations go, too."""
    _, deployment = await require_deployment(request)
    state = request.app.state

    def remove() -> None:
        state.conversations.delete(deployment.id)
        with state.checkpoint_pins.pin_moved(deployment.id, lambda: state.store.deployments.get(deployment.id), None):
            state.store.deployments.remove(deployment.id)
        state.conversations.delete(deployment.id)  # what was kept in between

    await run_in_threadpool(remove)
    return Response(status_code=204)


async def require_deployment(request: Request) -> tuple[ProjectRecord, Deployment]:
    """The deployment of the path's id, in the project that the call is about, else a 404."""
    scope = await require_scope(request)
    deployment_id = request.path_params["id"]
    found = await run_in_threadpool(request.app.state.store.deployments.get, deployment_id)
    if found is None or found.project_id != scope.project.id:
        raise deployment_not_found(scope.project, deployment_id)
    return scope.project, found


def deployment_not_found(project: ProjectRecord, deployment_id: str) -> ApiError:
    """A 404."""
    sentence = f"The project {project.slug!r} has no deployment {quote(deployment_id)}."
    return ApiError(404, sentence, "deployment_not_found")


def deployment_json(deployment: Deployment) -> dict[str, Any]:
    """A deployment as on the wire."""
    answer: dict[str, Any] = to_wire(deployment)
    return {"customDomain": None, **answer}


# What may be asked


@contextmanager
def wire_field_errors() -> Iterator[None]:
    """An `InvalidConfig` in here becomes a 400 that names the field as it is on the wire."""
    try:
        yield
    except InvalidConfig as error:
        raise invalid_field(".".join(map(camel_case, error.field.split("."))), error.problem) from None


def checked_slug(slug: Any) -> str:
    """A slug that may be had, else a 400."""
    with wire_field_errors():
        check_slug(slug)
    if slug in RESERVED or slug.startswith("xn--"):
        raise invalid_field("slug", f"{slug!r} is reserved, since it could be taken for something else; choose another")
    return str(slug)


def checked_change(body: Mapping[str, Any], current: Deployment | None) -> dict[str, Any]:
    """The fields that the body names, checked, by their names in Python; else a 400. `current` None: a new one."""
    change: dict[str, Any] = {}
    with wire_field_errors():
        if "target" in body:
            change["target"] = checked_target(body["target"])
        if "authMode" in body:
            check_auth_mode(body["authMode"])
            change["auth_mode"] = body["authMode"]
    if "enabled" in body:
        if not isinstance(body["enabled"], bool):
            raise invalid_field("enabled", f"must be true or false, not {body['enabled']!r}"[:200])
        change["enabled"] = body["enabled"]
    return {**change, **_checked_retention(body, current)}


def checked_target(target: Any) -> dict[str, Any]:
    """The target with nothing in it that means nothing. Raises `InvalidConfig`, and a 400."""
    check_target(target)
    inner = {"adapter": ("kind", "jobId", "step"), "baseModel": ()}
    name = "adapter" if target["kind"] == "adapter" else "baseModel"
    _reject_unknown("target", target, ("kind", name))
    if name == "baseModel":
        return {"kind": "base_model", "baseModel": target["baseModel"]}
    adapter = {key: value for key, value in target["adapter"].items() if value is not None}
    known = inner[name] if adapter["kind"] == "checkpoint" else inner[name][:2]
    _reject_unknown("target.adapter", adapter, known)
    return {"kind": "adapter", "adapter": adapter}


def _reject_unknown(path: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for field in given:
        if field not in known:
            raise invalid_field(f"{path}.{field}"[:120], f"does not belong there; {' and '.join(known)} do")


def _checked_retention(body: Mapping[str, Any], current: Deployment | None) -> dict[str, Any]:
    """The pair as it is to be; nothing when the body does not speak of it."""
    mode, days = body.get("runRetentionMode"), body.get("runRetentionDays")
    if current is not None and not {"runRetentionMode", "runRetentionDays"} & body.keys():
        return {}
    if current is not None and mode is None and "runRetentionMode" in body:
        raise invalid_field("runRetentionMode", 'must be "unlimited", "disabled" or "days", not null')
    mode = mode or (current.run_retention_mode if current else None) or DEFAULT_RETENTION_MODE
    with wire_field_errors():
        check_retention(mode, days)
    if mode != "days":
        return {"run_retention_mode": mode, "run_retention_days": None}
    days = days or (current.run_retention_days if current else None) or DEFAULT_RETENTION_DAYS
    if days > MAX_RETENTION_DAYS:
        raise invalid_field("runRetentionDays", f'must be at most {MAX_RETENTION_DAYS}; "unlimited" keeps everything')
    return {"run_retention_mode": mode, "run_retention_days": days}


# Which weights answer


def resolve_target(state: State, project: ProjectRecord, target: Mapping[str, Any]) -> tuple[str, str | None]:
    """The base model and the adapter's folder. A 400 or 404 when they cannot answer."""
    if target["kind"] == "base_model":
        return _base_model(state, target["baseModel"]), None
    adapter = from_wire(Adapter, target["adapter"])
    job = state.store.job(project, adapter.job_id)
    if job is None:
        raise ApiError(404, f"The project {project.slug!r} has no job {quote(adapter.job_id)}.", "job_not_found")
    try:
        return str(job.config["model"]), str(adapter_folder(run_folder(state.home, job.id), adapter))
    except GenerationError as error:
        raise ApiError(error.status, error.sentence, error.code) from None


@contextmanager
def _pinned_target(
    state: State, project: ProjectRecord, deployment_id: str, target: Mapping[str, Any] | None
) -> Iterator[None]:
    """The deployment answers with `target` (None: with what it did) from here on. A 400 or 404 when that cannot."""
    if target is None:
        yield
        return
    resolve_target(state, project, target)
    with state.checkpoint_pins.pin_moved(deployment_id, lambda: state.store.deployments.get(deployment_id), target):
        resolve_target(state, project, target)  # it may have been cleared away before it was pinned
        yield


def _base_model(state: State, model: str) -> str:
    problem = submission_problem(model, state.home) if state.engine == "trl" else None
    if problem:
        raise invalid_field("target.baseModel", str(attrs.evolve(problem, field=None)))
    return model


# What is described

_TARGET = one_of(
    object_schema(kind={"const": "base_model"}, baseModel=TEXT),
    object_schema(
        kind={"const": "adapter"},
        adapter=one_of(
            object_schema(kind={"const": "final"}, jobId=TEXT),
            object_schema(kind={"const": "checkpoint"}, jobId=TEXT, step={"type": "integer", "minimum": 0}),
        ),
    ),
)
_RETENTION = {
    "runRetentionMode": {"enum": [*RETENTION_MODES]},
    "runRetentionDays": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_RETENTION_DAYS},
}
_SLUG = {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]*[a-z0-9]$", "minLength": 2, "maxLength": 50}
_AUTH_MODE = {"enum": [*AUTH_MODES]}

NEW_DEPLOYMENT = object_schema(_RETENTION, slug=_SLUG, target=_TARGET, authMode=_AUTH_MODE)
DEPLOYMENT_CHANGE = object_schema(
    {"target": _TARGET, "authMode": _AUTH_MODE, "enabled": {"type": "boolean"}, **_RETENTION}
)

_DEPLOYMENT_ID_LINK = {"parameters": {"id": "$response.body#/deployment/id"}}
_LINKS = {
    name: {"operationId": operation, **_DEPLOYMENT_ID_LINK}
    for name, operation in (
        ("deployment", "getV1EndpointsId"),
        ("change", "patchV1EndpointsId"),
        ("removal", "deleteV1EndpointsId"),
        ("key", "postV1EndpointsIdKeys"),
    )
}
_DEPLOYMENT = ResponseSpec("The deployment.", object_schema(deployment=Deployment))
_CREATED = ResponseSpec("The deployment.", object_schema(deployment=Deployment), links=_LINKS)
_MODEL_ERRORS = {400: "The model cannot be used.", 404: "The run has no such adapter."}

DEPLOYMENT_PATH = "/v1/endpoints/{id}"

routes = [
    route(
        "GET",
        "/v1/endpoints",
        list_deployments,
        PROJECT,
        "The deployments of the project.",
        responses={200: ResponseSpec("By slug.", object_schema(deployments=array_schema(Deployment)))},
    ),
    route(
        "POST",
        "/v1/endpoints",
        create_deployment,
        PROJECT,
        "Put a model behind an address.",
        body=NEW_DEPLOYMENT,
        responses={201: _CREATED},
        errors={**_MODEL_ERRORS, 409: "The slug is taken."},
    ),
    route("GET", DEPLOYMENT_PATH, get_deployment, PROJECT, "A deployment.", responses={200: _DEPLOYMENT}),
    route(
        "PATCH",
        DEPLOYMENT_PATH,
        update_deployment,
        PROJECT,
        "Change what is named, at once.",
        body=DEPLOYMENT_CHANGE,
        responses={200: _DEPLOYMENT},
        errors=_MODEL_ERRORS,
    ),
    route(
        "DELETE",
        DEPLOYMENT_PATH,
        delete_deployment,
        PROJECT,
        "Take it down, with its keys and its conversations.",
        responses={204: ResponseSpec("It is gone.")},
    ),
]
