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
from starlette.routing import Route

from arkor.backend.home import UPLOADING, datasets_folder
from arkor.backend.routes import invalid, require_scope, save_body

UPLOAD_LIMIT = 8 * 1024**3


async def upload(request: Request) -> Response:
    """`POST /v1/datasets?filename&orgSlug&projectSlug`: the raw body is the file."""
    scope = await require_scope(request)
    filename = _filename(request)
    digest, size = await _receive(request, datasets_folder(request.app.state.home))
    await run_in_threadpool(request.app.state.store.add_dataset, scope.project, digest, filename, size)
    url = f"/v1/datasets/{digest}/{quote(filename)}"
    return JSONResponse({"dataset": {"id": digest, "filename": filename, "bytes": size, "url": url}}, 201)


def _filename(request: Request) -> str:
    name = request.query_params.get("filename", "").strip()
    if not name or len(name) > 255 or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise invalid("filename", "must name the file, in the query, without its folder")
    return name


async def _receive(request: Request, folder: Path) -> tuple[str, int]:
    """The body → `folder/<SHA-256>`, which is there whole or not at all; returns the digest and the size in bytes."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=UPLOADING)
    os.close(handle)
    temporary = Path(name)
    digest = hashlib.sha256()
    try:
        size = await save_body(request, temporary, UPLOAD_LIMIT, digest.update)
        temporary.replace(folder / digest.hexdigest())
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest(), size


routes = [Route("/v1/datasets", upload, methods=["POST"])]
