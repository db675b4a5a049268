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
`check_fields(body, *fields_of(NEW_PROJECT))`.

What comes by itself: the path's parameters; the token and the scope by `needs`, with their 400, 401, 403 and 404; the
400, 413 and 415 of a body; what any request may meet (`EVERYWHERE`). All errors have the shape of `Problem`, unless
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

from arkor.protocol.codec import camel
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
class Needs:
    """What a caller must bring: a token, and which part of the scope in the query."""

    token: bool = False
    query: tuple[str, ...] = ()


NOTHING = Needs()
TOKEN = Needs(token=True)
ORG = Needs(token=True, query=("orgSlug",))
PROJECT = Needs(token=True, query=("orgSlug", "projectSlug"))


@frozen
class Parameter:
    """A value in the query or, with `where="header"`, in a header."""

    name: str
    schema: Schema
    description: str
    required: bool = False
    where: str = "query"


@frozen
class Answer:
    """An answer that is no error; without a schema it has no body. `links` are OpenAPI's.

    `others` are the schemas of what it may be besides, by media type.
    """

    description: str
    schema: Schema = None
    media_type: str = "application/json"
    links: Mapping[str, Any] = field(factory=dict)
    others: Mapping[str, Schema] = field(factory=dict)


#: What any request may meet, whatever its route.
EVERYWHERE: Mapping[int, str] = {
    400: "The request is no valid HTTP.",
    403: "The name that the request calls, or the page that it comes from, is not of this backend.",
    408: "The request came too slowly.",
    431: "The request's head is too long.",
    503: "The backend is busy, or its database is in use by another program; `Retry-After` says when to come back.",
    507: "The disk is full.",
}
_NO_TOKEN = {401: "No token, or one that is not valid."}
_OF_THE_QUERY = {400: "The query lacks something, or has it in a wrong form."}
_NOT_A_MEMBER = {403: "Not a member of that organisation."}
_NOT_THERE = {404: "There is no such thing in that scope."}
_OF_A_BODY = {
    400: "The body is no JSON object, or one of its fields is wrong; the sentence names it.",
    413: "The body is too large.",
    415: "The body is compressed.",
}


@frozen
class Operation:
    """One method of one path, as it is described."""

    needs: Needs
    summary: str
    body: Schema
    body_type: str
    parameters: Sequence[Parameter]
    answers: Mapping[int, Answer]
    errors: Mapping[int, str]
    errors_as: Schema


class DescribedRoute(Route):
    """A route that knows what it takes and answers."""

    operation: Operation


def route(
    method: str,
    path: str,
    endpoint: Callable[..., Any],
    needs: Needs,
    summary: str,
    *,
    body: Schema = None,
    body_type: str = "application/json",
    parameters: Sequence[Parameter] = (),
    answers: Mapping[int, Answer],
    errors: Mapping[int, str] | None = None,
    errors_as: Schema = Problem,
) -> DescribedRoute:
    """The route, with its description; see the head of this file."""
    made = DescribedRoute(path, endpoint, methods=[method])
    made.operation = Operation(needs, summary, body, body_type, parameters, answers, errors or {}, errors_as)
    return made


# Schemas


def body_of(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    """An object of these fields and no others, by their names on the wire."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def one_of(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas]}


def fields_of(schema: Any) -> tuple[list[str], list[str]]:
    """The required and the optional fields of a `body_of`."""
    required = schema["required"]
    return required, [name for name in schema["properties"] if name not in required]


def class_schema(cls: Any) -> dict[str, Any]:
    """The schema of an attrs class; a field without a default is required, one that may be None may be null."""
    hints = typing.get_type_hints(cls)
    fields = [item for item in attrs.fields(cls) if item.name != "extra"]
    properties = {camel(item.name): _field_schema(item, hints[item.name]) for item in fields}
    required = [camel(item.name) for item in fields if item.default is attrs.NOTHING or not item.init]
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    if "extra" not in attrs.fields_dict(cls):
        schema["additionalProperties"] = False
    if cls.__doc__ and "\n" not in cls.__doc__:
        schema["description"] = cls.__doc__
    return schema


def _field_schema(item: attrs.Attribute[Any], hint: Any) -> Schema:
    if not item.init:  # the word that tells a class from its siblings
        return {"const": item.default}
    told = item.metadata.get("schema", getattr(item.metadata.get("check"), "schema", None))
    schema = told if told is not None else type_schema(hint)
    optional = item.default is None and told is not None
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
        return {"type": "object"} if issubclass(origin, Mapping) else list_of(type_schema(arguments[0]))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.value for member in hint]}
    return hint if isinstance(hint, type) and attrs.has(hint) else {}


# The document


def describe(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """The OpenAPI document of those of the routes that say what they take and answer."""
    components: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for one in routes:
        if isinstance(one, DescribedRoute):
            methods = (one.methods or set()) - {"HEAD"}
            entry = {method.lower(): _operation(one.path, one.operation, method) for method in methods}
            paths.setdefault(one.path, {}).update(entry)
    paths = _plain(paths, components)
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
        "security": [{"token": []}] if operation.needs.token else [],
        "parameters": [_parameter(one) for one in (*_of_the_path(path), *_scope(operation), *operation.parameters)],
        "responses": {str(status): answer for status, answer in sorted(_responses(path, operation).items())},
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": {operation.body_type: {"schema": operation.body}}}
    return described


def _operation_id(method: str, path: str) -> str:
    words = findall(r"[a-z0-9]+", path.replace("{", "").lower())
    return "".join([method.lower(), *(word.capitalize() for word in words)])


def _of_the_path(path: str) -> list[Parameter]:
    return [Parameter(name, TEXT, f"The {name}.", required=True, where="path") for name in findall(r"{(\w+)}", path)]


def _scope(operation: Operation) -> list[Parameter]:
    words = {"orgSlug": "The organisation.", "projectSlug": "The project."}
    return [Parameter(name, TEXT, words[name], required=True) for name in operation.needs.query]


def _parameter(one: Parameter) -> dict[str, Any]:
    return {
        "name": one.name,
        "in": one.where,
        "description": one.description,
        "required": one.required,
        "schema": one.schema,
    }


def _responses(path: str, operation: Operation) -> dict[int, Any]:
    answers = {status: _answer(answer) for status, answer in operation.answers.items()}
    reasons: dict[int, list[str]] = {}
    for given in _reasons(path, operation):
        for status, reason in given.items():
            reasons.setdefault(status, []).append(reason)
    content = {"application/json": {"schema": operation.errors_as}}
    errors = {status: {"description": " ".join(why), "content": content} for status, why in reasons.items()}
    return {**errors, **answers}


def _reasons(path: str, operation: Operation) -> Iterable[Mapping[int, str]]:
    """Why the route may say no."""
    yield operation.errors
    needs = operation.needs
    if needs.token:
        yield _NO_TOKEN
    if needs.query:
        yield from (_OF_THE_QUERY, _NOT_A_MEMBER)
    if "projectSlug" in needs.query or "{" in path:
        yield _NOT_THERE
    if operation.body is not None:
        yield _OF_A_BODY
    yield EVERYWHERE


def _answer(answer: Answer) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.description}
    if answer.schema is not None:
        kinds = {answer.media_type: answer.schema, **answer.others}
        described["content"] = {kind: {"schema": schema} for kind, schema in kinds.items()}
    if answer.links:
        described["links"] = answer.links
    return described


def _plain(value: Any, components: dict[str, Any]) -> Any:
    """The value with a reference in the place of every class, whose schema goes into the components."""
    if isinstance(value, type):
        if value.__name__ not in components:
            components[value.__name__] = {}
            components[value.__name__] = _plain(class_schema(value), components)
        return {"$ref": f"#/components/schemas/{value.__name__}"}
    if isinstance(value, Mapping):
        return {key: _plain(item, components) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, components) for item in value]
    return value
