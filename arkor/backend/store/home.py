"""Open the home of a backend: its lock, its database, the owner's token; rebuild the database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from arkor.backend.runs.paths import database_file, prepare
from arkor.backend.store.run_registry import quarantine, register_orphans
from arkor.backend.store.schema import StartupError
from arkor.backend.store.store import Store, new_token
from arkor.files import Lock, write_atomically


@contextmanager
def locked_home(home: Path) -> Iterator[None]:
    """Create a home's folders and hold its lock in the block. Raise `StartupError`."""
    lock = Lock(home / "backend.lock")
    with _as_startup_errors(home):
        prepare(home)
        acquired = lock.acquire(0)
    if not acquired:
        raise StartupError(f"Another backend serves {home} already.", exit_code=3)
    with lock, _as_startup_errors(home):
        yield


@contextmanager
def open_store(home: Path) -> Iterator[tuple[Store, str]]:
    """Open the database of a locked home; yield it and the owner's token."""
    with closing(Store(database_file(home))) as store:
        token = owner_token(home)
        store.ensure_owner(token)
        yield store, token


def owner_token(home: Path) -> str:
    """Return the owner's token, creating it on the first start; restarts keep it. Raise OSError."""
    file = home / "owner.token"
    with suppress(FileNotFoundError):
        if token := file.read_text(encoding="utf-8").strip():
            return token
    token = new_token()
    write_atomically(file, token)
    return token


def rebuild(home: Path) -> str:
    """Replace the database by one made from the run folders; return a report."""
    with locked_home(home):
        quarantined = quarantine(home)
        with open_store(home) as (store, _):
            registered = register_orphans(home, store)
    renamed = f" The previous database is now {quarantined}." if quarantined else ""
    runs = "1 run from its folder" if len(registered) == 1 else f"{len(registered)} runs from their folders"
    return f"Rebuilt {database_file(home)} with {runs}.{renamed}"


@contextmanager
def _as_startup_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path, reason = error.filename or home, error.strerror or error
        remedy = "Fix it, or set ARKOR_HOME to another folder."
        raise StartupError(f"The backend cannot use {path}: {reason}.", remedy=remedy) from error
    except DBAPIError as error:
        raise StartupError(f"The backend cannot use {database_file(home)}: {error.orig}.") from error
