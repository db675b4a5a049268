"""A zip of a run from elsewhere → a run of this home. Nothing in the zip is trusted.

What a run's folder is made of is `rebuild.py`'s to say, how it is packed `arkor/protocol/run_archive.py`'s.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from zipfile import BadZipFile, ZipFile, ZipInfo

from attrs import frozen

from arkor.backend.runs.paths import RunFolder, run_folder
from arkor.backend.store.rebuild import InvalidRunFolder, import_run, read_manifest
from arkor.backend.store.store import JobRecord, OrgRecord, ProjectRecord, Store
from arkor.protocol.run_archive import ARCHIVED_FILES, ARCHIVED_FOLDERS

#: What a zip may become: so many bytes in so many files, so deep; what its job.json and its configurations may be.
UNPACKED_LIMIT = 32 * 1024**3
MAX_FILES = 10_000
MAX_DEPTH = 6
JSON_LIMIT = 1024 * 1024

_CHUNK_BYTES = 1024 * 1024
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

#: One run is taken in at a time: two copies of the same one would be put together in the same place.
_import_lock = Lock()


class JobIdConflict(Exception):
    """The run is here already, and is not the caller's; the sentence does not say whose it is."""


@frozen
class Owner:
    """Whose run it becomes."""

    org: OrgRecord
    project: ProjectRecord


def import_archive(home: Path, store: Store, archive: Path, scratch: Path, owner: Owner) -> tuple[JobRecord, bool]:
    """The run in the zip, and whether it is new here; `scratch` is an empty folder to unpack it in.

    Raises `InvalidRunFolder` and `JobIdConflict`, and OSError for a disk that is full.
    """
    try:
        unpack(archive, scratch)
        check_adapters(scratch)
        with _import_lock:
            return _existing_job(home, store, scratch, owner) or (
                import_run(home, store, scratch, owner.project, owner.org),
                True,
            )
    except InvalidRunFolder as problem:
        message = str(problem).replace(f"{scratch}{os.sep}", "").replace(str(scratch), "the zip")
        raise InvalidRunFolder(message) from None


def _existing_job(home: Path, store: Store, unpacked: Path, owner: Owner) -> tuple[JobRecord, bool] | None:
    job_id = read_manifest(RunFolder(unpacked)).job.id
    folder = run_folder(home, job_id).path
    job = store.job(owner.project, job_id)
    if job is not None and not folder.is_dir():
        raise InvalidRunFolder(
            f"The run {job_id} is listed here, but its folder is gone; put it back by hand: {folder}"
        )
    if job is None and folder.is_dir():
        raise JobIdConflict(f"There is a run {job_id} here already, and it is not of this project.")
    return (job, False) if job else None


# Unpacking


def unpack(archive: Path, target: Path) -> None:
    """What travels of a run, from the zip into the folder. Raises `InvalidRunFolder`, and OSError for a disk that
    is full.
    """
    with _zip_errors_as_sentences(), ZipFile(archive) as zipped:
        entries = zipped.infolist()
        _check_entries(entries)
        remaining = UNPACKED_LIMIT
        for entry, member_path in _run_entries(entries):
            remaining -= _extract(zipped, entry, target.joinpath(*member_path), remaining)


@contextmanager
def _zip_errors_as_sentences() -> Iterator[None]:
    try:
        yield
    except BadZipFile as error:
        raise InvalidRunFolder(f"This is not a whole zip ({error}); make it with `arkor export-run JOB`.") from None
    except (zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise InvalidRunFolder(f"The zip cannot be unpacked: {error}.") from None
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise
        raise InvalidRunFolder(f"The zip cannot be unpacked: {error.strerror or error}.") from None


def _check_entries(entries: list[ZipInfo]) -> None:
    """Raises `InvalidRunFolder` for a zip that leads elsewhere, or becomes more than a run can be."""
    if len(entries) > MAX_FILES:
        raise InvalidRunFolder(f"The zip has {len(entries)} files; {MAX_FILES} are taken at most.")
    if sum(entry.file_size for entry in entries) > UNPACKED_LIMIT:
        raise InvalidRunFolder(f"The zip becomes more than {UNPACKED_LIMIT // 1024**3} GiB.")
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        if name.startswith("/") or "\\" in name or ":" in name.split("/")[0] or ".." in name.split("/"):
            raise InvalidRunFolder(f"The zip has a file whose name leads elsewhere: {name[:200]!r}.")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InvalidRunFolder(f"The zip has something that is neither a file nor a folder: {name[:200]!r}.")
        if entry.flag_bits & 1:
            raise InvalidRunFolder("The zip is encrypted; unpack it first, and import the folder.")


def _run_entries(entries: list[ZipInfo]) -> Iterator[tuple[ZipInfo, tuple[str, ...]]]:
    """The files that travel, each with its place below the run's folder, which may lie deeper in the zip."""
    found = {tuple(entry.filename.split("/")): entry for entry in entries if not entry.is_dir()}
    roots = sorted((path[:-1] for path in found if path[-1] == "job.json" and not _is_hidden(path)), key=len)
    if not roots:
        raise InvalidRunFolder(
            "The zip has no job.json; make it with `arkor export-run JOB`, or from a run's whole folder."
        )
    if len(roots) > 1 and len(roots[0]) == len(roots[1]):
        raise InvalidRunFolder("The zip has more than one run in it; import them one by one.")
    depth = len(roots[0])
    for path, entry in found.items():
        place = path[depth:]
        if path[:depth] != roots[0] or _is_hidden(place):
            continue
        if (len(place) == 1 and place[0] in ARCHIVED_FILES) or (
            1 < len(place) <= MAX_DEPTH and place[0] in ARCHIVED_FOLDERS
        ):
            yield entry, place


def _is_hidden(path: tuple[str, ...]) -> bool:
    return any(part.startswith(".") or part in ("", "__MACOSX") for part in path)


def _extract(zipped: ZipFile, entry: ZipInfo, file: Path, remaining: int) -> int:
    """Write one file, of at most `remaining` bytes; returns its size."""
    limit = min(remaining, JSON_LIMIT) if file.name == "job.json" else remaining
    size = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(entry) as source, file.open("xb") as target:
        while chunk := source.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > limit:
                raise InvalidRunFolder(f"The zip's {entry.filename[:200]!r} is too large.")
            target.write(chunk)
    return size


def check_adapters(folder: Path) -> None:
    """Raises `InvalidRunFolder` for an adapter of a kind that is not trained here: others may do more than hold
    weights.
    """
    for file in (*folder.glob("final/adapter_config.json"), *folder.glob("checkpoints/*/adapter_config.json")):
        try:
            config = json.loads(file.read_bytes()) if file.stat().st_size <= JSON_LIMIT else None
        except (ValueError, RecursionError):
            config = None
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            raise InvalidRunFolder(
                f"{file} is not the configuration of a LoRA adapter, the only kind that is taken in."
            )
