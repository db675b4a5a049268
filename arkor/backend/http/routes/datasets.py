"""Uploaded files, stored by the hash of their content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.authentication import PROJECT
from arkor.backend.http.body import save_body
from arkor.backend.http.errors import ApiError
from arkor.backend.http.openapi import ResponseSpec, RouteTable
from arkor.backend.http.schema import STRING, TEXT, Parameter, object_schema
from arkor.backend.http.state import AppState
from arkor.backend.runs.paths import PARTIAL_SUFFIX, datasets_folder
from arkor.protocol.accounts import Project

UPLOAD_LIMIT = 8 * 1024**3

FILENAME = Parameter(
    "filename",
    {
        "type": "string",
        "maxLength": 255,
        "pattern": r"^[^/\\\u0000]*[^\s./\\\u0000][^/\\\u0000]*$",
        "description": "the name of the file without its folder, at most 255 characters",
    },
    "The name of the file, without its folder.",
    required=True,
)
_UPLOADED = object_schema(id=STRING, filename=STRING, bytes={"type": "integer"}, url=STRING)

routes = RouteTable()


@routes.add(
    "POST /v1/datasets",
    PROJECT,
    body=TEXT,
    body_type="application/octet-stream",
    parameters=[FILENAME],
    responses={
        201: ResponseSpec("The file; its `url` goes into a job's `datasetSource`.", object_schema(dataset=_UPLOADED))
    },
)
async def upload(request: Request, state: AppState, project: Project) -> Response:
    """Upload a data file; the same content is stored once."""
    filename = FILENAME.read(request).strip()
    digest, size = await _receive(request, datasets_folder(state.home))
    if not size:
        raise ApiError(400, f"The file {filename!r} is empty.", "empty", remedy="Send its bytes as the request's body.")
    await run_in_threadpool(state.store.add_dataset, project, digest, filename, size)
    url = f"/v1/datasets/{digest}/{quote(filename)}"
    return JSONResponse({"dataset": {"id": digest, "filename": filename, "bytes": size, "url": url}}, 201)


async def _receive(request: Request, folder: Path) -> tuple[str, int]:
    """Write the body atomically to `folder/<SHA-256>`; return the digest and the size in bytes."""
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
