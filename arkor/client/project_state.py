"""A project's `.arkor/state.json`: which project of the backend this folder belongs to.

A backend of this machine needs none: there the project is always `default`, and nothing is written.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from attrs import frozen

from arkor.client.api import CloudApiClient
from arkor.client.auth.credentials import write_json
from arkor.errors import ArkorError, CloudApiError, ProjectStateMismatch
from arkor.protocol.codec import from_wire, to_wire
from arkor.protocol.jobs import Scope

_MAX_SLUG_LENGTH = 40


@frozen
class ProjectState:
    """Which project a folder belongs to: the slugs of its organisation and of itself, and its id."""

    org_slug: str
    project_slug: str
    project_id: str

    @property
    def scope(self) -> Scope:
        """The project, as calls of a client take it."""
        return Scope(self.org_slug, self.project_slug)


def state_path(project_dir: str | Path | None = None) -> Path:
    """`.arkor/state.json` of the project's folder (default: the current one)."""
    return Path(project_dir or ".").expanduser().absolute() / ".arkor" / "state.json"


def read_state(project_dir: str | Path | None = None) -> ProjectState | None:
    """The state of that project; None when there is none, or when the file makes no sense.

    Raises `ArkorError` for a file that is there and cannot be read.
    """
    path = state_path(project_dir)
    try:
        state = from_wire(ProjectState, json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    except OSError as error:
        raise ArkorError(f"{path} cannot be read ({error.strerror}); mend its permissions, or move it away") from error
    fields = (state.org_slug, state.project_slug, state.project_id)
    return state if all(isinstance(value, str) and value for value in fields) else None


def write_state(state: ProjectState, project_dir: str | Path | None = None) -> None:
    """Keep the state, whole or not at all. Raises `ArkorError` when it cannot be written."""
    path = state_path(project_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, to_wire(state), mode=0o644)
    except OSError as error:
        raise ArkorError(f"{path} cannot be written ({error.strerror}); make room or mend its permissions") from error


def slug_of(folder: Path) -> str:
    """A project's slug from the name of its folder: `"My Bot!"` → `"my-bot"`.

    The TypeScript client must find the same one: it counts in UTF-16, and cuts behind trimming.
    """
    units = re.sub(r"[^\0-\uffff]", "--", folder.name.lower())
    slug = re.sub(r"[^a-z0-9-]", "-", units).strip("-")[:_MAX_SLUG_LENGTH]
    return slug or "project"


def ensure_project(client: CloudApiClient, org_slug: str, project_dir: str | Path | None = None) -> ProjectState:
    """The project that this folder belongs to; made on the backend, and written down, where there is none yet.

    Raises `ProjectStateMismatch` when the folder belongs to another organisation; its state is left untouched.
    """
    found = read_state(project_dir)
    if found is not None and found.org_slug != org_slug:
        raise ProjectStateMismatch(
            f"{state_path(project_dir)} belongs to the organisation {found.org_slug!r}, but you are signed in to "
            f"{org_slug!r}; sign in to {found.org_slug!r}, or remove that file to start a new project"
        )
    if found is None:
        found = _create(client, org_slug, state_path(project_dir).parents[1].resolve())
        write_state(found, project_dir)
    return found


def _create(client: CloudApiClient, org_slug: str, folder: Path) -> ProjectState:
    slug = slug_of(folder)
    scope = Scope(org_slug, slug)
    try:
        project = client.create_project(folder.name or slug, slug, scope=scope)
    except CloudApiError as error:
        if error.status != 409:
            raise
        taken = [project for project in client.list_projects(scope=scope) if project.slug == slug]
        if not taken:
            raise
        project = taken[0]
    return ProjectState(org_slug, project.slug, project.id)
