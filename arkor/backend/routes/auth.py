"""Who one is: anonymous identities, what sign-in this backend has, `me`."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from arkor.backend.routes import check_fields, invalid, read_object, require_user
from arkor.backend.store import Org


async def create_anonymous(request: Request) -> Response:
    """`POST /v1/auth/anonymous`: a new identity with an organisation of its own."""
    body = await read_object(request)
    check_fields(body, ["kind"])
    if body["kind"] not in ("cli", "web"):
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
    Route("/v1/auth/anonymous", create_anonymous, methods=["POST"]),
    Route("/v1/auth/cli/config", sign_in_config),
    Route("/v1/me", me),
]
