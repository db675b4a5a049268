"""The API keys of a deployment, managed by the members of its project."""

from __future__ import annotations

from typing import Any

import attrs
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.body import read_object
from arkor.backend.http.errors import ApiError, invalid_field
from arkor.backend.http.openapi import PROJECT, ResponseSpec, RouteTable
from arkor.backend.http.routes.deployments import DEPLOYMENT_PATH, deployment_not_found, require_deployment
from arkor.backend.http.schema import BOOLEAN, TEXT, array_schema, object_schema
from arkor.backend.http.state import app_state
from arkor.backend.store.deployments import MAX_KEYS, TooManyKeys
from arkor.formatting import quote
from arkor.protocol.codec import camel_case
from arkor.protocol.deployments import LABEL_LENGTH, DeploymentKey

_VISIBLE, _INNER = r"[^\s\u0000-\u001f\u007f]", r"[^\u0000-\u001f\u007f]"
_LABEL = {
    "type": "string",
    "pattern": rf"^\s*{_VISIBLE}(?:{_INNER}{{0,{LABEL_LENGTH[1] - 2}}}{_VISIBLE})?\s*$",
    "description": f"one line of {LABEL_LENGTH[0]} to {LABEL_LENGTH[1]} characters",
}
NEW_KEY = object_schema(label=_LABEL)
_LISTED_KEY = object_schema(
    id=TEXT,
    label=TEXT,
    prefix=TEXT,
    enabled=BOOLEAN,
    createdAt=TEXT,
    lastUsedAt={"type": ["string", "null"]},
)
_CREATED_KEY = object_schema(id=TEXT, label=TEXT, plaintext=TEXT, prefix=TEXT, createdAt=TEXT)

routes = RouteTable()


@routes.add(
    "GET",
    f"{DEPLOYMENT_PATH}/keys",
    PROJECT,
    responses={200: ResponseSpec("The keys, revoked ones included.", object_schema(keys=array_schema(_LISTED_KEY)))},
)
async def list_keys(request: Request) -> Response:
    """List the keys of a deployment."""
    _, deployment = await require_deployment(request)
    found = await run_in_threadpool(app_state(request).store.deployments.keys_of, deployment.id)
    return JSONResponse({"keys": [_json(key, _LISTED_KEY) for key in found]})


@routes.add(
    "POST",
    f"{DEPLOYMENT_PATH}/keys",
    PROJECT,
    body=NEW_KEY,
    responses={201: ResponseSpec("The key; its plaintext is shown only here.", object_schema(key=_CREATED_KEY))},
    errors={409: f"The deployment has {MAX_KEYS} keys already."},
)
async def create_key(request: Request) -> Response:
    """Create a key."""
    project, deployment = await require_deployment(request)
    label = (await read_object(request, NEW_KEY))["label"].strip()
    if not label.isprintable():
        raise invalid_field("label", "must not contain invisible characters")
    try:
        key = await run_in_threadpool(app_state(request).store.deployments.add_key, deployment.id, label)
    except TooManyKeys:
        problem = f"The deployment {deployment.slug!r} has {MAX_KEYS} keys."
        raise ApiError(409, problem, "too_many_keys", remedy="Revoke one first.") from None
    except LookupError:
        raise deployment_not_found(project, deployment.id) from None
    return JSONResponse({"key": _json(key, _CREATED_KEY)}, 201)


@routes.add(
    "DELETE",
    f"{DEPLOYMENT_PATH}/keys/{{keyId}}",
    PROJECT,
    responses={204: ResponseSpec("The key is revoked; it remains listed.")},
)
async def revoke_key(request: Request) -> Response:
    """Revoke a key."""
    _, deployment = await require_deployment(request)
    key_id = request.path_params["keyId"]
    if not await run_in_threadpool(app_state(request).store.deployments.revoke_key, deployment.id, key_id):
        raise ApiError(404, f"The deployment {deployment.slug!r} has no key {quote(key_id)}.", "key_not_found")
    return Response(status_code=204)


def _json(key: DeploymentKey, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the key that the schema has."""
    names = {camel_case(field.name): field.name for field in attrs.fields(DeploymentKey)}
    return {name: getattr(key, names[name]) for name in schema["properties"]}
