"""Who one is, in which organisations, at which backend, and why there."""

from __future__ import annotations

from typing import Any

import click

from arkor.cli.output import say, say_json
from arkor.client.api import CloudApiClient
from arkor.client.auth.bootstrap import credentials_from_env, stored_credentials
from arkor.client.auth.credentials import (
    AnonymousCredentials,
    Credentials,
    credentials_path,
    is_incidental,
    read_credentials,
    url_of,
)
from arkor.client.auth.oauth import auth_for
from arkor.client.connect import choose_backend
from arkor.client.http.auth import Auth
from arkor.client.local_backend import fetch_health, read_backend_info
from arkor.errors import ArkorError, CloudApiError, CredentialsError
from arkor.formatting import one_line
from arkor.protocol.accounts import Me, Org
from arkor.settings import arkor_home

#: Seconds within which a call is tried again whose answer is only told.
_RETRY_SECONDS = 3.0
#: Seconds for the backend of this machine to say that it is well.
_HEALTH_SECONDS = 5.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of lines.")
def whoami(as_json: bool) -> None:
    """Say who you are, in which organisations, at which backend, and why there.

    Nothing is started, and nobody is signed in by asking.
    """
    chosen = choose_backend()
    found = _local_identity() if chosen is None else _remote_identity(*chosen)
    if as_json:
        say_json(found)
        return
    say(_describe_identity(found))
    if found["orgs"]:
        say(f"Organisations: {', '.join(one_line(str(org['slug'])) for org in found['orgs'])}")
    say(f"Backend: {_describe_backend(found['backend'])}")
    if chosen is None and (idle := read_credentials()):
        say(f"The identity in {credentials_path()} is for {one_line(url_of(idle))} where a script names that one.")


# Looking


def report(mode: str | None, me: Me | None, **backend: Any) -> dict[str, Any]:
    """What there is to say of a sign-in at a backend; no secret is in it."""
    known = [org for org in me.orgs if isinstance(org, Org)] if me else []
    orgs = [{"id": org.id, "slug": org.slug, "name": org.name} for org in known]
    return {"mode": mode, "user": _user(me) if me else None, "orgs": orgs, "backend": backend}


def _local_identity() -> dict[str, Any]:
    """The backend of this machine, if it runs; it is not started."""
    info = read_backend_info(arkor_home())
    me = None
    try:
        if info is not None and fetch_health(info, _HEALTH_SECONDS):
            owner = AnonymousCredentials(info.token, "local", info.url, "local")
            me = _identity_or_none(owner)
        else:
            info = None
    except TimeoutError:  # it is there, but has no time for us
        pass
    url = info.url if info else None
    return report("embedded", me, url=url, why="embedded", running=info is not None)


def _remote_identity(url: str, why: str) -> dict[str, Any]:
    found = stored_credentials(url)
    if found is None:
        return report(None, None, url=url, why=why)
    client = CloudApiClient(url, found, access=auth_for(url, found, from_file=True, source=why))
    try:
        me = client.me()
    except CloudApiError as error:
        if error.status != 401:
            raise
        raise CredentialsError(_rejection_note(url, error)) from error
    return report(found.mode, me, url=client.base_url, why=client.http.auth.source)


def _rejection_note(url: str, error: CloudApiError) -> str:
    if credentials_from_env(url):
        return f"{url} refuses the token in ARKOR_TOKEN ({error}); set the one that its operator gave out"
    return f"{url} does not know your sign-in any more ({error}); sign in again: arkor login"


# Telling


def _describe_identity(found: dict[str, Any]) -> str:
    user = found["user"] or {}
    name = one_line(str(user.get("email") or user.get("id")))
    if found["mode"] == "oauth":
        return name
    if found["mode"] == "token":
        source = "ARKOR_TOKEN" if credentials_from_env(found["backend"]["url"]) else str(credentials_path())
        return f"{name}, by the token in {source}"
    if found["mode"] == "anon":
        return f"An anonymous identity, {one_line(str(user.get('id')))}"
    if found["mode"] == "embedded":
        return "The owner of this machine's backend, which needs no sign-in"
    return "Nobody yet: the first call there gets an anonymous identity (to be a person: arkor login)"


def _describe_backend(backend: dict[str, Any]) -> str:
    if backend["why"] == "embedded":
        url_text = backend["url"] or "none runs now, it is started when it is needed"
        return f"the one of this machine ({url_text}), for neither ARKOR_CLOUD_API_URL nor a sign-in names another"
    reason = f"the sign-in in {credentials_path()}" if backend["why"] == "credentials file" else backend["why"]
    return f"{one_line(str(backend['url']))}, because of {reason}"


# Whose a sign-in is


def fetch_identity(credentials: Credentials, *, only_refusals: bool = False) -> Me | None:
    """Who that is, as the backend says. Raises `ArkorError`; with `only_refusals`, only where it refuses the token."""
    url = url_of(credentials)
    client = CloudApiClient(url, credentials, access=Auth(url, credentials.bearer))
    client.http.retry_budget = _RETRY_SECONDS
    try:
        return client.me()
    except ArkorError as error:
        if only_refusals and not (isinstance(error, CloudApiError) and error.status in (401, 403)):
            return None
        raise


def _identity_or_none(credentials: Credentials) -> Me | None:
    try:
        return fetch_identity(credentials)
    except ArkorError:
        return None


def describe_sign_in(credentials: Credentials) -> str:
    """`"the sign-in of ada@example at https://…"`."""
    where = one_line(url_of(credentials))
    if isinstance(credentials, AnonymousCredentials):
        chance = ", which a script got" if is_incidental(credentials) else ""
        return f"the anonymous sign-in at {where}{chance}"
    me = _identity_or_none(credentials)
    return f"the sign-in of {display_name(me) if me else 'a person'} at {where}"


def display_name(me: Me) -> str:
    user = _user(me)
    return one_line(str(user["email"] or user["id"]))


def _user(me: Me) -> dict[str, Any]:
    """Whatever the backend says, these and nothing else of it."""
    return {"id": getattr(me.user, "id", None), "email": getattr(me.user, "email", None)}
