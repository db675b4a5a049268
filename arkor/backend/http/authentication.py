"""The caller of a request and what it names: token, organisation, project, job, deployment."""

from __future__ import annotations

import hmac
from collections.abc import Container
from typing import Any

from attrs import frozen
from starlette.requests import Request

from arkor.backend.http.errors import ApiError, unauthorized
from arkor.backend.http.schema import TEXT, Parameter
from arkor.backend.http.state import AppState, app_state
from arkor.backend.store.store import OWNER_ID, JobRecord
from arkor.formatting import quote
from arkor.protocol.accounts import Project, User
from arkor.protocol.deployments import Deployment

ORG_SLUG = Parameter("orgSlug", TEXT, "The organisation.", required=True)
PROJECT_SLUG = Parameter("projectSlug", TEXT, "The project.", required=True)


@frozen
class Requirements:
    """What a caller must send: a token, and parts of the scope in the query."""

    token: bool = False
    query: tuple[Parameter, ...] = ()


NOTHING = Requirements()
TOKEN = Requirements(token=True)
ORG = Requirements(token=True, query=(ORG_SLUG,))
PROJECT = Requirements(token=True, query=(ORG_SLUG, PROJECT_SLUG))


def authorize(request: Request, requirements: Requirements, names: Container[str]) -> dict[str, Any]:
    """Return the `user`, `org` and `project` that are required, and the path's `job` or `deployment`.

    The latter are looked up if they are in `names`. Raises a 401, 400, 403 or 404.
    """
    found: dict[str, Any] = {}
    state = app_state(request)
    if requirements.token:
        found["user"] = require_user(request)
    if ORG_SLUG in requirements.query:
        slug = ORG_SLUG.read(request)
        found["org"] = next((org for org in state.store.orgs(found["user"]) if org.slug == slug), None)
        if found["org"] is None:
            raise ApiError(403, f"You are not a member of the organisation {quote(slug)}.", "forbidden")
    if PROJECT_SLUG in requirements.query:
        org, slug = found["org"], PROJECT_SLUG.read(request)
        found["project"] = state.store.project(org, slug)
        if found["project"] is None:
            raise ApiError(404, f"The organisation {org.slug!r} has no project {quote(slug)}.", "project_not_found")
    for name, require in (("job", require_job), ("deployment", _require_deployment)):
        if name in names:
            found[name] = require(state, found["project"], request.path_params["id"])
    return found


def require_user(request: Request) -> User:
    """Return the user of the bearer token. Raises a 401."""
    state, token = app_state(request), bearer_token(request) or ""
    if state.operator_token and hmac.compare_digest(state.operator_token.encode(), token.encode("utf-8", "replace")):
        return User(OWNER_ID)  # as long as this server runs; the token is not stored
    user = state.store.user(token) if token else None
    if user is None:
        raise unauthorized("A valid token is required.", "unauthorized", "Send it as Authorization: Bearer <token>.")
    return user


def bearer_token(request: Request) -> str | None:
    """Return the token of the request, None unless there is exactly one."""
    given = request.headers.getlist("authorization")
    kind, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return token.strip() or None if kind.lower() == "bearer" else None


def require_job(state: AppState, project: Project, job_id: str) -> JobRecord:
    """Return the project's job of that id; its status may be older than its log's. Raises a 404."""
    job = state.store.job(project, job_id)
    if job is None:
        raise ApiError(404, f"The project {project.slug!r} has no job {quote(job_id)}.", "job_not_found")
    return job


def _require_deployment(state: AppState, project: Project, deployment_id: str) -> Deployment:
    found = state.store.deployments.get(deployment_id)
    if found is None or found.project_id != project.id:
        raise deployment_not_found(project, deployment_id)
    return found


def deployment_not_found(project: Project, deployment_id: str) -> ApiError:
    problem = f"The project {project.slug!r} has no deployment {quote(deployment_id)}."
    return ApiError(404, problem, "deployment_not_found")
