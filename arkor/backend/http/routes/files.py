"""Upload of a data file, which is stored by the hash of its content; export and import of runs as zips."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from arkor.backend.http.authentication import PROJECT
from arkor.backend.http.body import save_body
from arkor.backend.http.errors import ApiError
from arkor.backend.http.event_stream import FileStreamResponse
from arkor.backend.http.openapi import ResponseSpec, RouteTable
from arkor.backend.http.routes.jobs import JOB, job_json
from arkor.backend.http.schema import FILE, STRING, TEXT, Parameter, object_schema, string_schema
from arkor.backend.http.state import AppState
from arkor.backend.runs.paths import NEW_SUFFIX, PARTIAL_SUFFIX, datasets_folder, run_folder, runs_folder
from arkor.backend.store.run_registry import InvalidRunFolder, JobIdConflict, import_archive
from arkor.backend.store.store import JobRecord, new_id
from arkor.errors import InvalidConfig
from arkor.protocol.accounts import Org, Project
from arkor.protocol.run_archive import archived_files, pack

#: The maximum size of a data file and of a zip, in bytes.
UPLOAD_LIMIT, IMPORT_LIMIT = 8 * 1024**3, 16 * 1024**3

FILENAME = Parameter(
    "filename",
    string_schema(
        "the name of the file without its folder, at most 255 characters",
        maxLength=255,
        pattern=r"^[^/\\\u0000]*[^\s./\\\u0000][^/\\\u0000]*$",
    ),
    "The name of the file, without its folder.",
    required=True,
)
_UPLOADED = object_schema(id=STRING, filename=STRING, bytes={"type": "integer"}, url=STRING)

routes = RouteTable()


# Data files


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
    temporary, digest = folder / f".{new_id()}{PARTIAL_SUFFIX}", hashlib.sha256()
    try:
        size = await save_body(request, temporary, UPLOAD_LIMIT, digest.update)
        temporary.replace(folder / digest.hexdigest())
    finally:
        temporary.unlink(missing_ok=True)
    return digest.hexdigest(), size


# Runs as zips


@routes.add(
    "POST /v1/jobs/import",
    PROJECT,
    body=FILE,
    body_type="application/zip",
    responses={201: ResponseSpec("The job.", JOB), 200: ResponseSpec("The job, which this project had already.", JOB)},
    errors={400: "The zip does not contain a run.", 409: "Another project has that run."},
)
async def import_job(request: Request, state: AppState, org: Org, project: Project) -> Response:
    """Import a run that was exported."""
    scratch = Path(tempfile.mkdtemp(dir=runs_folder(state.home), prefix=".", suffix=NEW_SUFFIX))
    archive, unpacked = scratch / "run.zip", scratch / "run"
    try:
        unpacked.mkdir()
        await save_body(request, archive, IMPORT_LIMIT)
        job, new = await run_in_threadpool(
            import_archive, state.home, state.store, archive, scratch=unpacked, project=project, org=org
        )
    except InvalidRunFolder as error:
        raise ApiError(400, str(error), "no_run") from None
    except JobIdConflict as error:
        raise ApiError(409, str(error), "taken") from None
    finally:
        await run_in_threadpool(shutil.rmtree, scratch, ignore_errors=True)
    current = await run_in_threadpool(state.supervisor.current, job)
    return JSONResponse({"job": job_json(current)}, 201 if new else 200)


@routes.add(
    "GET /v1/jobs/{id}/export",
    PROJECT,
    responses={200: ResponseSpec("The zip.", FILE, "application/zip")},
    errors={409: "The run has not ended, or its folder is incomplete."},
)
def export_job(request: Request, state: AppState, job: JobRecord) -> Response:
    """Export the folder of a run as a zip."""
    job = state.supervisor.current(job)
    if not job.status.terminal:
        problem = f"The job {job.id!r} is still {job.status}"
        raise ApiError(409, problem, "not_over", remedy="wait for its end, or cancel it.")
    folder = run_folder(state.home, job.id).path
    try:
        files = archived_files(folder)
    except InvalidConfig as error:
        raise ApiError(409, f"The job {job.id!r} cannot be exported: {error.problem}.", "incomplete") from None
    if request.method == "HEAD":
        return Response(media_type="application/zip")
    headers = {"Content-Disposition": f'attachment; filename="{job.id}.zip"'}
    return FileStreamResponse(pack(folder, files, job.id), "application/zip", headers)
