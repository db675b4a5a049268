"""The projects of an organisation."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.authentication import require_org
from arkor.backend.http.body import read_object
from arkor.backend.http.errors import ApiError
from arkor.backend.http.openapi import ORG, ResponseSpec, RouteTable
from arkor.backend.http.schema import STRING, array_schema, name_schema, object_schema
from arkor.backend.http.state import app_state
from arkor.backend.store.store import AlreadyExists, ProjectRecord
from arkor.protocol.accounts import Project

SLUG = {
    "type": "string",
    "pattern": "^[a-z0-9][a-z0-9-]{0,39}$",  # may end with a hyphen, as clients cut folder names to 40 characters
    "description": "1 to 40 of a-z, 0-9 and -, with no - at the beginning",
}
NEW_PROJECT = object_schema(name=name_schema(255), slug=SLUG)  # 255: a project is named after its folder

routes = RouteTable()


@routes.add(
    "GET /v1/projects",
    ORG,
    responses={
        200: ResponseSpec("By slug.", object_schema(org=object_schema(slug=STRING), projects=array_schema(Project)))
    },
)
async def list_projects(request: Request) -> Response:
    """List the projects of the organisation."""
    _, org = await require_org(request)
    projects = await run_in_threadpool(app_state(request).store.projects, org)
    return JSONResponse({"org": {"slug": org.slug}, "projects": [_json(project) for project in projects]})


@routes.add(
    "POST /v1/projects",
    ORG,
    body=NEW_PROJECT,
    responses={201: ResponseSpec("The project.", object_schema(project=Project))},
    errors={409: "The organisation has a project of that slug."},
)
async def create_project(request: Request) -> Response:
    """Create a project."""
    _, org = await require_org(request)
    body = await read_object(request, NEW_PROJECT)
    name, slug = body["name"].strip(), body["slug"]
    try:
        project = await run_in_threadpool(app_state(request).store.create_project, org, name, slug)
    except AlreadyExists:
        problem = f"The organisation {org.slug!r} already has a project {slug!r}."
        raise ApiError(409, problem, "slug_taken") from None
    return JSONResponse({"project": _json(project)}, 201)


def _json(project: ProjectRecord) -> dict[str, str]:
    return {"id": project.id, "slug": project.slug, "name": project.name, "orgId": project.org_id}
