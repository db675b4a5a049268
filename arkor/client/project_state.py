"""A project's `.arkor/state.json`: the project of the backend that a folder belongs to."""

from __future__ import annotations

import json
import re
from pathlib import Path

from attrs import frozen

from arkor.client.api import CloudApiClient
from arkor.errors import ArkorError, CloudApiError, ProjectStateMismatch
from arkor.files import write_atomically
from arkor.protocol.codec import from_wire, to_wire
from arkor.protocol.jobs import Scope

_MAX_SLUG_LENGTH = 40


@frozen
class ProjectState:
    """The project of a folder: the slugs of its organisation and of the project, and its id."""

    org_slug: str
    project_slug: str
    project_id: str

    @property
    def scope(self) -> Scope:
        return Scope(self.org_slug, self.project_slug)


def state_path(project_dir: str | Path | None = None) -> Path:
    """Return the path of `.arkor/state.json` in the project's folder (default: the current one)."""
    return Path(project_dir or ".").expanduser().absolute() / ".arkor" / "state.json"


def read_state(project_dir: str | Path | None = None) -> ProjectState | None:
    """Return that project's state; None if it is missing or invalid, `ArkorError` if unreadable."""
    path = state_path(project_dir)
    try:
        state = from_wire(ProjectState, json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    except OSError as error:
        remedy = "fix its permissions, or move it away"
        raise ArkorError(f"{path} cannot be read ({error.strerror})", remedy=remedy) from error
    fields = (state.org_slug, state.project_slug, state.project_id)
    return state if all(isinstance(value, str) and value for value in fields) else None


def write_state(state: ProjectState, project_dir: str | Path | None = None) -> None:
    """Write the state atomically; raise `ArkorError` if that fails."""
    path = state_path(project_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(to_wire(state), ensure_ascii=False, indent=2) + "\n", mode=0o644)
    except OSError as error:
        remedy = "free some disk space or fix its permissions"
        raise ArkorError(f"{path} cannot be written ({error.strerror})", remedy=remedy) from error


def slug_of(folder: Path) -> str:
    """Return a project's slug from the name of its folder: `"My Bot!"` → `"my-bot"`.

    The TypeScript client must find the same one; it counts UTF-16 units and trims before it cuts.
    """
    units = re.sub(r"[^\0-\uffff]", "--", folder.name.lower())
    slug = re.sub(r"[^a-z0-9-]", "-", units).strip("-")[:_MAX_SLUG_LENGTH]
    return slug or "project"


def ensure_project(client: CloudApiClient, org_slug: str, project_dir: str | Path | None = None) -> ProjectState:
    """Return the project of this folder, or create it. Raise `ProjectStateMismatch`."""
    state = read_state(project_dir)
    if state is not None and state.org_slug != org_slug:
        raise ProjectStateMismatch(
            f"{state_path(project_dir)} belongs to the organisation {state.org_slug!r}, but you are signed in to "
            f"{org_slug!r}",
            remedy=f"sign in to {state.org_slug!r}, or remove that file to start a new project",
        )
    if state is not None:
        return state
    folder = state_path(project_dir).parents[1].resolve()
    slug = slug_of(folder)
    scope = Scope(org_slug, slug)
    try:
        project = client.create_project(folder.name or slug, slug, scope=scope)
    except CloudApiError as error:
        if error.status != 409:
            raise
        existing = [project for project in client.list_projects(scope=scope) if project.slug == slug]
        if not existing:
            raise
        project = existing[0]
    state = ProjectState(org_slug, project.slug, project.id)
    write_state(state, project_dir)
    return state
