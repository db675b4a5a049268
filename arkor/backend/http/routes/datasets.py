"""Uploaded files: received in a stream, kept once by their content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.openapi import PROJECT, TEXT, Parameter, ResponseSpec, object_schema, route
from arkor.backend.http.requests import ApiError, invalid_field, require_scope, save_body
from arkor.backend.runs.paths import PARTIAL_SUFFIX, datasets_folder

UPLOAD_LIMIT = 8 * 1024**3


async def upload(request: Request) -> Response:
    """`POST /v1/datasets?filename&orgSlug&projectSlug`: the raw body is the file."""
    scope = await require_scope(request)
    filename = _filename(request)
    digest, size = await _receive(request, datasets_folder(request.app.state.home))
    if not size:
        raise ApiError(400, f"The file {filename!r} is empty; its bytes are the body of the request.", "empty")
    await run_in_threadpool(request.app.state.store.add_dataset, scope.project, digest, filename, size)
    url = f"/v1/datasets/{digest}/{quote(filename)}"
    return JSONResponse({"dataset": {"id": digest, "filename": filename, "bytes": size, "url": url}}, 201)


def _filename(request: Request) -> str:
    name = request.query_params.get("filename", "").strip()
    if not name or len(name) > 255 or name in (".", "..") or any(forbidden in name for forbidden in "/\\\0"):
        raise invalid_field("filename", "must name the file, in the query, without its folder")
    return name


async def _receive(request: Request, folder: Path) -> tuple[str, int]:
    """The body → `folder/<SHA-256>`, which is there whole or not at all; returns the digest and the size in bytes."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=PARTIAL_SUFFIX)
    os.close(handle)
    temporary = Path(name)
    digest = hashlib.sha256()
    try:
        size = await save_body(request, temporary, UPLOAD_LIMIT, digest.update)
        temporary.replace(folder / digest.hexdigest())
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest(), size


_TEXT = {"type": "string"}
_UPLOADED = object_schema(id=_TEXT, filename=_TEXT, bytes={"type": "integer"}, url=_TEXT)
_FILENAME = {"type": "string", "maxLength": 255, "pattern": r"^[^/\\\u0000]*[^\s./\\\u0000][^/\\\u0000]*$"}

routes = [
    route(
        "POST",
        "/v1/datasets",
        upload,
        PROJECT,
        "Upload a file of data; the same content is kept once.",
        body=TEXT,
        body_type="application/octet-stream",
        parameters=[Parameter("filename", _FILENAME, "What it is called, without its folder.", required=True)],
        responses={201: ResponseSpec("Its `url` is what a job names as its data.", object_schema(dataset=_UPLOADED))},
    )
]
