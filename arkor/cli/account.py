"""Who one is: sign in, sign out, and who and where one is now."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

import click

from arkor.accounts import Me, Org
from arkor.cli.errors import FAILED
from arkor.cli.text import in_a_terminal, say
from arkor.client.api import CloudApiClient
from arkor.client.connect import choose_backend
from arkor.client.credentials import (
    AnonymousCredentials,
    Credentials,
    OAuthCredentials,
    check_backend,
    credentials_path,
    default_cloud_api_url,
    only_writer,
    read_credentials,
    remove_credentials,
    request_anonymous_token,
    url_of,
    write_credentials,
)
from arkor.client.embedded import ask_health, read_listing
from arkor.client.http import Access, checked_url
from arkor.client.oauth import access_for
from arkor.client.sign_in import sign_in, sign_in_config
from arkor.display.tally import one_line
from arkor.errors import ArkorError, CloudApiError, CredentialsError, InvalidConfig
from arkor.settings import arkor_home, cloud_api_url_from_env

#: Seconds within which a call is tried again whose answer is only told.
_RETRY_SECONDS = 3.0
#: Seconds for the backend of this machine to say that it is well.
_HEALTH_SECONDS = 5.0

_NO_LOGIN_IN_CI = (
    "--oauth needs a person at a browser, and CI is set here; use --anonymous, or sign in on a machine of yours and "
    "bring its credentials.json along as a secret, in ARKOR_HOME"
)


# Signing in


@click.command()
@click.option("--oauth", is_flag=True, help="As a person, in the browser.")
@click.option("--anonymous", is_flag=True, help="As nobody in particular: a new identity with its own organisation.")
@click.option("--no-browser", is_flag=True, help="Print the address to sign in at, and open nothing.")
@click.option("--url", help="The backend. Default: ARKOR_CLOUD_API_URL, the one of the sign-in, the Arkor cloud.")
def login(oauth: bool, anonymous: bool, no_browser: bool, url: str | None) -> None:
    """Sign in to a backend; without an option, a terminal asks how.

    The backend of this machine needs no sign-in. One that is there already is replaced.
    """
    before = read_credentials()
    target = _target(url, before)
    if not _as_person(target, oauth=oauth or no_browser, anonymous=anonymous):
        _agree_to_replace(before)
        _keep(request_anonymous_token(target))
    else:
        config = sign_in_config(target)
        if config is None:
            raise ArkorError(_only_anonymous(target))
        _agree_to_replace(before)
        opens = not no_browser
        _keep(sign_in(target, config, tell=partial(_tell_where, opens), browser=opens))


def _target(url: str | None, before: Credentials | None) -> str:
    try:
        return checked_url(url if url is not None else default_cloud_api_url(before))
    except InvalidConfig as error:
        raise click.BadParameter(error.problem, param_hint="ARKOR_CLOUD_API_URL" if url is None else "--url") from None


def _as_person(target: str, *, oauth: bool, anonymous: bool) -> bool:
    """Which way to sign in; asks where neither was named."""
    if oauth and anonymous:
        raise click.UsageError("--anonymous needs no browser and no person; name one way to sign in")
    if oauth and _in_ci():
        raise click.UsageError(_NO_LOGIN_IN_CI)
    if oauth or anonymous:
        return oauth
    if _in_ci():
        raise click.UsageError("there is nobody to ask how to sign in (CI is set): name --anonymous")
    if not in_a_terminal():
        raise click.UsageError("there is nobody to ask how to sign in: name --oauth (a person) or --anonymous")
    return _ask(target)


def _ask(target: str) -> bool:
    if sign_in_config(target) is None:
        say(f"{target} knows no persons; one signs in there anonymously.")
        _confirm("Sign in anonymously?", default=True)
        return False
    say(f"How do you want to sign in to {target}?")
    say("  1  as a person, in the browser")
    say("  2  anonymously, with an organisation of its own")
    return bool(click.prompt("Which", type=click.Choice(["1", "2"]), default="1") == "1")


def _confirm(question: str, *, default: bool = False) -> None:
    """Ends the command where the person says no."""
    if not click.confirm(question, default=default):
        say("Nothing has changed.", err=True)
        raise click.exceptions.Exit(FAILED)


def _in_ci() -> bool:
    return os.environ.get("CI", "").strip().lower() not in ("", "0", "false")


def _only_anonymous(target: str) -> str:
    return f"{target} knows no persons, only anonymous identities: arkor login --anonymous --url {target}"


def _agree_to_replace(before: Credentials | None) -> None:
    """Say whose sign-in ends with the new one; ask where something is lost with it, and somebody is there."""
    if before is None:
        return
    say(f"This replaces {_whose(before)}.", err=True)
    if isinstance(before, AnonymousCredentials):
        say(_what_is_lost(before), err=True)
        if in_a_terminal():
            _confirm("Go on?")


def _what_is_lost(credentials: AnonymousCredentials) -> str:
    return (
        f"Nobody can sign in as it again: the runs of its organisation {one_line(credentials.org_slug)} "
        "cannot be reached any more."
    )


def _whose(credentials: Credentials) -> str:
    if isinstance(credentials, AnonymousCredentials):
        return f"the anonymous sign-in at {one_line(url_of(credentials))}"
    me = _who_with(credentials)
    return f"the sign-in of {_name(me) if me else 'a person'} at {one_line(url_of(credentials))}"


def _tell_where(browser: bool, address: str, port: int) -> None:
    if browser:
        say("The browser opens for you to sign in; if it does not, go to:", err=True)
    else:
        say("To sign in, go to:", err=True)
    say(f"\n  {address}\n", err=True)
    if not browser:
        forward = f"ssh -L {port}:127.0.0.1:{port} …"
        say(f"If that browser is on another machine, let it come back here first: {forward}", err=True)
    say("Waiting for you to come back (Ctrl-C leaves) …", err=True)


def _keep(credentials: Credentials) -> None:
    """Write a new sign-in down, once it is sure that the backend does not refuse it."""
    me = _who_with(credentials, refusal_is_one=True)
    with only_writer():
        write_credentials(credentials)
    url = url_of(credentials)
    if isinstance(credentials, AnonymousCredentials):
        say(f"Signed in to {url} anonymously; the organisation is {one_line(credentials.org_slug)}.")
    else:
        say(f"Signed in to {url}{f' as {_name(me)}' if me else ''}.")
    named = cloud_api_url_from_env()
    if named and named != url:
        say(f"ARKOR_CLOUD_API_URL names another backend, {named}, and goes first; unset it to use this one.", err=True)


def _who_with(credentials: Credentials, *, refusal_is_one: bool = False) -> Me | None:
    """Who that is, as far as the backend says; a token that it refuses is an error if that is asked for."""
    url = url_of(credentials)
    try:
        client = CloudApiClient(url, credentials, access=Access(url, credentials.bearer))
        client.http.retry_budget = _RETRY_SECONDS
        return client.me()
    except CloudApiError as error:
        if refusal_is_one and error.status in (401, 403):
            raise
    except ArkorError:
        pass
    return None


def _name(me: Me) -> str:
    user = _user(me)
    return one_line(str(user["email"] or user["id"]))


def _user(me: Me) -> dict[str, Any]:
    """Whatever the backend says, these and nothing else of it."""
    return {"id": getattr(me.user, "id", None), "email": getattr(me.user, "email", None)}


# Signing out


@click.command()
@click.option("-f", "--force", is_flag=True, help="Ask nothing.")
def logout(force: bool) -> None:
    """Remove the sign-in.

    Scripts use the backend of this machine again, unless ARKOR_CLOUD_API_URL names another.
    """
    found = read_credentials()
    if found is not None and in_a_terminal() and not force:
        say(f"This removes {_whose(found)}.", err=True)
        if isinstance(found, AnonymousCredentials):
            say(_what_is_lost(found), err=True)
        _confirm("Go on?")
    if not remove_credentials():
        say("You are not signed in.")
    elif found is None:
        say(f"{credentials_path()} made no sense and is removed.")
    else:
        say(f"Signed out of {one_line(url_of(found))}.")
        if isinstance(found, AnonymousCredentials) and (force or not in_a_terminal()):
            say(_what_is_lost(found), err=True)


# Who, where, why


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of lines.")
def whoami(as_json: bool) -> None:
    """Say who you are, in which organisations, at which backend, and why there.

    Nothing is started, and nobody is signed in by asking.
    """
    chosen = choose_backend()
    report = _here() if chosen is None else _elsewhere(*chosen)
    if as_json:
        say(json.dumps(report, indent=2, ensure_ascii=False))
        return
    say(_greeting(report))
    if report["orgs"]:
        say(f"Organisations: {', '.join(one_line(str(org['slug'])) for org in report['orgs'])}")
    say(f"Backend: {_place(report['backend'])}")


def _report(mode: str | None, me: Me | None, **backend: Any) -> dict[str, Any]:
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
            me = _who_with(owner)
        else:
            listing = None
    except TimeoutError:  # it is there, but has no time for us
        pass
    url = listing.url if listing else None
    return _report("embedded", me, url=url, why="embedded", running=listing is not None)


def _elsewhere(url: str, why: str) -> dict[str, Any]:
    found = read_credentials()
    if found is None:
        return _report(None, None, url=url, why=why)
    access = access_for(url, check_backend(found, url), from_file=True, why=why)
    client = CloudApiClient(url, found, access=access)
    try:
        me = client.me()
    except CloudApiError as error:
        if error.status != 401:
            raise
        raise CredentialsError(
            f"{url} does not know your sign-in any more ({error}); sign in again: arkor login"
        ) from error
    mode = OAuthCredentials.mode if isinstance(found, OAuthCredentials) else AnonymousCredentials.mode
    return _report(mode, me, url=client.base_url, why=client.http.access.why)


def _greeting(report: dict[str, Any]) -> str:
    user = report["user"] or {}
    if report["mode"] == "oauth":
        return one_line(str(user.get("email") or user.get("id")))
    if report["mode"] == "anon":
        return f"An anonymous identity, {one_line(str(user.get('id')))}"
    if report["mode"] == "embedded":
        return "The owner of this machine's backend, which needs no sign-in"
    return "Nobody yet: the first call there gets an anonymous identity (to be a person: arkor login)"


def _place(backend: dict[str, Any]) -> str:
    if backend["why"] == "embedded":
        where = backend["url"] or "none runs now, it is started when it is needed"
        return f"the one of this machine ({where}), for neither ARKOR_CLOUD_API_URL nor a sign-in names another"
    because = f"the sign-in in {credentials_path()}" if backend["why"] == "credentials file" else backend["why"]
    return f"{one_line(str(backend['url']))}, because of {because}"
