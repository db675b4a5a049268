"""Runs that leave as a zip, and those that come as one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from arkor.backend.http.openapi import FILE, PROJECT, ResponseSpec, object_schema, route
from arkor.backend.http.requests import ApiError, require_job, require_scope, save_body
from arkor.backend.http.routes.jobs import job_json
from arkor.backend.runs.paths import NEW_SUFFIX, run_folder, runs_folder
from arkor.backend.store.run_registry import InvalidRunFolder, JobIdConflict, import_archive
from arkor.errors import InvalidConfig
from arkor.protocol.jobs import TrainingJob
from arkor.protocol.run_archive import archived_files, pack

#: How large a zip may be, in bytes.
IMPORT_LIMIT = 16 * 1024**3


async def import_job(request: Request) -> Response:
    """`POST /v1/jobs/import`: the raw body is the zip; 201 with the job, or 200 when the project has it already.

    409 when another project has it.
    """
    scope = await require_scope(request)
    state = request.app.state
    scratch = Path(tempfile.mkdtemp(dir=runs_folder(state.home), prefix=".", suffix=NEW_SUFFIX))
    archive, unpacked = scratch / "run.zip", scratch / "run"
    try:
        unpacked.mkdir()
        await save_body(request, archive, IMPORT_LIMIT)
        job, new = await run_in_threadpool(
            import_archive, state.home, state.store, archive, scratch=unpacked, project=scope.project, org=scope.org
        )
    except InvalidRunFolder as problem:
        raise ApiError(400, str(problem), "no_run") from None
    except JobIdConflict as problem:
        raise ApiError(409, str(problem), "taken") from None
    finally:
        await run_in_threadpool(shutil.rmtree, scratch, ignore_errors=True)
    current = await run_in_threadpool(state.supervisor.current, job)
    return JSONResponse({"job": job_json(current)}, 201 if new else 200)


async def export_job(request: Request) -> Response:
    """`GET /v1/jobs/:id/export`: a zip of the run's folder; 409 while the run goes on."""
    found = await require_job(request, await require_scope(request), request.path_params["id"])
    job = await run_in_threadpool(request.app.state.supervisor.current, found)
    if not job.status.terminal:
        sentence = f"The job {job.id!r} is still {job.status}; wait for its end, or cancel it."
        raise ApiError(409, sentence, "not_over")
    folder = run_folder(request.app.state.home, job.id).path
    try:
        files = await run_in_threadpool(archived_files, folder)
    except InvalidConfig as error:
        raise ApiError(409, f"The job {job.id!r} cannot be packed: {error.problem}.", "incomplete") from None
    if request.method == "HEAD":
        return Response(media_type="application/zip")
    headers = {"Content-Disposition": f'attachment; filename="{job.id}.zip"'}
    return StreamingResponse(pack(folder, files, job.id), media_type="application/zip", headers=headers)


routes = [
    route(
        "POST",
        "/v1/jobs/import",
        import_job,
        PROJECT,
        "Take in a run that was exported elsewhere.",
        body=FILE,
        body_type="application/zip",
        responses={
            201: ResponseSpec("The job.", object_schema(job=TrainingJob)),
            200: ResponseSpec("The job, which this project had already.", object_schema(job=TrainingJob)),
        },
        errors={400: "The zip holds no run.", 409: "Another project has that run."},
    ),
    route(
        "GET",
        "/v1/jobs/{id}/export",
        export_job,
        PROJECT,
        "A run's folder as a zip.",
        responses={200: ResponseSpec("The zip.", FILE, "application/zip")},
        errors={409: "The run goes on, or its folder is not whole."},
    ),
]
