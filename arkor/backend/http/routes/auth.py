"""Who one is: anonymous identities, what sign-in this backend has, `me`.

Who signs in may train, and training reads and writes with the rights of whoever runs this backend. So an anonymous
identity is given to the processes of that person on this machine, as the bootstrap of every Arkor client expects it,
and to callers that bring the token of the owner or of the operator. Other people who can reach the port get none.
"""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.openapi import NOTHING, TOKEN, ResponseSpec, array_schema, field_names, object_schema, route
from arkor.backend.http.peer import is_own_process
from arkor.backend.http.requests import (
    bearer_token,
    check_fields,
    invalid_field,
    read_json_object,
    require_user,
    unauthorized,
)
from arkor.backend.store.store import OWNER_ID, OrgRecord
from arkor.protocol.accounts import Me, Org

KINDS = ("cli", "web")
NEW_IDENTITY = object_schema(kind={"enum": KINDS})

_TEXT = {"type": "string"}
_IDENTITY = object_schema(token=_TEXT, anonymousId=_TEXT, kind={"enum": KINDS}, personalOrg=Org)
_NONE = {"type": "null"}
_NO_OAUTH = object_schema(
    auth0Domain=_NONE,
    clientId=_NONE,
    audience=_NONE,
    callbackPorts={**array_schema({"type": "integer"}), "maxItems": 0},
)


async def create_anonymous(request: Request) -> Response:
    """`POST /v1/auth/anonymous`: a new identity with an organisation of its own."""
    await _require_admission(request)
    body = await read_json_object(request)
    check_fields(body, *field_names(NEW_IDENTITY))
    if body["kind"] not in KINDS:
        raise invalid_field("kind", 'must be "cli" or "web"')
    token, user, org = await run_in_threadpool(request.app.state.store.create_identity)
    answer = {"token": token, "anonymousId": user.id, "kind": body["kind"], "personalOrg": org_json(org)}
    return JSONResponse(answer, 201)


async def _require_admission(request: Request) -> None:
    """A 401 for whoever is neither the owner nor somebody that brings the owner's or the operator's token."""
    if bearer_token(request):
        if (await require_user(request)).id == OWNER_ID:
            return
    elif request.app.state.open_to_own_user and await run_in_threadpool(_is_same_user, request):
        return
    sentence = (
        "This backend gives an identity to nobody without its operator's token. Ask whoever runs it, then sign in: "
        "arkor login --token --url URL"
    )
    raise unauthorized(sentence, "token_required")


def _is_same_user(request: Request) -> bool:
    """Whether the caller is a process of the user that we run as, and speaks for itself."""
    client, server = request.scope["client"], request.scope["server"]
    for_others = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "via"))
    return client is not None and not for_others and is_own_process(client, server)


def sign_in_config(_request: Request) -> Response:
    """`GET /v1/auth/cli/config`: nulls, for there is no OAuth here."""
    return JSONResponse({"auth0Domain": None, "clientId": None, "audience": None, "callbackPorts": []})


async def me(request: Request) -> Response:
    """`GET /v1/me`: the user behind the token, and their organisations."""
    user = await require_user(request)
    orgs = await run_in_threadpool(request.app.state.store.orgs, user)
    return JSONResponse({"user": {"id": user.id, "email": user.email}, "orgs": [org_json(org) for org in orgs]})


def org_json(org: OrgRecord) -> dict[str, str]:
    """An organisation as on the wire."""
    return {"id": org.id, "slug": org.slug, "name": org.name}


routes = [
    route(
        "POST",
        "/v1/auth/anonymous",
        create_anonymous,
        NOTHING,
        "A new identity with an organisation of its own.",
        body=NEW_IDENTITY,
        responses={201: ResponseSpec("The identity; its token is shown this once.", _IDENTITY)},
        errors={401: "The caller is another user's, or of another machine, and brought no token of the operator."},
    ),
    route(
        "GET",
        "/v1/auth/cli/config",
        sign_in_config,
        NOTHING,
        "How people sign in: not at all, for there is no OAuth here.",
        responses={200: ResponseSpec("Nulls.", _NO_OAUTH)},
    ),
    route("GET", "/v1/me", me, TOKEN, "Who the token belongs to.", responses={200: ResponseSpec("The user.", Me)}),
]
