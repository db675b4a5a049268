"""Who one is, in which organisations, at which backend, and why there."""

from __future__ import annotations

from typing import Any

import click

from arkor.cli.output import say, say_json
from arkor.client.api import CloudApiClient
from arkor.client.auth.credentials import (
    AnonymousCredentials,
    Credentials,
    credentials_from_env,
    credentials_path,
    is_incidental,
    known_credentials,
    read_credentials,
    url_of,
)
from arkor.client.auth.oauth import access_for
from arkor.client.connect import choose_backend
from arkor.client.http.client import Access
from arkor.client.local_backend import ask_health, read_listing
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
    found = _here() if chosen is None else _elsewhere(*chosen)
    if as_json:
        say_json(found)
        return
    say(_greeting(found))
    if found["orgs"]:
        say(f"Organisations: {', '.join(one_line(str(org['slug'])) for org in found['orgs'])}")
    say(f"Backend: {_place(found['backend'])}")
    if chosen is None and (idle := read_credentials()):
        say(f"The identity in {credentials_path()} is for {one_line(url_of(idle))} where a script names that one.")


# Looking


def report(mode: str | None, me: Me | None, **backend: Any) -> dict[str, Any]:
    """What there is to say of a sign-in at a backend; no secret is in it."""
    known = [org for org in me.orgs if isinstance(org, Org)] if me else []
    orgs = [{"id": org.id, "slug": org.slug, "name": org.name} for org in known]
    return {"mode": mode, "user": _user(me) if me else None, "orgs": orgs, "backend": backend}


def _here() -> dict[str, Any]:
    """The backend of this machine, if it runs; it is not started."""
    listing = read_listing(arkor_home())
    me = None
    try:
        if listing is not None and ask_health(listing, _HEALTH_SECONDS):
            owner = AnonymousCredentials(listing.token, "local", listing.url, "local")
            me = _who_if_known(owner)
        else:
            listing = None
    except TimeoutError:  # it is there, but has no time for us
        pass
    url = listing.url if listing else None
    return report("embedded", me, url=url, why="embedded", running=listing is not None)


def _elsewhere(url: str, why: str) -> dict[str, Any]:
    found = known_credentials(url)
    if found is None:
        return report(None, None, url=url, why=why)
    client = CloudApiClient(url, found, access=access_for(url, found, from_file=True, why=why))
    try:
        me = client.me()
    except CloudApiError as error:
        if error.status != 401:
            raise
        raise CredentialsError(_refused(url, error)) from error
    return report(found.mode, me, url=client.base_url, why=client.http.access.why)


def _refused(url: str, error: CloudApiError) -> str:
    if credentials_from_env(url):
        return f"{url} refuses the token in ARKOR_TOKEN ({error}); set the one that its operator gave out"
    return f"{url} does not know your sign-in any more ({error}); sign in again: arkor login"


# Telling


def _greeting(found: dict[str, Any]) -> str:
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


def _place(backend: dict[str, Any]) -> str:
    if backend["why"] == "embedded":
        where = backend["url"] or "none runs now, it is started when it is needed"
        return f"the one of this machine ({where}), for neither ARKOR_CLOUD_API_URL nor a sign-in names another"
    because = f"the sign-in in {credentials_path()}" if backend["why"] == "credentials file" else backend["why"]
    return f"{one_line(str(backend['url']))}, because of {because}"


# Whose a sign-in is


def ask_who(credentials: Credentials, *, only_refusals: bool = False) -> Me | None:
    """Who that is, as the backend says. Raises `ArkorError`; with `only_refusals`, only where it refuses the token."""
    url = url_of(credentials)
    client = CloudApiClient(url, credentials, access=Access(url, credentials.bearer))
    client.http.retry_budget = _RETRY_SECONDS
    try:
        return client.me()
    except ArkorError as error:
        if only_refusals and not (isinstance(error, CloudApiError) and error.status in (401, 403)):
            return None
        raise


def _who_if_known(credentials: Credentials) -> Me | None:
    try:
        return ask_who(credentials)
    except ArkorError:
        return None


def whose(credentials: Credentials) -> str:
    """`"the sign-in of ada@example at https://…"`."""
    where = one_line(url_of(credentials))
    if isinstance(credentials, AnonymousCredentials):
        chance = ", which a script got" if is_incidental(credentials) else ""
        return f"the anonymous sign-in at {where}{chance}"
    me = _who_if_known(credentials)
    return f"the sign-in of {name_of(me) if me else 'a person'} at {where}"


def name_of(me: Me) -> str:
    user = _user(me)
    return one_line(str(user["email"] or user["id"]))


def _user(me: Me) -> dict[str, Any]:
    """Whatever the backend says, these and nothing else of it."""
    return {"id": getattr(me.user, "id", None), "email": getattr(me.user, "email", None)}
