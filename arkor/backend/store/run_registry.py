"""Run folders → rows of the database: for runs without a row and for imported runs.

A run's folder contains everything that the database stores about it, so that the database can be
rebuilt from the folders. Only the tokens of anonymous identities are lost; their organisations
become the home owner's. Nothing in an imported folder or zip is trusted.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote
from zipfile import BadZipFile, ZipFile, ZipInfo

from attrs import asdict, evolve, frozen

from arkor.backend.runs.event_log import LogCorrupted, LogWriter, read_events, read_status
from arkor.backend.runs.log_queries import present_artifacts, read_log_progress
from arkor.backend.runs.paths import RunFolder, build_atomically, database_file, datasets_folder, run_folder, run_ids
from arkor.backend.store.schema import AlreadyExists
from arkor.backend.store.store import JobRecord, Store
from arkor.files import DISK_ERRORS, is_locked, write_atomically
from arkor.protocol.accounts import Org, Project
from arkor.protocol.codec import to_wire
from arkor.protocol.events import TrainingFailedEvent, now
from arkor.protocol.jobs import JobStatus
from arkor.protocol.run_archive import ARCHIVED_FILES, ARCHIVED_FOLDERS

#: Limits for the content of a zip: bytes, files, levels of folders, and the bytes of job.json and
#: adapter_config.json.
UNPACKED_LIMIT = 32 * 1024**3
MAX_FILES = 10_000
MAX_DEPTH = 6
JSON_LIMIT = 1024 * 1024

_CHUNK_BYTES = 1024 * 1024

_JOB_ID = re.compile(r"[0-9a-f]{32}")
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_UPLOAD = re.compile(r"/v1/datasets/([0-9a-f]{64})/([^/?#]+)")

_NOT_ENDED = "This is a copy of a run that had not ended when it was copied; its checkpoints are included."

#: Imports run one at a time: two of the same run would write to the same temporary folder.
_import_lock = Lock()

logger = logging.getLogger("arkor.backend")


class InvalidRunFolder(Exception):
    """A folder or zip is not a run, or cannot be imported.

    `problem` is a sentence without its full stop; `subject`, if there is one, is the path that the
    sentence begins with, and `cause` the error that was raised.
    """

    def __init__(self, problem: str, subject: Path | str | None = None, cause: Exception | None = None) -> None:
        super().__init__(problem, subject, cause)
        self.problem = problem if subject is None else f"{subject} {problem}"
        self.predicate = problem
        self.subject = subject
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.problem} ({self.cause!r})." if self.cause else f"{self.problem}."


class JobIdConflict(Exception):
    """A run of this id belongs to another project; the message does not reveal which."""


# job.json


@frozen
class RunManifest:
    """The content of a `job.json`; `org` and `project` are (slug, name)."""

    job: JobRecord
    org: tuple[str, str]
    project: tuple[str, str]
    idempotency_key: str | None = None


def manifest(job: JobRecord, org: Org, project: Project, idempotency_key: str | None) -> dict[str, Any]:
    """Return the content of a `job.json`, from which the job's row can be restored."""
    data: dict[str, Any] = to_wire(job)
    data["org"] = {"slug": org.slug, "name": org.name}
    data["project"] = {"slug": project.slug, "name": project.name}
    return {**data, **({"idempotencyKey": idempotency_key} if idempotency_key else {})}


def read_manifest(folder: RunFolder) -> RunManifest:
    """Read a `job.json`; without an org the run is the owner's. Raise `InvalidRunFolder`."""
    try:
        data = folder.read_job()
        texts = [data[key] for key in ("id", "name", "createdAt")]
        config = data["config"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise InvalidRunFolder("does not describe a run", folder.job, error) from None
    if not all(isinstance(text, str) for text in texts) or not isinstance(config, Mapping):
        raise InvalidRunFolder("does not describe a run", folder.job)
    job_id, name, created_at = texts
    if not _JOB_ID.fullmatch(job_id):
        raise InvalidRunFolder(f"has an invalid run id, {job_id[:80]!r}", folder.job)
    job = JobRecord(job_id, "", "", _storable(name, 200), JobStatus.QUEUED, config, _storable(created_at, 32))
    org = _slug_and_name(data.get("org"), "local", "Local")
    project = _slug_and_name(data.get("project"), "default", "Default")
    key = data.get("idempotencyKey")
    usable_key = isinstance(key, str) and key == _storable(key, 255)
    return RunManifest(job, org, project, key if usable_key else None)


def _storable(text: str, max_length: int) -> str:
    """Return a text of a foreign file as a column of this length can store it."""
    return text.replace("\0", "")[:max_length]


def _slug_and_name(value: Any, slug: str, name: str) -> tuple[str, str]:
    """Return the slug and name of an org or project, or the default if they are invalid."""
    found = (value.get("slug"), value.get("name")) if isinstance(value, Mapping) else (None, None)
    if isinstance(found[0], str) and isinstance(found[1], str) and _SLUG.fullmatch(found[0]):
        return found[0], _storable(found[1], 200) or found[0]
    return slug, name


# Runs that the database does not have


def register_orphans(home: Path, store: Store) -> list[str]:
    """Add rows for the runs without one, as after a kill or a rebuild; return their ids."""
    known = store.job_ids()
    orphans = []
    for job_id in run_ids(home):
        if job_id not in known:
            try:
                orphan = read_manifest(run_folder(home, job_id))
            except InvalidRunFolder as error:
                logger.warning("%s It is ignored.", error)
                continue
            if orphan.job.id == job_id:
                orphans.append(orphan)
            else:
                logger.warning("The folder %s contains another run, %s. It is ignored.", job_id, orphan.job.id)
    orphans.sort(key=lambda orphan: orphan.job.created_at)
    for orphan in orphans:
        _register(home, store, orphan)
    return [orphan.job.id for orphan in orphans]


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
    except AlreadyExists:  # a later job has used the same key
        store.add_job(job, None)
    _register_upload(home, store, project, job)
    return job


def _register_upload(home: Path, store: Store, project: Project, job: JobRecord) -> None:
    """Add a row for the uploaded file that the run was trained on, if the file exists."""
    source = job.config.get("datasetSource")
    url = source.get("url") if isinstance(source, Mapping) else None
    if isinstance(url, str) and (found := _UPLOAD.fullmatch(url)):
        file = datasets_folder(home) / found[1]
        if file.is_file():
            store.add_dataset(project, found[1], _storable(unquote(found[2]), 255), file.stat().st_size)


def quarantine(home: Path) -> Path | None:
    """Rename the database and its journal files; return its new path. Raise OSError."""
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


# Import of a folder


def import_run(home: Path, store: Store, source: Path, project: Project, org: Org) -> JobRecord:
    """Copy a run's folder here, as failed if it had not ended. Raise `InvalidRunFolder`."""
    folder = RunFolder(source)
    run_manifest = read_manifest(folder)
    _check_importable(folder, run_manifest.job.id)
    if run_folder(home, run_manifest.job.id).path.exists() or run_manifest.job.id in store.job_ids():
        raise InvalidRunFolder(f"The run {run_manifest.job.id} is here already")
    job = evolve(run_manifest.job, org_id=org.id, project_id=project.id)

    def fill(copy: RunFolder) -> None:
        for name in ARCHIVED_FILES:
            if (source / name).exists():
                shutil.copyfile(source / name, copy.path / name)
        for name in ARCHIVED_FOLDERS:
            if (source / name).exists():
                shutil.copytree(source / name, copy.path / name, copy_function=shutil.copyfile)
        write_atomically(copy.job, json.dumps(manifest(job, org, project, None), ensure_ascii=False, indent=1))
        with LogWriter(copy.events) as log:
            if not log.tail.terminal:
                progress = read_log_progress(copy)
                artifacts = present_artifacts(copy, progress.saved)
                log.append(TrainingFailedEvent(job.id, now(), _NOT_ENDED, progress.step, artifacts), sync=True)

    build_atomically(home, job.id, fill)
    return _register(home, store, RunManifest(job, (org.slug, org.name), (project.slug, project.name)))


def _check_importable(folder: RunFolder, job_id: str) -> None:
    """Raise `InvalidRunFolder` for links, special files, a foreign log and a run at work."""
    if not folder.events.is_file():
        raise InvalidRunFolder("has no events.jsonl; the folder of a run has one next to its job.json", folder.path)
    if is_locked(folder.events):
        raise InvalidRunFolder("belongs to a run at work; wait for its end, or cancel it", folder.path)
    names = (*ARCHIVED_FILES, *ARCHIVED_FOLDERS)
    top_level = [path for name in names if (path := folder.path / name).is_symlink()]
    nested = (path for name in ARCHIVED_FOLDERS for path in (folder.path / name).rglob("*"))
    for path in (*top_level, *nested):
        if path.is_symlink() or stat.S_IFMT(path.lstat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise InvalidRunFolder("is neither a file nor a folder; the folder of a run has nothing else", path)
    after = 0
    while events := read_events(folder.events, after):
        for after, line in events:
            if not _is_event_of(job_id, line):
                raise InvalidRunFolder(
                    f"has a line that is not an event of this run; it ends at byte {after}", folder.events
                )


def _is_event_of(job_id: str, line: bytes) -> bool:
    try:
        event = json.loads(line)
        valid = event["jobId"] == job_id and isinstance(event["type"], str) and isinstance(event["timestamp"], str)
    except (ValueError, RecursionError, KeyError, TypeError):
        return False
    return valid and line.startswith(b'{"type":"')


# Import of a zip


def import_archive(
    home: Path, store: Store, archive: Path, *, scratch: Path, project: Project, org: Org
) -> tuple[JobRecord, bool]:
    """Unpack a zip in `scratch` and import its run; return its job and whether it is new."""
    try:
        unpack(archive, scratch)
        check_adapters(scratch)
        with _import_lock:
            if (job := _existing_job(home, store, scratch, project)) is not None:
                return job, False
            return import_run(home, store, scratch, project, org), True
    except InvalidRunFolder as error:
        if not isinstance(error.subject, Path):
            raise
        in_zip = error.subject.relative_to(scratch)
        subject = in_zip if in_zip.parts else "The zip"
        raise InvalidRunFolder(error.predicate, subject, error.cause) from None


def _existing_job(home: Path, store: Store, unpacked: Path, project: Project) -> JobRecord | None:
    job_id = read_manifest(RunFolder(unpacked)).job.id
    folder = run_folder(home, job_id).path
    job = store.job(project, job_id)
    if job is not None and not folder.is_dir():
        raise InvalidRunFolder(f"The run {job_id} is listed here, but its folder is missing; restore {folder} by hand")
    if job is None and folder.is_dir():
        raise JobIdConflict(f"A run {job_id} exists here already, in another project.")
    return job


def unpack(archive: Path, target: Path) -> None:
    """Unpack a run. Raise `InvalidRunFolder`, and OSError if the disk is full."""
    try:
        with ZipFile(archive) as zipped:
            entries = zipped.infolist()
            _check_entries(entries)
            remaining = UNPACKED_LIMIT
            for entry, member_path in _run_entries(entries):
                remaining -= _extract(zipped, entry, target.joinpath(*member_path), remaining)
    except BadZipFile as error:
        raise InvalidRunFolder(f"This is not a complete zip ({error}); make it with `arkor export-run JOB`") from None
    except (zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise InvalidRunFolder(f"The zip cannot be unpacked: {error}") from None
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        raise InvalidRunFolder(f"The zip cannot be unpacked: {error.strerror or error}") from None


def _check_entries(entries: list[ZipInfo]) -> None:
    """Raise `InvalidRunFolder` for unsafe paths, special files, and too much content."""
    if len(entries) > MAX_FILES:
        raise InvalidRunFolder(f"The zip has {len(entries)} files; the limit is {MAX_FILES}")
    if sum(entry.file_size for entry in entries) > UNPACKED_LIMIT:
        raise InvalidRunFolder(f"The zip becomes more than {UNPACKED_LIMIT // 1024**3} GiB")
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        if name.startswith("/") or "\\" in name or ":" in name.split("/")[0] or ".." in name.split("/"):
            raise InvalidRunFolder(f"The zip has a file whose path leaves the target folder: {name[:200]!r}")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InvalidRunFolder(f"The zip has an entry that is neither a file nor a folder: {name[:200]!r}")
        if entry.flag_bits & 1:
            raise InvalidRunFolder("The zip is encrypted; unpack it first, and import the folder")


def _run_entries(entries: list[ZipInfo]) -> Iterator[tuple[ZipInfo, tuple[str, ...]]]:
    """Yield the files of the run with their paths below its folder, which may be nested."""
    found = {tuple(entry.filename.split("/")): entry for entry in entries if not entry.is_dir()}
    roots = sorted((path[:-1] for path in found if path[-1] == "job.json" and not _is_hidden(path)), key=len)
    if not roots:
        raise InvalidRunFolder("The zip has no job.json; make it with `arkor export-run JOB`, or from a run's folder")
    if len(roots) > 1 and len(roots[0]) == len(roots[1]):
        raise InvalidRunFolder("The zip has more than one run in it; import them one by one")
    depth = len(roots[0])
    for path, entry in found.items():
        member = path[depth:]
        if path[:depth] != roots[0] or _is_hidden(member):
            continue
        is_file = len(member) == 1 and member[0] in ARCHIVED_FILES
        if is_file or (1 < len(member) <= MAX_DEPTH and member[0] in ARCHIVED_FOLDERS):
            yield entry, member


def _is_hidden(path: tuple[str, ...]) -> bool:
    return any(part.startswith(".") or part in ("", "__MACOSX") for part in path)


def _extract(zipped: ZipFile, entry: ZipInfo, file: Path, remaining: int) -> int:
    """Write one file of at most `remaining` bytes and return its size."""
    limit = min(remaining, JSON_LIMIT) if file.name == "job.json" else remaining
    size = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(entry) as source, file.open("xb") as target:
        while chunk := source.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > limit:
                raise InvalidRunFolder(f"The zip's {entry.filename[:200]!r} is too large")
            target.write(chunk)
    return size


def check_adapters(folder: Path) -> None:
    """Raise `InvalidRunFolder` for adapters other than LoRA: they may hold more than weights."""
    for file in (*folder.glob("final/adapter_config.json"), *folder.glob("checkpoints/*/adapter_config.json")):
        try:
            config = json.loads(file.read_bytes()) if file.stat().st_size <= JSON_LIMIT else None
        except (ValueError, RecursionError):
            config = None
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            raise InvalidRunFolder("is not the configuration of a LoRA adapter, the only kind that is imported", file)
