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
from arkor.backend.store.rebuild import NoRun, adopt, read_record
from arkor.backend.store.store import Job, Org, Project, Store
from arkor.protocol.run_archive import FILES, FOLDERS

#: What a zip may become: so many bytes in so many files, so deep; what its job.json and its configurations may be.
UNPACKED_LIMIT = 32 * 1024**3
MOST_FILES = 10_000
DEEPEST = 6
JSON_LIMIT = 1024 * 1024

_PIECE = 1024 * 1024
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)

#: One run is taken in at a time: two copies of the same one would be put together in the same place.
_taking_in = Lock()


class AnotherHasIt(Exception):
    """The run is here already, and is not the caller's; the sentence does not say whose it is."""


@frozen
class Owner:
    """Whose run it becomes."""

    org: Org
    project: Project


def take_in(home: Path, store: Store, archive: Path, beside: Path, owner: Owner) -> tuple[Job, bool]:
    """The run in the zip, and whether it is new here; `beside` is an empty folder to unpack it in.

    Raises `NoRun` and `AnotherHasIt`, and OSError for a disk that is full.
    """
    try:
        unpack(archive, beside)
        check_adapters(beside)
        with _taking_in:
            return _known(home, store, beside, owner) or (adopt(home, store, beside, owner.project, owner.org), True)
    except NoRun as problem:
        told = str(problem).replace(f"{beside}{os.sep}", "").replace(str(beside), "the zip")
        raise NoRun(told) from None


def _known(home: Path, store: Store, copy: Path, owner: Owner) -> tuple[Job, bool] | None:
    job_id = read_record(RunFolder(copy)).job.id
    folder = run_folder(home, job_id).path
    job = store.job(owner.project, job_id)
    if job is not None and not folder.is_dir():
        raise NoRun(f"The run {job_id} is listed here, but its folder is gone; put it back by hand: {folder}")
    if job is None and folder.is_dir():
        raise AnotherHasIt(f"There is a run {job_id} here already, and it is not of this project.")
    return (job, False) if job else None


# Unpacking


def unpack(archive: Path, into: Path) -> None:
    """What travels of a run, from the zip into the folder. Raises `NoRun`, and OSError for a disk that is full."""
    with _sentences(), ZipFile(archive) as zipped:
        entries = zipped.infolist()
        _check(entries)
        left = UNPACKED_LIMIT
        for entry, place in _of_the_run(entries):
            left -= _extract(zipped, entry, into.joinpath(*place), left)


@contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except BadZipFile as error:
        raise NoRun(f"This is not a whole zip ({error}); make it with `arkor export-run JOB`.") from None
    except (zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise NoRun(f"The zip cannot be unpacked: {error}.") from None
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise
        raise NoRun(f"The zip cannot be unpacked: {error.strerror or error}.") from None


def _check(entries: list[ZipInfo]) -> None:
    """Raises `NoRun` for a zip that leads elsewhere, or becomes more than a run can be."""
    if len(entries) > MOST_FILES:
        raise NoRun(f"The zip has {len(entries)} files; {MOST_FILES} are taken at most.")
    if sum(entry.file_size for entry in entries) > UNPACKED_LIMIT:
        raise NoRun(f"The zip becomes more than {UNPACKED_LIMIT // 1024**3} GiB.")
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        if name.startswith("/") or "\\" in name or ":" in name.split("/")[0] or ".." in name.split("/"):
            raise NoRun(f"The zip has a file whose name leads elsewhere: {name[:200]!r}.")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise NoRun(f"The zip has something that is neither a file nor a folder: {name[:200]!r}.")
        if entry.flag_bits & 1:
            raise NoRun("The zip is encrypted; unpack it first, and import the folder.")


def _of_the_run(entries: list[ZipInfo]) -> Iterator[tuple[ZipInfo, tuple[str, ...]]]:
    """The files that travel, each with its place below the run's folder, which may lie deeper in the zip."""
    found = {tuple(entry.filename.split("/")): entry for entry in entries if not entry.is_dir()}
    homes = sorted((path[:-1] for path in found if path[-1] == "job.json" and not _is_hidden(path)), key=len)
    if not homes:
        raise NoRun("The zip has no job.json; make it with `arkor export-run JOB`, or from a run's whole folder.")
    if len(homes) > 1 and len(homes[0]) == len(homes[1]):
        raise NoRun("The zip has more than one run in it; import them one by one.")
    depth = len(homes[0])
    for path, entry in found.items():
        place = path[depth:]
        if path[:depth] != homes[0] or _is_hidden(place):
            continue
        if (len(place) == 1 and place[0] in FILES) or (1 < len(place) <= DEEPEST and place[0] in FOLDERS):
            yield entry, place


def _is_hidden(path: tuple[str, ...]) -> bool:
    return any(part.startswith(".") or part in ("", "__MACOSX") for part in path)


def _extract(zipped: ZipFile, entry: ZipInfo, file: Path, left: int) -> int:
    """Write one file, of at most `left` bytes; returns its size."""
    limit = min(left, JSON_LIMIT) if file.name == "job.json" else left
    size = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipped.open(entry) as source, file.open("xb") as target:
        while piece := source.read(_PIECE):
            size += len(piece)
            if size > limit:
                raise NoRun(f"The zip's {entry.filename[:200]!r} is too large.")
            target.write(piece)
    return size


def check_adapters(folder: Path) -> None:
    """Raises `NoRun` for an adapter of a kind that is not trained here: others may do more than hold weights."""
    for file in (*folder.glob("final/adapter_config.json"), *folder.glob("checkpoints/*/adapter_config.json")):
        try:
            config = json.loads(file.read_bytes()) if file.stat().st_size <= JSON_LIMIT else None
        except (ValueError, RecursionError):
            config = None
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            raise NoRun(f"{file} is not the configuration of a LoRA adapter, the only kind that is taken in.")
