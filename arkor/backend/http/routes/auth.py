"""Anonymous identities, the sign-in configuration, and the current user.

An identity permits training, and training reads and writes with the rights of the user who runs the
backend. So an anonymous identity is given without a token to processes of that user alone, because
the bootstrap of every Arkor client expects it, and to everyone else only for the token of the owner
or the operator.
"""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.authentication import bearer_token, require_user
from arkor.backend.http.body import read_object
from arkor.backend.http.errors import unauthorized
from arkor.backend.http.openapi import NOTHING, TOKEN, ResponseSpec, RouteTable
from arkor.backend.http.peer import is_own_process
from arkor.backend.http.schema import STRING, object_schema
from arkor.backend.http.state import app_state
from arkor.backend.store.store import OWNER_ID, OrgRecord
from arkor.protocol.accounts import Me, Org

_KIND = {"enum": ["cli", "web"]}
NEW_IDENTITY = object_schema(kind=_KIND)

_IDENTITY = object_schema(token=STRING, anonymousId=STRING, kind=_KIND, personalOrg=Org)
_NULL = {"type": "null"}
_NO_PORTS = {"type": "array", "items": {"type": "integer"}, "maxItems": 0}
_NO_OAUTH = object_schema(auth0Domain=_NULL, clientId=_NULL, audience=_NULL, callbackPorts=_NO_PORTS)

routes = RouteTable()


@routes.add(
    "POST /v1/auth/anonymous",
    NOTHING,
    body=NEW_IDENTITY,
    responses={201: ResponseSpec("The identity; its token is shown only here.", _IDENTITY)},
    errors={401: "The caller is not a process of the server's user, and sent no token of the owner or operator."},
)
async def create_anonymous(request: Request) -> Response:
    """Create an identity with an organisation of its own."""
    await _require_admission(request)
    body = await read_object(request, NEW_IDENTITY)
    token, user, org = await run_in_threadpool(app_state(request).store.create_identity)
    identity = {"token": token, "anonymousId": user.id, "kind": body["kind"], "personalOrg": _org_json(org)}
    return JSONResponse(identity, 201)


async def _require_admission(request: Request) -> None:
    """Raise a 401 unless the caller is a process of our user or has the owner's token."""
    if bearer_token(request):
        if (await require_user(request)).id == OWNER_ID:
            return
    elif app_state(request).open_to_own_user and await run_in_threadpool(_is_same_user, request):
        return
    raise unauthorized(
        "This backend requires an operator token.",
        "token_required",
        "Ask the operator for it, then sign in: arkor login --token --url URL",
    )


def _is_same_user(request: Request) -> bool:
    """Return whether the caller is a process of our user, and not a proxy."""
    client, server = request.scope["client"], request.scope["server"]
    forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "via"))
    return client is not None and not forwarded and is_own_process(client, server)


@routes.add("GET /v1/auth/cli/config", NOTHING, responses={200: ResponseSpec("Nulls.", _NO_OAUTH)})
def sign_in_config(_request: Request) -> Response:
    """Return the sign-in configuration (this backend has no OAuth)."""
    return JSONResponse({"auth0Domain": None, "clientId": None, "audience": None, "callbackPorts": []})


@routes.add("GET /v1/me", TOKEN, responses={200: ResponseSpec("The user and their organisations.", Me)})
async def me(request: Request) -> Response:
    """Return the user of the token."""
    user = await require_user(request)
    orgs = await run_in_threadpool(app_state(request).store.orgs, user)
    return JSONResponse({"user": {"id": user.id, "email": user.email}, "orgs": [_org_json(org) for org in orgs]})


def _org_json(org: OrgRecord) -> dict[str, str]:
    return {"id": org.id, "slug": org.slug, "name": org.name}
