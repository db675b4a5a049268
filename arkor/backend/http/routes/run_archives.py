"""Export of a run as a zip, and import of such a zip."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from arkor.backend.http.authentication import PROJECT
from arkor.backend.http.body import save_body
from arkor.backend.http.errors import ApiError
from arkor.backend.http.openapi import ResponseSpec, RouteTable
from arkor.backend.http.routes.jobs import JOB, job_json
from arkor.backend.http.schema import FILE
from arkor.backend.http.state import AppState
from arkor.backend.runs.paths import NEW_SUFFIX, run_folder, runs_folder
from arkor.backend.store.run_registry import InvalidRunFolder, JobIdConflict, import_archive
from arkor.backend.store.store import JobRecord
from arkor.errors import InvalidConfig
from arkor.protocol.accounts import Org, Project
from arkor.protocol.run_archive import archived_files, pack

#: The maximum size of a zip, in bytes.
IMPORT_LIMIT = 16 * 1024**3

routes = RouteTable()


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
    return StreamingResponse(pack(folder, files, job.id), media_type="application/zip", headers=headers)
