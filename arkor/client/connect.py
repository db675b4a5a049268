"""Which backend a script talks to, in whose name, and about which project.

An explicit `base_url`, else `ARKOR_CLOUD_API_URL`, else the URL of the sign-in, else a backend of this machine. An
identity that a script only came by while one of the first two was set leads nobody anywhere once it is not.
"""

from __future__ import annotations

from pathlib import Path

from arkor.client.api import CloudApiClient
from arkor.client.auth.credentials import (
    AnonymousCredentials,
    Credentials,
    default_cloud_api_url,
    ensure_credentials,
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
    base_url: str | None = None,
    credentials: Credentials | None = None,
    project_dir: str | Path | None = None,
) -> CloudApiClient:
    """A client with its scope set; `client.http.auth.source` says how the backend came to be chosen.

    Starts a backend on this machine, gets an anonymous identity, creates the project, each where it is missing.
    Raises `BackendUnavailable`, `CloudApiError`, `CredentialsError` or `ProjectStateMismatch`.
    """
    chosen = choose_backend(base_url, credentials)
    if chosen is None:
        local = LocalBackendAuth(arkor_home())
        return CloudApiClient(local.base_url, local.credentials, scope=Scope("local", "default"), access=local)
    url, why = chosen
    sign_in = credentials or ensure_credentials(url, incidental=True)
    auth = auth_for(url, sign_in, from_file=credentials is None, why=why)
    client = CloudApiClient(url, sign_in, access=auth)
    client.scope = ensure_project(client, _resolve_org(client, sign_in, project_dir), project_dir).scope
    return client


def choose_backend(base_url: str | None = None, credentials: Credentials | None = None) -> tuple[str, str] | None:
    """The backend's URL and how it came to be chosen; None for the one of this machine.

    Raises `InvalidConfig` for a URL that is none, `CredentialsError`.
    """
    if base_url is not None:
        return checked_url(base_url), "base_url"
    if cloud_api_url_from_env():
        return checked_url(default_cloud_api_url()), "ARKOR_CLOUD_API_URL"
    if credentials is not None:
        return url_of(credentials), "credentials"
    found = read_credentials()
    return None if found is None or is_incidental(found) else (url_of(found), "credentials file")


def _resolve_org(client: CloudApiClient, credentials: Credentials, project_dir: str | Path | None) -> str:
    """The organisation to work in: an anonymous identity's own; a person's only one, or the one of the project."""
    if isinstance(credentials, AnonymousCredentials):
        return credentials.org_slug
    orgs = [org.slug for org in client.me().orgs]
    state = read_state(project_dir)
    if state is not None and state.org_slug in orgs:
        return state.org_slug
    if len(orgs) == 1:
        return orgs[0]
    raise ArkorError(
        f"you are a member of {len(orgs)} organisations ({', '.join(orgs) or 'none'}); name the one to work in, "
        'and its project, in .arkor/state.json: {"orgSlug": …, "projectSlug": …, "projectId": …}'
    )
