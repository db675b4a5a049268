"""What each route takes and answers, as `GET /openapi.json` tells it (OpenAPI 3.1).

A room of routes lists its routes with `route(...)`, which makes the route and says in the same breath who may call it,
what it takes, and every answer that it gives:

    NEW_PROJECT = body_of(name=TEXT, slug={"type": "string", "pattern": "^[a-z0-9-]+$"})

    routes = [
        route(
            "POST", "/v1/projects", create_project, ORG, "A new project.",
            body=NEW_PROJECT,
            answers={201: Answer("The project.", body_of(project=Project))},
            errors={409: "The organisation has one of that slug."},
        ),
    ]

A schema is JSON Schema in which an attrs class of the vocabulary may stand: it becomes the schema of its fields, by
their names on the wire. What its annotations cannot say (a bound, a pattern) is in the field's `metadata`, under
`"schema"`, or is the attribute `schema` of its `"check"`. The same schema tells `check_fields` which fields there are:
`check_fields(body, *field_names(NEW_PROJECT))`.

What comes by itself: the path's parameters; the token and the scope by `needs`, with their 400, 401, 403 and 404; the
400, 413 and 415 of a body; what any request may meet (`COMMON_ERRORS`). All errors have the shape of `Problem`, unless
`errors_as` names another schema.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from re import findall
from typing import Any

import attrs
from attrs import field, frozen
from starlette.routing import BaseRoute, Route

from arkor.protocol.codec import camel_case
from arkor.settings import VERSION

Schema = Any

TEXT: Schema = {"type": "string", "minLength": 1}
EVENTS: Schema = {"description": "Server-sent events."}
FILE: Schema = {"type": "string", "format": "binary"}


@frozen
class Problem:
    """Every error: a sentence for a person, a word for a machine."""

    error: str
    code: str | None = None


@frozen
class Requirements:
    """What a caller must bring: a token, and which part of the scope in the query."""

    token: bool = False
    query: tuple[str, ...] = ()


NOTHING = Requirements()
TOKEN = Requirements(token=True)
ORG = Requirements(token=True, query=("orgSlug",))
PROJECT = Requirements(token=True, query=("orgSlug", "projectSlug"))


@frozen
class Parameter:
    """A value in the query or, with `where="header"`, in a header."""

    name: str
    schema: Schema
    description: str
    required: bool = False
    where: str = "query"


@frozen
class ResponseSpec:
    """An answer that is no error; without a schema it has no body. `links` are OpenAPI's.

    `alternatives` are the schemas of what it may be besides, by media type.
    """

    description: str
    schema: Schema = None
    media_type: str = "application/json"
    links: Mapping[str, Any] = field(factory=dict)
    alternatives: Mapping[str, Schema] = field(factory=dict)


#: What any request may meet, whatever its route.
COMMON_ERRORS: Mapping[int, str] = {
    400: "The request is no valid HTTP.",
    403: "The name that the request calls, or the page that it comes from, is not of this backend.",
    408: "The request came too slowly.",
    431: "The request's head is too long.",
    503: "The backend is busy, or its database is in use by another program; `Retry-After` says when to come back.",
    507: "The disk is full.",
}
_UNAUTHORIZED = {401: "No token, or one that is not valid."}
_BAD_QUERY = {400: "The query lacks something, or has it in a wrong form."}
_FORBIDDEN = {403: "Not a member of that organisation."}
_NOT_FOUND = {404: "There is no such thing in that scope."}
_BAD_BODY = {
    400: "The body is no JSON object, or one of its fields is wrong; the sentence names it.",
    413: "The body is too large.",
    415: "The body is compressed.",
}


@frozen
class Operation:
    """One method of one path, as it is described."""

    requirements: Requirements
    summary: str
    body: Schema
    body_type: str
    parameters: Sequence[Parameter]
    responses: Mapping[int, ResponseSpec]
    errors: Mapping[int, str]
    error_schema: Schema


class DescribedRoute(Route):
    """A route that knows what it takes and answers."""

    operation: Operation


def route(
    method: str,
    path: str,
    endpoint: Callable[..., Any],
    requirements: Requirements,
    summary: str,
    *,
    body: Schema = None,
    body_type: str = "application/json",
    parameters: Sequence[Parameter] = (),
    responses: Mapping[int, ResponseSpec],
    errors: Mapping[int, str] | None = None,
    error_schema: Schema = Problem,
) -> DescribedRoute:
    """The route, with its description; see the head of this file."""
    described = DescribedRoute(path, endpoint, methods=[method])
    described.operation = Operation(
        requirements, summary, body, body_type, parameters, responses, errors or {}, error_schema
    )
    return described


# Schemas


def object_schema(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    """An object of these fields and no others, by their names on the wire."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def array_schema(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def one_of(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas]}


def field_names(schema: Any) -> tuple[list[str], list[str]]:
    """The required and the optional fields of a `object_schema`."""
    required = schema["required"]
    return required, [name for name in schema["properties"] if name not in required]


def class_schema(cls: Any) -> dict[str, Any]:
    """The schema of an attrs class; a field without a default is required, one that may be None may be null."""
    hints = typing.get_type_hints(cls)
    fields = [item for item in attrs.fields(cls) if item.name != "extra"]
    properties = {camel_case(item.name): _field_schema(item, hints[item.name]) for item in fields}
    required = [camel_case(item.name) for item in fields if item.default is attrs.NOTHING or not item.init]
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if "extra" not in attrs.fields_dict(cls):
        schema["additionalProperties"] = False
    if cls.__doc__ and "\n" not in cls.__doc__:
        schema["description"] = cls.__doc__
    return schema


def _field_schema(item: attrs.Attribute[Any], hint: Any) -> Schema:
    if not item.init:  # the word that tells a class from its siblings
        return {"const": item.default}
    declared = item.metadata.get("schema", getattr(item.metadata.get("check"), "schema", None))
    schema = declared if declared is not None else type_schema(hint)
    optional = item.default is None and declared is not None
    return one_of(schema, {"type": "null"}) if optional else schema


_PLAIN: Mapping[Any, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}


def type_schema(hint: Any) -> Schema:
    """The schema of a type annotation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if origin in (typing.Union, types.UnionType):
        return one_of(*map(type_schema, arguments))
    if isinstance(origin, type):
        return {"type": "object"} if issubclass(origin, Mapping) else array_schema(type_schema(arguments[0]))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    return hint if isinstance(hint, type) and attrs.has(hint) else {}


# The document


def describe(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI document of those of the routes that say what they take and answer."""
    components: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for described_route in routes:
        if isinstance(described_route, DescribedRoute):
            methods = (described_route.methods or set()) - {"HEAD"}
            entry = {
                method.lower(): _operation(described_route.path, described_route.operation, method)
                for method in methods
            }
            paths.setdefault(described_route.path, {}).update(entry)
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


def _operation(path: str, operation: Operation, method: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _operation_id(method, path),
        "summary": operation.summary,
        "security": [{"token": []}] if operation.requirements.token else [],
        "parameters": [
            _parameter(parameter)
            for parameter in (*_path_parameters(path), *_scope_parameters(operation), *operation.parameters)
        ],
        "responses": {str(status): response for status, response in sorted(_responses(path, operation).items())},
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {operation.body_type: {"schema": operation.body}}}
    return described


def _operation_id(method: str, path: str) -> str:
    parts = findall(r"[a-z0-9]+", path.replace("{", "").lower())
    return "".join([method.lower(), *(word.capitalize() for word in parts)])


def _path_parameters(path: str) -> list[Parameter]:
    return [Parameter(name, TEXT, f"The {name}.", required=True, where="path") for name in findall(r"{(\w+)}", path)]


def _scope_parameters(operation: Operation) -> list[Parameter]:
    descriptions = {"orgSlug": "The organisation.", "projectSlug": "The project."}
    return [Parameter(name, TEXT, descriptions[name], required=True) for name in operation.requirements.query]


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.description,
        "required": parameter.required,
        "schema": parameter.schema,
    }


def _responses(path: str, operation: Operation) -> dict[int, Any]:
    responses = {status: _response(response) for status, response in operation.responses.items()}
    reasons: dict[int, list[str]] = {}
    for grouped in _error_reasons(path, operation):
        for status, reason in grouped.items():
            reasons.setdefault(status, []).append(reason)
    content = {"application/json": {"schema": operation.error_schema}}
    errors = {status: {"description": " ".join(why), "content": content} for status, why in reasons.items()}
    return {**errors, **responses}


def _error_reasons(path: str, operation: Operation) -> Iterable[Mapping[int, str]]:
    """Why the route may say no."""
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


def _response(spec: ResponseSpec) -> dict[str, Any]:
    described: dict[str, Any] = {"description": spec.description}
    if spec.schema is not None:
        kinds = {spec.media_type: spec.schema, **spec.alternatives}
        described["content"] = {kind: {"schema": schema} for kind, schema in kinds.items()}
    if spec.links:
        described["links"] = spec.links
    return described


def _resolve_schemas(value: Any, components: dict[str, Any]) -> Any:
    """The value with a reference in the place of every class, whose schema goes into the components."""
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
