"""Who one is: anonymous identities, what sign-in this backend has, `me`."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.accounts import Me
from arkor.accounts import Org as OrgOnWire
from arkor.backend.openapi import NOTHING, TOKEN, Answer, body_of, fields_of, list_of, route
from arkor.backend.routes import check_fields, invalid, read_object, require_user
from arkor.backend.store import Org

KINDS = ("cli", "web")
NEW_IDENTITY = body_of(kind={"enum": KINDS})

_TEXT = {"type": "string"}
_IDENTITY = body_of(token=_TEXT, anonymousId=_TEXT, kind={"enum": KINDS}, personalOrg=OrgOnWire)
_NONE = {"type": "null"}
_NO_OAUTH = body_of(
    auth0Domain=_NONE, clientId=_NONE, audience=_NONE, callbackPorts={**list_of({"type": "integer"}), "maxItems": 0}
)


async def create_anonymous(request: Request) -> Response:
    """`POST /v1/auth/anonymous`: a new identity with an organisation of its own."""
    body = await read_object(request)
    check_fields(body, *fields_of(NEW_IDENTITY))
    if body["kind"] not in KINDS:
        raise invalid("kind", 'must be "cli" or "web"')
    token, user, org = await run_in_threadpool(request.app.state.store.create_identity)
    answer = {"token": token, "anonymousId": user.id, "kind": body["kind"], "personalOrg": org_json(org)}
    return JSONResponse(answer, 201)


def sign_in_config(_request: Request) -> Response:
    """`GET /v1/auth/cli/config`: nulls, for there is no OAuth here."""
    return JSONResponse({"auth0Domain": None, "clientId": None, "audience": None, "callbackPorts": []})


async def me(request: Request) -> Response:
    """`GET /v1/me`: the user behind the token, and their organisations."""
    user = await require_user(request)
    orgs = await run_in_threadpool(request.app.state.store.orgs, user)
    return JSONResponse({"user": {"id": user.id, "email": user.email}, "orgs": [org_json(org) for org in orgs]})


def org_json(org: Org) -> dict[str, str]:
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
        answers={201: Answer("The identity; its token is shown this once.", _IDENTITY)},
    ),
    route(
        "GET",
        "/v1/auth/cli/config",
        sign_in_config,
        NOTHING,
        "How people sign in: not at all, for there is no OAuth here.",
        answers={200: Answer("Nulls.", _NO_OAUTH)},
    ),
    route("GET", "/v1/me", me, TOKEN, "Who the token belongs to.", answers={200: Answer("The user.", Me)}),
]
