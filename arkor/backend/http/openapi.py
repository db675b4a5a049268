"""The routes and their description, which `GET /openapi.json` returns (OpenAPI 3.1).

A module of routes fills a `RouteTable`. The decorator declares who may call, what the route takes
and every response; the endpoint's docstring is the summary and the description:

    @routes.add("POST /v1/projects", ORG, body=NEW_PROJECT, responses={201: ResponseSpec("The project.", PROJECT)})
    async def create_project(request: Request) -> Response:
        \"""Create a project.\"""

The parameters of the path, the token, the scope, and their errors, those of a body and
`COMMON_ERRORS` are added. Errors have the shape of `ErrorBody` unless `error_schema` is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from re import findall
from typing import Any, TypeVar

from attrs import field, frozen
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from arkor.backend.http.errors import invalid_field
from arkor.backend.http.schema import TEXT, Schema, check, class_schema
from arkor.settings import VERSION

E = TypeVar("E", bound=Callable[..., Any])


@frozen
class ErrorBody:
    """An error: a sentence for a person, a code for a program, and the parts if it has a `field`."""

    error: str
    code: str | None = None
    field: str | None = None
    problem: str | None = None
    remedy: str | None = None


@frozen
class Requirements:
    """What a caller must send: a token, and parts of the scope in the query."""

    token: bool = False
    query: tuple[str, ...] = ()


NOTHING = Requirements()
TOKEN = Requirements(token=True)
ORG = Requirements(token=True, query=("orgSlug",))
PROJECT = Requirements(token=True, query=("orgSlug", "projectSlug"))


@frozen
class Parameter:
    """A value in the query, in a header (`where="header"`) or in the path."""

    name: str
    schema: Schema
    description: str
    required: bool = False
    where: str = "query"

    def read(self, request: Request) -> Any:
        """Return the value in the query or header, None if it is absent or empty. Raises a 400."""
        value: Any = (request.headers if self.where == "header" else request.query_params).get(self.name) or None
        if value is None:
            if self.required:
                raise invalid_field(self.name, f"is missing in the {self.where}")
            return None
        if self.schema["type"] == "integer" and value.isascii() and value.isdigit() and len(value) <= 10:
            value = int(value)
        check(self.schema, value, self.name)
        return value

    def describe(self) -> dict[str, Any]:
        entry = {"name": self.name, "in": self.where, "description": self.description}
        return {**entry, "required": self.required, "schema": self.schema}


ORG_SLUG = Parameter("orgSlug", TEXT, "The organisation.", required=True)
PROJECT_SLUG = Parameter("projectSlug", TEXT, "The project.", required=True)


@frozen
class ResponseSpec:
    """A response that is not an error; `alternatives` are the schemas of other media types."""

    description: str
    schema: Schema = None
    media_type: str = "application/json"
    links: Mapping[str, Any] = field(factory=dict)
    alternatives: Mapping[str, Schema] = field(factory=dict)

    def describe(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"description": self.description}
        if self.schema is not None:
            kinds = {self.media_type: self.schema, **self.alternatives}
            entry["content"] = {kind: {"schema": schema} for kind, schema in kinds.items()}
        return {**entry, **({"links": self.links} if self.links else {})}


def id_links(kind: str, **operations: str) -> dict[str, Any]:
    """Return links from the object of that kind in a response to the operations on it."""
    parameters = {"id": f"$response.body#/{kind}/id"}
    return {name: {"operationId": operation, "parameters": parameters} for name, operation in operations.items()}


#: The errors that any request may get.
COMMON_ERRORS: Mapping[int, str] = {
    400: "The request is not valid HTTP.",
    403: "The `Host` or the `Origin` of the request is not allowed here.",
    408: "The request arrived too slowly.",
    431: "The head of the request is too large.",
    503: "The backend is busy, or another program uses its database; repeat the request after `Retry-After` seconds.",
    507: "The disk is full.",
}
_UNAUTHORIZED = {401: "The token is missing or not valid."}
_BAD_QUERY = {400: "A parameter is missing or not valid."}
_FORBIDDEN = {403: "The user is not a member of the organisation."}
_NOT_FOUND = {404: "The project, or something in the path, does not exist."}
_BAD_BODY = {
    400: "The body is not a JSON object, or the field that the error names is wrong.",
    413: "The body is too large.",
    415: "The body is compressed.",
}


@frozen
class Operation:
    """What a route declares: one method of one path."""

    requirements: Requirements
    body: Schema
    body_type: str
    parameters: Sequence[Parameter]
    responses: Mapping[int, ResponseSpec]
    errors: Mapping[int, str]
    error_schema: Schema


class DescribedRoute(Route):
    """A route with its declaration."""

    operation: Operation


class RouteTable(list[DescribedRoute]):
    """The routes of a module."""

    def add(
        self,
        method_and_path: str,
        requirements: Requirements,
        *,
        body: Schema = None,
        body_type: str = "application/json",
        parameters: Sequence[Parameter] = (),
        responses: Mapping[int, ResponseSpec],
        errors: Mapping[int, str] | None = None,
        error_schema: Schema = ErrorBody,
    ) -> Callable[[E], E]:
        """Register the decorated endpoint; see the head of this file."""

        method, _, path = method_and_path.partition(" ")

        def register(endpoint: E) -> E:
            route = DescribedRoute(path, endpoint, methods=[method])
            route.operation = Operation(
                requirements, body, body_type, parameters, responses, errors or {}, error_schema
            )
            self.append(route)
            return endpoint

        return register


# The document


def describe(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Return the OpenAPI document of the routes."""
    components: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for route in routes:
        if isinstance(route, DescribedRoute):
            for method in (route.methods or set()) - {"HEAD"}:
                paths.setdefault(route.path, {})[method.lower()] = _describe_operation(route, method)
    paths = _resolve_schemas(paths, components)
    return {
        "openapi": "3.1.0",
        "info": {"title": "arkor", "version": VERSION, "summary": "Fine-tuning of open-weight language models."},
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _describe_operation(route: DescribedRoute, method: str) -> dict[str, Any]:
    operation, path = route.operation, route.path
    summary, _, description = (inspect.getdoc(route.endpoint) or "").partition("\n\n")
    in_path = [Parameter(name, TEXT, f"The {name}.", required=True, where="path") for name in findall(r"{(\w+)}", path)]
    in_query = [parameter for parameter in (ORG_SLUG, PROJECT_SLUG) if parameter.name in operation.requirements.query]
    words = findall(r"[a-z0-9]+", path.replace("{", "").lower())
    entry: dict[str, Any] = {
        "operationId": method.lower() + "".join(word.capitalize() for word in words),
        "summary": summary,
        **({"description": description} if description else {}),
        "security": [{"token": []}] if operation.requirements.token else [],
        "parameters": [parameter.describe() for parameter in (*in_path, *in_query, *operation.parameters)],
        "responses": {str(status): response for status, response in sorted(_responses(operation, path).items())},
    }
    if operation.body is not None:
        entry["requestBody"] = {"required": True, "content": {operation.body_type: {"schema": operation.body}}}
    return entry


def _responses(operation: Operation, path: str) -> dict[int, Any]:
    reasons: dict[int, list[str]] = {}
    for group in _error_reasons(operation, path):
        for status, reason in group.items():
            reasons.setdefault(status, []).append(reason)
    content = {"application/json": {"schema": operation.error_schema}}
    errors = {status: {"description": " ".join(why), "content": content} for status, why in reasons.items()}
    return {**errors, **{status: spec.describe() for status, spec in operation.responses.items()}}


def _error_reasons(operation: Operation, path: str) -> Iterable[Mapping[int, str]]:
    yield operation.errors
    requirements = operation.requirements
    if requirements.token:
        yield _UNAUTHORIZED
    if requirements.query:
        yield from (_BAD_QUERY, _FORBIDDEN)
    if "projectSlug" in requirements.query or "{" in path:
        yield _NOT_FOUND
    if operation.body is not None:
        yield _BAD_BODY
    yield COMMON_ERRORS


def _resolve_schemas(value: Any, components: dict[str, Any]) -> Any:
    """Replace every class by a reference to its schema in the components."""
    if isinstance(value, type):
        if value.__name__ not in components:
            components[value.__name__] = {}
            components[value.__name__] = _resolve_schemas(class_schema(value), components)
        return {"$ref": f"#/components/schemas/{value.__name__}"}
    if isinstance(value, Mapping):
        return {key: _resolve_schemas(item, components) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolve_schemas(item, components) for item in value]
    return value
