"""Run folders → rows of the store: those that it has lost or never had, and those that come from elsewhere.

A run's folder says all that the store knows of it, so that the store can be made anew from the folders. What is lost
with it are the tokens of the anonymous identities; their organisations go to the home's owner.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from attrs import asdict, evolve, frozen

from arkor.backend.runs.event_log import LogCorrupted, LogWriter, is_locked, read_events, read_status
from arkor.backend.runs.log_queries import read_log_progress
from arkor.backend.runs.paths import RunFolder, build_atomically, database_file, datasets_folder, run_folder, run_ids
from arkor.backend.runs.paths import write_atomically as write
from arkor.backend.store.store import AlreadyExists, JobRecord, OrgRecord, ProjectRecord, Store
from arkor.protocol.codec import to_wire
from arkor.protocol.events import TrainingFailedEvent, now
from arkor.protocol.jobs import JobStatus
from arkor.protocol.run_archive import ARCHIVED_FILES, ARCHIVED_FOLDERS

_JOB_ID = re.compile(r"[0-9a-f]{32}")
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_UPLOAD = re.compile(r"/v1/datasets/([0-9a-f]{64})/([^/?#]+)")

logger = logging.getLogger("arkor.backend")


class InvalidRunFolder(Exception):
    """A folder that is not a run's, or not one that can be taken in; the sentence says why."""


@frozen
class RunManifest:
    """What a `job.json` says: the job as it was submitted, and in whose name."""

    job: JobRecord
    org: tuple[str, str]
    project: tuple[str, str]
    idempotency_key: str | None = None


def manifest(job: JobRecord, org: OrgRecord, project: ProjectRecord, idempotency_key: str | None) -> dict[str, Any]:
    """The content of a `job.json`, from which the job's row can be made again."""
    data: dict[str, Any] = to_wire(job)
    data["org"] = {"slug": org.slug, "name": org.name}
    data["project"] = {"slug": project.slug, "name": project.name}
    return {**data, **({"idempotencyKey": idempotency_key} if idempotency_key else {})}


def read_manifest(folder: RunFolder) -> RunManifest:
    """Raises `InvalidRunFolder`. A folder of an arkor that did not say whose it is counts as the owner's."""
    try:
        data = folder.read_job()
        texts = [data[key] for key in ("id", "name", "createdAt")]
        config = data["config"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise InvalidRunFolder(f"{folder.job} does not say what the run is ({error!r}).") from None
    if not all(isinstance(text, str) for text in texts) or not isinstance(config, Mapping):
        raise InvalidRunFolder(f"{folder.job} does not say what the run is.")
    job_id, name, created_at = texts
    if not _JOB_ID.fullmatch(job_id):
        raise InvalidRunFolder(f"{folder.job}: {job_id[:80]!r} is not the id of a run.")
    job = JobRecord(job_id, "", "", name[:200], JobStatus.QUEUED, config, created_at[:32])
    org, project = (
        _slug_and_name(data.get("org"), "local", "Local"),
        _slug_and_name(data.get("project"), "default", "Default"),
    )
    key = data.get("idempotencyKey")
    return RunManifest(job, org, project, key if isinstance(key, str) else None)


def _slug_and_name(value: Any, slug: str, name: str) -> tuple[str, str]:
    """The slug and the name of an organisation or a project, if they are sound."""
    found = (value.get("slug"), value.get("name")) if isinstance(value, Mapping) else (None, None)
    if isinstance(found[0], str) and isinstance(found[1], str) and _SLUG.fullmatch(found[0]):
        return found[0], found[1][:200] or found[0]
    return slug, name


# What the store has lost, or never had


def register_orphans(home: Path, store: Store) -> list[str]:
    """Give every run folder that the store does not know a row; returns their ids. `Store.ensure_owner` comes first.

    A server that was killed between making a folder and its row leaves one; a store that is new knows none.
    """
    known = store.job_ids()
    orphans = []
    for job_id in run_ids(home):
        if job_id not in known:
            try:
                orphans.append(_orphan_manifest(run_folder(home, job_id)))
            except InvalidRunFolder as problem:
                logger.warning("%s It stays where it is.", problem)
    orphans.sort(key=lambda orphan: orphan.job.created_at)
    for orphan in orphans:
        _register(home, store, orphan)
    return [orphan.job.id for orphan in orphans]


def _orphan_manifest(folder: RunFolder) -> RunManifest:
    run_manifest = read_manifest(folder)
    if run_manifest.job.id != folder.id:
        raise InvalidRunFolder(
            f"{folder.path} has the name of another run than {run_manifest.job.id}, which its job.json speaks of."
        )
    return run_manifest


def _register(home: Path, store: Store, orphan: RunManifest) -> JobRecord:
    project = store.ensure_project(*orphan.org, *orphan.project)
    job = evolve(orphan.job, org_id=project.org_id, project_id=project.id)
    try:
        status = read_status(run_folder(home, job.id).events)
        if status.status.terminal:
            job = evolve(job, **asdict(status, recurse=False))
    except LogCorrupted as error:
        job = evolve(job, status=JobStatus.FAILED, error=f"The run's log is damaged ({error})", completed_at=now())
    try:
        store.add_job(job, orphan.idempotency_key)
    except AlreadyExists:  # the key was used for another one since
        store.add_job(job, None)
    _register_upload(home, store, project, job)
    return job


def _register_upload(home: Path, store: Store, project: ProjectRecord, job: JobRecord) -> None:
    """The uploaded file that the run was trained on, if it is still there."""
    source = job.config.get("datasetSource")
    url = source.get("url") if isinstance(source, Mapping) else None
    if isinstance(url, str) and (found := _UPLOAD.fullmatch(url)):
        file = datasets_folder(home) / found[1]
        if file.is_file():
            store.add_dataset(project, found[1], unquote(found[2])[:255], file.stat().st_size)


def quarantine(home: Path) -> Path | None:
    """Move the database out of the way, with what SQLite keeps beside it; returns where it is now. Raises OSError."""
    database = database_file(home)
    if not database.exists():
        return None
    number = 1
    while (quarantined := database.with_name(f"{database.name}.aside-{number}")).exists():
        number += 1
    for suffix in ("-journal", "-wal", "-shm"):
        extra = database.with_name(database.name + suffix)
        if extra.exists():
            extra.rename(quarantined.with_name(quarantined.name + suffix))
    return database.rename(quarantined)


# A run from elsewhere


def import_run(home: Path, store: Store, source: Path, project: ProjectRecord, org: OrgRecord) -> JobRecord:
    """Copy a run's folder from elsewhere into this home, and give it a row in `project`.

    A run that had not ended when the copy was made has ended here. Raises `InvalidRunFolder`, and OSError.
    """
    folder = RunFolder(source)
    run_manifest = read_manifest(folder)
    _check_importable(folder, run_manifest.job.id)
    if run_folder(home, run_manifest.job.id).path.exists() or run_manifest.job.id in store.job_ids():
        raise InvalidRunFolder(f"The run {run_manifest.job.id} is here already.")
    job = evolve(run_manifest.job, org_id=org.id, project_id=project.id)

    def fill(copy: RunFolder) -> None:
        for name in ARCHIVED_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, copy.path / name)
        for name in ARCHIVED_FOLDERS:
            if (source / name).exists():
                shutil.copytree(source / name, copy.path / name, copy_function=shutil.copyfile)
        write(copy.job, json.dumps(manifest(job, org, project, None), ensure_ascii=False, indent=1))
        _append_end(copy, job.id)

    build_atomically(home, job.id, fill)
    return _register(home, store, RunManifest(job, (org.slug, org.name), (project.slug, project.name)))


def _check_importable(folder: RunFolder, job_id: str) -> None:
    """Raises `InvalidRunFolder` for anything but plain files and folders, a log that another run wrote, and a run
    at work.
    """
    if not folder.events.is_file():
        raise InvalidRunFolder(f"{folder.path} has no events.jsonl; a run's folder has one beside its job.json.")
    if is_locked(folder.events):
        raise InvalidRunFolder(f"The run in {folder.path} is at work; wait for its end, or cancel it.")
    top_level = [
        folder.path / name for name in (*ARCHIVED_FILES, *ARCHIVED_FOLDERS) if (folder.path / name).is_symlink()
    ]
    nested = (path for name in ARCHIVED_FOLDERS for path in (folder.path / name).rglob("*"))
    for path in (*top_level, *nested):
        if path.is_symlink() or stat.S_IFMT(path.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise InvalidRunFolder(f"{path} is neither a file nor a folder; a run's folder has nothing else.")
    after = 0
    while events := read_events(folder.events, after):
        for after, _, line in events:
            _check_line(folder, job_id, after, line)


def _check_line(folder: RunFolder, job_id: str, event_id: int, line: bytes) -> None:
    try:
        event = json.loads(line)
        valid = event["jobId"] == job_id and isinstance(event["type"], str) and isinstance(event["timestamp"], str)
    except (ValueError, RecursionError, KeyError, TypeError):
        valid = False
    if not valid or not line.startswith(b'{"type":"'):
        raise InvalidRunFolder(f"{folder.events}: the line that ends at byte {event_id} is not an event of this run.")


def _append_end(copy: RunFolder, job_id: str) -> None:
    with LogWriter(copy.events) as log:
        if not log.tail.terminal:
            progress = read_log_progress(copy)
            sentence = "This is a copy of a run that had not ended when it was copied; what it had saved is here."
            log.append(TrainingFailedEvent(job_id, now(), sentence, progress.step, progress.artifacts(copy)), sync=True)
