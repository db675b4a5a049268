"""The caller of a request and the scope that it names: token, organisation, project."""

from __future__ import annotations

import hmac

from attrs import frozen
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from arkor.backend.http.errors import ApiError, unauthorized
from arkor.backend.http.openapi import ORG_SLUG, PROJECT_SLUG
from arkor.backend.http.state import app_state
from arkor.backend.store.store import OWNER_ID, JobRecord, OrgRecord, ProjectRecord, UserRecord
from arkor.formatting import quote


@frozen
class CallScope:
    """The user who calls, and the organisation and project of the call."""

    user: UserRecord
    org: OrgRecord
    project: ProjectRecord


async def require_user(request: Request) -> UserRecord:
    """Return the user of the bearer token. Raises a 401."""
    token = bearer_token(request)
    user = await run_in_threadpool(_authenticate, request, token) if token else None
    if user is None:
        raise unauthorized("A valid token is required.", "unauthorized", "Send it as Authorization: Bearer <token>.")
    return user


def bearer_token(request: Request) -> str | None:
    """Return the token of the request, None unless there is exactly one."""
    given = request.headers.getlist("authorization")
    kind, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    return token.strip() or None if kind.lower() == "bearer" else None


def _authenticate(request: Request, token: str) -> UserRecord | None:
    """The operator's token is the owner's while this server runs; it is not stored."""
    state = app_state(request)
    if state.operator_token and hmac.compare_digest(state.operator_token.encode(), token.encode("utf-8", "replace")):
        return UserRecord(OWNER_ID, None)
    return state.store.user(token)


async def require_org(request: Request) -> tuple[UserRecord, OrgRecord]:
    """Return the user and the organisation of the query. Raises a 401, 400 or 403."""
    user = await require_user(request)
    slug = ORG_SLUG.read(request)
    for org in await run_in_threadpool(app_state(request).store.orgs, user):
        if org.slug == slug:
            return user, org
    raise ApiError(403, f"You are not a member of the organisation {quote(slug)}.", "forbidden")


async def require_scope(request: Request) -> CallScope:
    """Return the user, organisation and project of the query. Raises a 401, 400, 403 or 404."""
    user, org = await require_org(request)
    slug = PROJECT_SLUG.read(request)
    project = await run_in_threadpool(app_state(request).store.project, org, slug)
    if project is None:
        raise ApiError(404, f"The organisation {org.slug!r} has no project {quote(slug)}.", "project_not_found")
    return CallScope(user, org, project)


async def require_job(request: Request, project: ProjectRecord, job_id: str) -> JobRecord:
    """Return the project's job of that id; its status may be older than its log's. Raises a 404."""
    job = await run_in_threadpool(app_state(request).store.job, project, job_id)
    if job is None:
        raise job_not_found(project, job_id)
    return job


def job_not_found(project: ProjectRecord, job_id: str) -> ApiError:
    return ApiError(404, f"The project {project.slug!r} has no job {quote(job_id)}.", "job_not_found")
