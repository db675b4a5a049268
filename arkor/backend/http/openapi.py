"""The routes and their description, which `GET /openapi.json` returns (OpenAPI 3.1).

A module of routes fills a `RouteTable`. The decorator declares who may call, what the route takes
and every response; the endpoint's docstring is the summary and the description:

    @routes.add("POST /v1/projects", ORG, body=NEW_PROJECT, responses={201: ResponseSpec("The project.", PROJECT)})
    def create_project(state: AppState, org: Org, body: dict[str, Any]) -> Response:
        \"""Create a project.\"""

An endpoint names as parameters what it uses: the `request`, the `state`, what `authorize` returns,
and the JSON `body`. An endpoint that is not a coroutine runs in a thread.

The parameters of the path, the token, the scope, and their errors, those of a body and
`COMMON_ERRORS` are added. Errors have the shape of `ErrorBody` unless `error_schema` is given.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from re import findall
from typing import Any, TypeVar

from attrs import field, frozen
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.routing import BaseRoute, Route

from arkor.backend.http.authentication import PROJECT_SLUG, Requirements, authorize
from arkor.backend.http.body import read_object
from arkor.backend.http.schema import TEXT, Parameter, Schema, class_schema, reject_nul
from arkor.backend.http.state import app_state
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


@frozen(kw_only=True)
class Operation:
    """What a route declares: one method of one path."""

    requirements: Requirements
    body: Schema = None
    body_type: str = "application/json"
    parameters: Sequence[Parameter] = ()
    responses: Mapping[int, ResponseSpec]
    errors: Mapping[int, str] = field(factory=dict)
    error_schema: Schema = ErrorBody


class DescribedRoute(Route):
    """A route with its declaration."""

    operation: Operation


class RouteTable(list[DescribedRoute]):
    """The routes of a module."""

    def add(self, method_and_path: str, requirements: Requirements, **declaration: Any) -> Callable[[E], E]:
        """Register the decorated endpoint with the other fields of its `Operation`."""
        method, _, path = method_and_path.partition(" ")
        operation = Operation(requirements=requirements, **declaration)

        def register(endpoint: E) -> E:
            route = DescribedRoute(path, _handler(endpoint, operation), methods=[method])
            route.operation = operation
            self.append(route)
            return endpoint

        return register


def _handler(endpoint: Callable[..., Any], operation: Operation) -> Callable[[Request], Any]:
    names = inspect.signature(endpoint).parameters
    is_coroutine = inspect.iscoroutinefunction(endpoint)

    @functools.wraps(endpoint)
    async def handle(request: Request) -> Any:
        reject_nul(request.path_params)
        found = await run_in_threadpool(authorize, request, operation.requirements, names)
        found |= {"request": request, "state": app_state(request)}
        if "body" in names:
            found["body"] = await read_object(request, operation.body)
        arguments = {name: found[name] for name in names}
        return await (endpoint(**arguments) if is_coroutine else run_in_threadpool(endpoint, **arguments))

    return handle


# The document


def describe(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    components: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for route in routes:
        if isinstance(route, DescribedRoute):
            for method in (route.methods or set()) - {"HEAD"}:
                paths.setdefault(route.path, {})[method.lower()] = _describe_operation(route, method)
    paths = _resolve_schemas(paths, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "arkor",
            "version": VERSION,
            "summary": "Fine-tuning of open-weight language models.",
            "description": "No text of a request may contain the character U+0000, wherever it is: this is a 400.",
        },
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
    parameters = [*in_path, *operation.requirements.query, *operation.parameters]
    words = findall(r"[a-z0-9]+", path.replace("{", "").lower())
    entry: dict[str, Any] = {
        "operationId": method.lower() + "".join(word.capitalize() for word in words),
        "summary": summary,
        **({"description": description} if description else {}),
        "security": [{"token": []}] if operation.requirements.token else [],
        "parameters": [parameter.describe() for parameter in parameters],
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
    if PROJECT_SLUG in requirements.query or "{" in path:
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
