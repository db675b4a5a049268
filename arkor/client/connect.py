"""Choose the backend, the credentials and the project of a script.

The backend is chosen by `base_url`, else `ARKOR_CLOUD_API_URL`, else the credentials; the default
is this machine's. Credentials that a script obtained only because one of the first two was set
(`incidental`) do not select a backend.
"""

from __future__ import annotations

from pathlib import Path

from arkor.client.api import CloudApiClient
from arkor.client.auth.bootstrap import ensure_credentials
from arkor.client.auth.credentials import (
    AnonymousCredentials,
    Credentials,
    default_cloud_api_url,
    is_incidental,
    read_credentials,
    url_of,
)
from arkor.client.auth.oauth import auth_for
from arkor.client.http.urls import checked_url
from arkor.client.local_backend import LocalBackendAuth
from arkor.client.project_state import ensure_project, read_state
from arkor.errors import ArkorError
from arkor.protocol.jobs import Scope
from arkor.settings import arkor_home, cloud_api_url_from_env


def connect(
    base_url: str | None = None, credentials: Credentials | None = None, project_dir: str | Path | None = None
) -> CloudApiClient:
    """Return a client with its scope; `client.http.auth.source` names the deciding setting.

    Starts a backend on this machine, obtains an anonymous identity and creates the project if they
    are missing. Raise `BackendUnavailable`, `CloudApiError`, `CredentialsError` or
    `ProjectStateMismatch`.
    """
    chosen = choose_backend(base_url, credentials)
    if chosen is None:
        local = LocalBackendAuth(arkor_home())
        return CloudApiClient(local.base_url, local.credentials, scope=Scope("local", "default"), access=local)
    url, source = chosen
    used = credentials or ensure_credentials(url, incidental=True)
    client = CloudApiClient(url, used, access=auth_for(url, used, from_file=credentials is None, source=source))
    client.scope = ensure_project(client, _choose_org(client, used, project_dir), project_dir).scope
    return client


def choose_backend(base_url: str | None = None, credentials: Credentials | None = None) -> tuple[str, str] | None:
    """Return the backend's URL and the deciding setting; None for this machine's backend."""
    if base_url is not None:
        return checked_url(base_url), "base_url"
    if cloud_api_url_from_env():
        return checked_url(default_cloud_api_url()), "ARKOR_CLOUD_API_URL"
    if credentials is not None:
        return url_of(credentials), "credentials"
    stored = read_credentials()
    return None if stored is None or is_incidental(stored) else (url_of(stored), "credentials file")


def _choose_org(client: CloudApiClient, credentials: Credentials, project_dir: str | Path | None) -> str:
    """Return the organisation of an anonymous identity, of the project, or the only one."""
    if isinstance(credentials, AnonymousCredentials):
        return credentials.org_slug
    orgs = [org.slug for org in client.me().orgs]
    state = read_state(project_dir)
    if state is not None and state.org_slug in orgs:
        return state.org_slug
    if len(orgs) == 1:
        return orgs[0]
    raise ArkorError(
        f"you are a member of {len(orgs)} organisations ({', '.join(orgs) or 'none'})",
        remedy='choose one, and a project of it, in .arkor/state.json: {"orgSlug": …, "projectSlug": …, '
        '"projectId": …}',
    )
