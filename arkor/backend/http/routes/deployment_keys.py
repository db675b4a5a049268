"""The keys of a deployment, managed by the members of its project; what they open is in `openai_chat.py`."""

from __future__ import annotations

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.openapi import PROJECT, TEXT, Answer, body_of, fields_of, list_of, route
from arkor.backend.http.requests import Refusal, check_fields, invalid, read_object, shown
from arkor.backend.http.routes.deployments import ONE, naming_the_field, no_deployment, require_deployment
from arkor.backend.store.deployments import MOST_KEYS, TooManyKeys
from arkor.protocol.codec import camel
from arkor.protocol.deployments import LABEL_LENGTH, DeploymentKey, clean_label


async def list_keys(request: Request) -> Response:
    """`GET /v1/endpoints/:id/keys`, revoked ones too."""
    _, deployment = await require_deployment(request)
    found = await run_in_threadpool(request.app.state.store.endpoints.keys_of, deployment.id)
    return JSONResponse({"keys": [key_json(key) for key in found]})


async def create_key(request: Request) -> Response:
    """`POST /v1/endpoints/:id/keys`: the plaintext is in this answer alone. 409 when there are too many."""
    project, deployment = await require_deployment(request)
    body = await read_object(request)
    check_fields(body, *fields_of(NEW_KEY))
    with naming_the_field():
        label = clean_label(body["label"])
    if not label.isprintable():
        raise invalid("label", "must be one line of characters that can be seen")
    try:
        key = await run_in_threadpool(request.app.state.store.endpoints.add_key, deployment.id, label)
    except TooManyKeys:
        sentence = f"The deployment {deployment.slug!r} has {MOST_KEYS} keys; revoke one first."
        raise Refusal(409, sentence, "too_many_keys") from None
    except LookupError:
        raise no_deployment(project, deployment.id) from None
    names = ("id", "label", "plaintext", "prefix", "created_at")
    return JSONResponse({"key": {camel(name): getattr(key, name) for name in names}}, 201)


async def revoke_key(request: Request) -> Response:
    """`DELETE /v1/endpoints/:id/keys/:keyId`: it opens nothing from now on, and stays listed."""
    _, deployment = await require_deployment(request)
    key_id = request.path_params["keyId"]
    if not await run_in_threadpool(request.app.state.store.endpoints.revoke_key, deployment.id, key_id):
        sentence = f"The deployment {deployment.slug!r} has no key {shown(key_id)}."
        raise Refusal(404, sentence, "key_not_found")
    return Response(status_code=204)


def key_json(key: DeploymentKey) -> dict[str, Any]:
    """A key as in lists."""
    names = ("id", "label", "prefix", "enabled", "created_at", "last_used_at")
    return {camel(name): getattr(key, name) for name in names}


# What is described

NEW_KEY = body_of(label={"type": "string", "minLength": LABEL_LENGTH[0], "maxLength": LABEL_LENGTH[1]})
_SHOWN_KEY = body_of(
    id=TEXT,
    label=TEXT,
    prefix=TEXT,
    enabled={"type": "boolean"},
    createdAt=TEXT,
    lastUsedAt={"type": ["string", "null"]},
)
_FRESH_KEY = body_of(id=TEXT, label=TEXT, plaintext=TEXT, prefix=TEXT, createdAt=TEXT)

routes = [
    route(
        "GET",
        f"{ONE}/keys",
        list_keys,
        PROJECT,
        "The keys of a deployment.",
        answers={200: Answer("Revoked ones too.", body_of(keys=list_of(_SHOWN_KEY)))},
    ),
    route(
        "POST",
        f"{ONE}/keys",
        create_key,
        PROJECT,
        "A new key.",
        body=NEW_KEY,
        answers={201: Answer("The plaintext is here and nowhere else.", body_of(key=_FRESH_KEY))},
        errors={409: f"There are {MOST_KEYS} keys already."},
    ),
    route(
        "DELETE",
        f"{ONE}/keys/{{keyId}}",
        revoke_key,
        PROJECT,
        "Revoke a key.",
        answers={204: Answer("It opens nothing any more, and stays listed.")},
    ),
]
