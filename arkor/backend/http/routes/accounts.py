"""Anonymous identities, the sign-in configuration, the current user, and projects.

An identity permits training, and training reads and writes with the rights of the user who runs the
backend. So an anonymous identity is given without a token to processes of that user alone, because
the bootstrap of every Arkor client expects it, and to everyone else only for the token of the owner
or the operator.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.authentication import NOTHING, ORG, TOKEN, bearer_token, require_user
from arkor.backend.http.body import read_object
from arkor.backend.http.errors import ApiError, unauthorized
from arkor.backend.http.openapi import ResponseSpec, RouteTable
from arkor.backend.http.schema import STRING, array_schema, name_schema, object_schema, string_schema
from arkor.backend.http.state import AppState, app_state
from arkor.backend.store.schema import AlreadyExists
from arkor.backend.store.store import OWNER_ID
from arkor.protocol.accounts import Me, Org, Project, User
from arkor.protocol.codec import to_wire
from arkor.protocol.validation import is_loopback

_KIND = {"enum": ["cli", "web"]}
NEW_IDENTITY = object_schema(kind=_KIND)

_IDENTITY = object_schema(token=STRING, anonymousId=STRING, kind=_KIND, personalOrg=Org)
_NULL = {"type": "null"}
_NO_PORTS = {"type": "array", "items": {"type": "integer"}, "maxItems": 0}
_NO_OAUTH = object_schema(auth0Domain=_NULL, clientId=_NULL, audience=_NULL, callbackPorts=_NO_PORTS)

SLUG = string_schema(
    "1 to 40 of a-z, 0-9 and -, with no - at the beginning",
    pattern="^[a-z0-9][a-z0-9-]{0,39}$",  # may end with a hyphen, as clients cut folder names to 40 characters
)
NEW_PROJECT = object_schema(name=name_schema(255), slug=SLUG)  # 255: a project is named after its folder

routes = RouteTable()


# Users


@routes.add(
    "POST /v1/auth/anonymous",
    NOTHING,
    body=NEW_IDENTITY,
    responses={201: ResponseSpec("The identity; its token is shown only here.", _IDENTITY)},
    errors={401: "The caller is not a process of the server's user, and sent no token of the owner or operator."},
)
async def create_anonymous(request: Request, state: AppState) -> Response:
    """Create an identity with an organisation of its own."""
    await run_in_threadpool(_require_admission, request)
    body = await read_object(request, NEW_IDENTITY)
    token, user, org = await run_in_threadpool(state.store.create_identity)
    identity = {"token": token, "anonymousId": user.id, "kind": body["kind"], "personalOrg": to_wire(org)}
    return JSONResponse(identity, 201)


def _require_admission(request: Request) -> None:
    """Raise a 401 unless the caller is a process of our user or has the owner's token."""
    if bearer_token(request):
        if require_user(request).id == OWNER_ID:
            return
    elif app_state(request).open_to_own_user and _is_same_user(request):
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


def is_own_process(client: tuple[str, int], server: tuple[str, int]) -> bool:
    """Return whether the `client` end of a connection to us is open in a process of our user.

    Every user of a machine can reach a port on loopback. Linux reveals which process owns a socket;
    elsewhere all local callers are treated alike.
    """
    if not psutil.LINUX:
        return is_loopback(client[0])
    for connection in psutil.net_connections("tcp"):
        if connection.pid and (connection.laddr, connection.raddr) == (client, server):
            try:
                return psutil.Process(connection.pid).uids().effective == os.getuid()
            except psutil.NoSuchProcess:
                return False
    return False


@routes.add("GET /v1/auth/cli/config", NOTHING, responses={200: ResponseSpec("Nulls.", _NO_OAUTH)})
def sign_in_config() -> Response:
    """Return the sign-in configuration (this backend has no OAuth)."""
    return JSONResponse({"auth0Domain": None, "clientId": None, "audience": None, "callbackPorts": []})


@routes.add("GET /v1/me", TOKEN, responses={200: ResponseSpec("The user and their organisations.", Me)})
def me(state: AppState, user: User) -> Response:
    """Return the user of the token."""
    return JSONResponse({"user": {"id": user.id, "email": user.email}, "orgs": to_wire(state.store.orgs(user))})


# Projects


@routes.add(
    "GET /v1/projects",
    ORG,
    responses={
        200: ResponseSpec("By slug.", object_schema(org=object_schema(slug=STRING), projects=array_schema(Project)))
    },
)
def list_projects(state: AppState, org: Org) -> Response:
    """List the projects of the organisation."""
    return JSONResponse({"org": {"slug": org.slug}, "projects": to_wire(state.store.projects(org))})


@routes.add(
    "POST /v1/projects",
    ORG,
    body=NEW_PROJECT,
    responses={201: ResponseSpec("The project.", object_schema(project=Project))},
    errors={409: "The organisation has a project of that slug."},
)
def create_project(state: AppState, org: Org, body: dict[str, Any]) -> Response:
    """Create a project."""
    try:
        project = state.store.create_project(org, body["name"].strip(), body["slug"])
    except AlreadyExists:
        problem = f"The organisation {org.slug!r} already has a project {body['slug']!r}."
        raise ApiError(409, problem, "slug_taken") from None
    return JSONResponse({"project": to_wire(project)}, 201)
