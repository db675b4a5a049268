"""The projects of an organisation."""

from __future__ import annotations

import re

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.openapi import ORG, ResponseSpec, array_schema, field_names, object_schema, route
from arkor.backend.http.requests import (
    NAME,
    ApiError,
    check_fields,
    invalid_field,
    read_json_object,
    require_org,
    require_text,
)
from arkor.backend.store.store import AlreadyExists, ProjectRecord
from arkor.protocol.accounts import Project

# A client cuts the name of a folder to 40 characters, so the last one may be any.
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,39}", re.ASCII)

#: The longest name of a project: that of a folder.
MAX_NAME_LENGTH = 255

NEW_PROJECT = object_schema(
    name={**NAME, "maxLength": MAX_NAME_LENGTH}, slug={"type": "string", "pattern": f"^{_SLUG.pattern}$"}
)


async def list_projects(request: Request) -> Response:
    """`GET /v1/projects?orgSlug`."""
    _, org = await require_org(request)
    projects = await run_in_threadpool(request.app.state.store.projects, org)
    return JSONResponse({"org": {"slug": org.slug}, "projects": [_json(project) for project in projects]})


async def create_project(request: Request) -> Response:
    """`POST /v1/projects?orgSlug`: 409 when the organisation has one of that slug."""
    _, org = await require_org(request)
    body = await read_json_object(request)
    check_fields(body, *field_names(NEW_PROJECT))
    name, slug = require_text(body, "name", MAX_NAME_LENGTH), body["slug"]
    if not isinstance(slug, str) or not _SLUG.fullmatch(slug):
        problem = "must be 1 to 40 of a-z, 0-9 and -, with no - at the beginning"
        raise invalid_field("slug", problem)
    try:
        project = await run_in_threadpool(request.app.state.store.create_project, org, name, slug)
    except AlreadyExists:
        sentence = f"The organisation {org.slug!r} already has a project {slug!r}."
        raise ApiError(409, sentence, "slug_taken") from None
    return JSONResponse({"project": _json(project)}, 201)


def _json(project: ProjectRecord) -> dict[str, str]:
    return {"id": project.id, "slug": project.slug, "name": project.name, "orgId": project.org_id}


routes = [
    route(
        "GET",
        "/v1/projects",
        list_projects,
        ORG,
        "The projects of the organisation.",
        responses={
            200: ResponseSpec(
                "By slug.", object_schema(org=object_schema(slug={"type": "string"}), projects=array_schema(Project))
            )
        },
    ),
    route(
        "POST",
        "/v1/projects",
        create_project,
        ORG,
        "A new project.",
        body=NEW_PROJECT,
        responses={201: ResponseSpec("The project.", object_schema(project=Project))},
        errors={409: "The organisation has one of that slug."},
    ),
]
