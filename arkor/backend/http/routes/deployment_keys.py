"""The keys of a deployment, managed by the members of its project; what they open is in `openai_chat.py`."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.openapi import PROJECT, TEXT, ResponseSpec, array_schema, field_names, object_schema, route
from arkor.backend.http.requests import ApiError, check_fields, invalid_field, quote, read_json_object
from arkor.backend.http.routes.deployments import (
    DEPLOYMENT_PATH,
    deployment_not_found,
    require_deployment,
    wire_field_errors,
)
from arkor.backend.store.deployments import MAX_KEYS, TooManyKeys
from arkor.protocol.codec import camel_case
from arkor.protocol.deployments import LABEL_LENGTH, DeploymentKey, clean_label


async def list_keys(request: Request) -> Response:
    """`GET /v1/endpoints/:id/keys`, revoked ones too."""
    _, deployment = await require_deployment(request)
    found = await run_in_threadpool(request.app.state.store.deployments.keys_of, deployment.id)
    return JSONResponse({"keys": [key_json(key) for key in found]})


async def create_key(request: Request) -> Response:
    """`POST /v1/endpoints/:id/keys`: the plaintext is in this answer alone. 409 when there are too many."""
    project, deployment = await require_deployment(request)
    body = await read_json_object(request)
    check_fields(body, *field_names(NEW_KEY))
    with wire_field_errors():
        label = clean_label(body["label"])
    if not label.isprintable():
        raise invalid_field("label", "must be one line of characters that can be seen")
    try:
        key = await run_in_threadpool(request.app.state.store.deployments.add_key, deployment.id, label)
    except TooManyKeys:
        sentence = f"The deployment {deployment.slug!r} has {MAX_KEYS} keys; revoke one first."
        raise ApiError(409, sentence, "too_many_keys") from None
    except LookupError:
        raise deployment_not_found(project, deployment.id) from None
    names = ("id", "label", "plaintext", "prefix", "created_at")
    return JSONResponse({"key": {camel_case(name): getattr(key, name) for name in names}}, 201)


async def revoke_key(request: Request) -> Response:
    """`DELETE /v1/endpoints/:id/keys/:keyId`: it opens nothing from now on, and stays listed."""
    _, deployment = await require_deployment(request)
    key_id = request.path_params["keyId"]
    if not await run_in_threadpool(request.app.state.store.deployments.revoke_key, deployment.id, key_id):
        sentence = f"The deployment {deployment.slug!r} has no key {quote(key_id)}."
        raise ApiError(404, sentence, "key_not_found")
    return Response(status_code=204)


def key_json(key: DeploymentKey) -> dict[str, Any]:
    """A key as in lists."""
    names = ("id", "label", "prefix", "enabled", "created_at", "last_used_at")
    return {camel_case(name): getattr(key, name) for name in names}


# What is described

NEW_KEY = object_schema(label={"type": "string", "minLength": LABEL_LENGTH[0], "maxLength": LABEL_LENGTH[1]})
_LISTED_KEY = object_schema(
    id=TEXT,
    label=TEXT,
    prefix=TEXT,
    enabled={"type": "boolean"},
    createdAt=TEXT,
    lastUsedAt={"type": ["string", "null"]},
)
_CREATED_KEY = object_schema(id=TEXT, label=TEXT, plaintext=TEXT, prefix=TEXT, createdAt=TEXT)

routes = [
    route(
        "GET",
        f"{DEPLOYMENT_PATH}/keys",
        list_keys,
        PROJECT,
        "The keys of a deployment.",
        responses={200: ResponseSpec("Revoked ones too.", object_schema(keys=array_schema(_LISTED_KEY)))},
    ),
    route(
        "POST",
        f"{DEPLOYMENT_PATH}/keys",
        create_key,
        PROJECT,
        "A new key.",
        body=NEW_KEY,
        responses={201: ResponseSpec("The plaintext is here and nowhere else.", object_schema(key=_CREATED_KEY))},
        errors={409: f"There are {MAX_KEYS} keys already."},
    ),
    route(
        "DELETE",
        f"{DEPLOYMENT_PATH}/keys/{{keyId}}",
        revoke_key,
        PROJECT,
        "Revoke a key.",
        responses={204: ResponseSpec("It opens nothing any more, and stays listed.")},
    ),
]
