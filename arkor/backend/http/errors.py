"""Error responses: `{"error": sentence, "code": word}`, and the parts of an error about a field.

Below `OPENAI_PATH` they have OpenAI's shape and its field names, and no remedies or paths that
only the operator may see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from arkor.backend.inference.json_schema import InvalidSchema
from arkor.backend.inference.messages import GenerationError
from arkor.errors import InvalidConfig, StructuredError
from arkor.protocol.codec import camel_case

#: Sent with a 429 or 503: the seconds after which a client may repeat the request.
RETRY_SOON = {"Retry-After": "5"}

#: The routes of the deployments.
OPENAI_PATH = "/e/"

#: Statuses that OpenAI's clients repeat, although a repetition fails in the same way.
_FINAL_STATUSES = (409, 507)


class ApiError(StructuredError):
    """An error response: its HTTP status, the parts of a `Problem`, and extra headers."""

    def __init__(
        self,
        status: int,
        problem: str,
        code: str | None = None,
        *,
        field: str | None = None,
        remedy: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(problem, field=field, remedy=remedy, code=code)
        self.status = status
        self.headers = headers

    def response(self) -> JSONResponse:
        about_field = {"field": self.field, "problem": self.problem, "remedy": self.remedy} if self.field else {}
        parts = {"code": self.code, **about_field}
        body = {"error": str(self), **{name: part for name, part in parts.items() if part}}
        return JSONResponse(body, self.status, self.headers)


def invalid_field(field: str, problem: str, remedy: str | None = None) -> ApiError:
    """Return a 400 for a field of the request, named as on the wire."""
    return ApiError(400, problem, "invalid_request", field=field, remedy=remedy)


def unauthorized(problem: str, code: str, remedy: str | None = None) -> ApiError:
    return ApiError(401, problem, code, remedy=remedy, headers={"WWW-Authenticate": "Bearer"})


def wire_field(name: str) -> str:
    """Return the wire name of a field: `"top_p"` → `"topP"`, `"adapter.job_id"` → `"adapter.jobId"`.

    Inside of the other fields the names are the same in both, like `json_schema` in
    `responseFormat.json_schema`.
    """
    outer, dot, inner = name.partition(".")
    return camel_case(outer) + dot + (camel_case(inner) if outer == "adapter" else inner)


def config_error(error: InvalidConfig, field: str) -> ApiError:
    """Return the 400 for a value that the domain refuses; `field` is its name at this edge."""
    code = "invalid_schema" if isinstance(error, InvalidSchema) else "invalid_request"
    return ApiError(400, error.problem, code, field=field, remedy=error.remedy)


def generation_error(error: GenerationError) -> ApiError:
    """Return the error of a failed generation, with the remedy that only its owner may see."""
    field = wire_field(error.field) if error.field else None
    return ApiError(error.status, error.problem, error.code, field=field, remedy=error.remedy)


# OpenAI's shape


def error_response(path: str, error: ApiError | InvalidConfig | GenerationError) -> JSONResponse:
    """Return the response to a request for that path."""
    if path.startswith(OPENAI_PATH):
        public = public_error(error)
        retry = {"x-should-retry": "false"} if public.status in _FINAL_STATUSES else {}
        return JSONResponse({"error": error_json(public)}, public.status, {**(public.headers or {}), **retry})
    if isinstance(error, InvalidConfig):
        error = config_error(error, wire_field(error.field))
    return (error if isinstance(error, ApiError) else generation_error(error)).response()


def public_error(error: ApiError | InvalidConfig | GenerationError) -> ApiError:
    """Return the error for callers of a deployment: OpenAI's names, no remedies for the owner."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidConfig):
        return config_error(error, error.field)
    return ApiError(error.status, error.problem, error.code, field=error.field)


def error_json(error: ApiError) -> dict[str, Any]:
    """Return the `error` object that OpenAI's clients read."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {"message": str(error), "type": kind, "param": error.field, "code": error.code}
