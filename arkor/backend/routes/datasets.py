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
from arkor.backend.routes import Refusal, invalid, require_scope

UPLOAD_LIMIT = 8 * 1024**3
_PIECE = 1024 * 1024


async def upload(request: Request) -> Response:
    """`POST /v1/datasets?filename&orgSlug&projectSlug`: the raw body is the file."""
    scope = await require_scope(request)
    filename = _filename(request)
    if int(request.headers.get("content-length") or 0) > UPLOAD_LIMIT:
        raise _too_large()
    digest, size = await _receive(request, datasets_folder(request.app.state.home))
    await run_in_threadpool(request.app.state.store.add_dataset, scope.project, digest, filename, size)
    url = f"/v1/datasets/{digest}/{quote(filename)}"
    return JSONResponse({"dataset": {"id": digest, "filename": filename, "bytes": size, "url": url}}, 201)


def _filename(request: Request) -> str:
    name = request.query_params.get("filename", "").strip()
    if not name or len(name) > 255 or name in (".", "..") or any(mark in name for mark in "/\\\0"):
        raise invalid("filename", "must name the file, in the query, without its folder")
    return name


def _too_large() -> Refusal:
    return Refusal(413, f"The file is larger than {UPLOAD_LIMIT // 1024**3} GiB.", "too_large")


async def _receive(request: Request, folder: Path) -> tuple[str, int]:
    """The body → `folder/<SHA-256>`, which is there whole or not at all; returns the digest and the size in bytes."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=UPLOADING)
    temporary = Path(name)
    digest, size = hashlib.sha256(), 0

    def take(piece: bytes) -> None:
        digest.update(piece)
        file.write(piece)

    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            pending = bytearray()
            async for chunk in request.stream():
                pending += chunk
                size += len(chunk)
                if size > UPLOAD_LIMIT:
                    raise _too_large()
                if len(pending) >= _PIECE:
                    await run_in_threadpool(take, bytes(pending))
                    pending.clear()
            await run_in_threadpool(take, bytes(pending))
        temporary.replace(folder / digest.hexdigest())
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest(), size


routes = [Route("/v1/datasets", upload, methods=["POST"])]
