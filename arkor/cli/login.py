"""Signing in and out."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from functools import partial
from typing import Any

import click
from attrs import evolve

from arkor.cli.errors import EXIT_FAILED
from arkor.cli.output import as_json_option, is_interactive, say, say_json
from arkor.cli.whoami import describe_sign_in, display_name, fetch_identity, report
from arkor.client.auth.bootstrap import ensure_registered
from arkor.client.auth.browser_login import sign_in, sign_in_config
from arkor.client.auth.credentials import (
    AnonymousCredentials,
    Credentials,
    TokenCredentials,
    credentials_lock,
    credentials_path,
    default_cloud_api_url,
    read_credentials,
    remove_credentials,
    url_of,
    write_credentials,
)
from arkor.client.http.auth import checked_token
from arkor.client.http.urls import checked_url, is_loopback_url
from arkor.errors import ArkorError, CloudApiError, CredentialsError, InvalidConfig
from arkor.formatting import one_line
from arkor.settings import cloud_api_url_from_env

PERSON, ANONYMOUS, TOKEN = "person", "anonymous", "token"

_MAX_TOKEN_LENGTH = 64 * 1024  # characters

_NO_LOGIN_IN_CI = (
    "--oauth needs a person at a browser, and CI is set here; use --anonymous, set ARKOR_TOKEN, or sign in on a "
    "machine of yours and bring its credentials.json along as a secret, in ARKOR_HOME"
)
_NOT_INTERACTIVE = "name --oauth (a person), --anonymous, or --token-stdin (the token of its operator)"


# Signing in


@click.command()
@click.option("--oauth", is_flag=True, help="As a person, in the browser.")
@click.option("--anonymous", is_flag=True, help="As nobody in particular: a new identity with its own organisation.")
@click.option("--token", is_flag=True, help="With the token of the backend's operator, which is asked for.")
@click.option("--token-stdin", is_flag=True, help="The same; the token is read from standard input.")
@click.option("--no-browser", is_flag=True, help="Print the address to sign in at, and open nothing.")
@click.option("--url", help="The backend. Default: ARKOR_CLOUD_API_URL, the one of the sign-in, the Arkor cloud.")
@as_json_option
def login(url: str | None, *, no_browser: bool, as_json: bool, **flags: bool) -> None:
    """Sign in to a backend; without an option, a terminal asks how.

    The backend of this machine needs no sign-in. One that is there already is replaced.
    """
    before = read_credentials()
    target = _target(url, before)
    person, token = flags["oauth"] or no_browser, flags["token"] or flags["token_stdin"]
    named = [way for way, given in ((PERSON, person), (ANONYMOUS, flags["anonymous"]), (TOKEN, token)) if given]
    with _stdout_for(as_json):
        way = _sign_in_method(target, named)
        if way == TOKEN:
            kept = _sign_in_with_token(target, before, _token(piped=flags["token_stdin"]))
        elif way == ANONYMOUS:
            kept = _sign_in_anonymously(target, before)
        else:
            kept = _sign_in_as_person(target, before, browser=not no_browser)
    if as_json:
        say_json(kept)


def _stdout_for(as_json: bool) -> AbstractContextManager[Any]:
    """Where a program reads, what is said to a person, questions included, goes to stderr."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def _target(url: str | None, before: Credentials | None) -> str:
    try:
        return checked_url(url if url is not None else default_cloud_api_url(before))
    except InvalidConfig as error:
        raise click.BadParameter(error.problem, param_hint="ARKOR_CLOUD_API_URL" if url is None else "--url") from None


def _sign_in_method(target: str, named: list[str]) -> str:
    """How to sign in; asks where no way was named."""
    if len(named) > 1:
        raise click.UsageError("a person, nobody and the holder of a token cannot sign in at once; name one way")
    if named == [PERSON] and _in_ci():
        raise click.UsageError(_NO_LOGIN_IN_CI)
    if named:
        return named[0]
    if _in_ci() or not is_interactive():
        ci_note = " (CI is set)" if _in_ci() else ""
        raise click.UsageError(f"there is nobody to ask how to sign in{ci_note}: {_NOT_INTERACTIVE}")
    return _ask_method(target)


def _ask_method(target: str) -> str:
    supports_oauth = sign_in_config(target) is not None
    options = [(PERSON, "as a person, in the browser")] if supports_oauth else []
    options += [
        (ANONYMOUS, "anonymously, with an organisation of its own"),
        (TOKEN, "with a token that its operator gave you"),
    ]
    say(f"How do you want to sign in to {target}?{'' if supports_oauth else ' (It knows no persons.)'}")
    numbers = [str(number + 1) for number in range(len(options))]
    for number, (_, prompt_line) in zip(numbers, options, strict=True):
        say(f"  {number}  {prompt_line}")
    chosen = click.prompt("Which", type=click.Choice(numbers), default="1")
    return options[int(chosen) - 1][0]


def _in_ci() -> bool:
    return os.environ.get("CI", "").strip().lower() not in ("", "0", "false")


def _token(*, piped: bool) -> str:
    """The token as it is typed or piped; it is never part of a command, which others can see."""
    if not piped and not is_interactive():
        raise click.UsageError("there is nobody to ask for the token; hand it over with --token-stdin")
    text = sys.stdin.read(_MAX_TOKEN_LENGTH) if piped else click.prompt("Token", hide_input=True, err=True)
    try:
        return checked_token(text.strip()) or ""
    except CredentialsError:
        raise click.UsageError("this is no token: it is empty, or has characters that no token has") from None


def _sign_in_with_token(target: str, before: Credentials | None, token: str) -> dict[str, Any]:
    credentials = TokenCredentials(token, target)
    try:
        fetch_identity(credentials)  # whatever is wrong with it, nothing changes
    except CloudApiError as error:
        if error.status not in (401, 403):
            raise
        raise CredentialsError(f"{target} refuses this token: {error}; nothing has changed") from error
    if target.startswith("http:") and not is_loopback_url(target):
        say(f"The connection to {target} is not encrypted: the token can be read on the way.", err=True)
    _confirm_replacement(before)
    return _save_sign_in(credentials)


def _sign_in_anonymously(target: str, before: Credentials | None) -> dict[str, Any]:
    if isinstance(before, AnonymousCredentials) and before.incidental and url_of(before) == target:
        return _save_sign_in(evolve(before, incidental=None))  # a script got it on its way; from now on it is asked for
    _confirm_replacement(before)
    return _save_sign_in(ensure_registered(target))


def _sign_in_as_person(target: str, before: Credentials | None, *, browser: bool) -> dict[str, Any]:
    config = sign_in_config(target)
    if config is None:
        alternatives = f"arkor login --anonymous --url {target}, or with a token of its operator: arkor login --token"
        raise ArkorError(f"{target} knows no persons: {alternatives} --url {target}")
    _confirm_replacement(before)
    return _save_sign_in(sign_in(target, config, announce=partial(_print_sign_in_url, browser), browser=browser))


def _print_sign_in_url(browser: bool, address: str, port: int) -> None:
    if browser:
        say("The browser opens for you to sign in; if it does not, go to:", err=True)
    else:
        say("To sign in, go to:", err=True)
    say(f"\n  {address}\n", err=True)
    if not browser:
        forward = f"ssh -L {port}:127.0.0.1:{port} …"
        say(f"If that browser is on another machine, let it come back here first: {forward}", err=True)
    say("Waiting for you to come back (Ctrl-C leaves) …", err=True)


def _save_sign_in(credentials: Credentials) -> dict[str, Any]:
    """Write a new sign-in down, once it is sure that the backend does not refuse it; what `whoami` will say of it."""
    me = fetch_identity(credentials, only_refusals=True)
    with credentials_lock():
        write_credentials(credentials)
    url = url_of(credentials)
    if isinstance(credentials, AnonymousCredentials):
        say(f"Signed in to {url} anonymously; the organisation is {one_line(credentials.org_slug)}.")
    else:
        say(f"Signed in to {url}{f' as {display_name(me)}' if me else ''}.")
    named = cloud_api_url_from_env()
    if named and named != url:
        say(f"ARKOR_CLOUD_API_URL names another backend, {named}, and goes first; unset it to use this one.", err=True)
    return report(credentials.mode, me, url=url, why="credentials file")


# What was there before


def _confirm_replacement(before: Credentials | None) -> None:
    """Say whose sign-in ends with the new one; ask where something is lost with it, and somebody is there."""
    if before is None:
        return
    say(f"This replaces {describe_sign_in(before)}.", err=True)
    if isinstance(before, AnonymousCredentials):
        say(_loss_warning(before), err=True)
        if is_interactive():
            _confirm("Go on?")


def _loss_warning(credentials: AnonymousCredentials) -> str:
    return (
        f"Nobody can sign in as it again: the runs of its organisation {one_line(credentials.org_slug)} "
        "cannot be reached any more."
    )


def _confirm(question: str) -> None:
    """Ends the command where the person says no."""
    if not click.confirm(question):
        say("Nothing has changed.", err=True)
        raise click.exceptions.Exit(EXIT_FAILED)


# Signing out


@click.command()
@click.option("-f", "--force", is_flag=True, help="Ask nothing.")
@as_json_option
def logout(force: bool, as_json: bool) -> None:
    """Remove the sign-in.

    Scripts use the backend of this machine again, unless ARKOR_CLOUD_API_URL names another.
    """
    found = read_credentials()
    with _stdout_for(as_json):
        removed = _sign_out(found, force=force)
    if as_json:
        gone = {"mode": found.mode, "url": url_of(found)} if found else {"mode": None, "url": None}
        say_json({"removed": removed, **gone})


def _sign_out(found: Credentials | None, *, force: bool) -> bool:
    """Whether there was anything to remove."""
    if found is not None and is_interactive() and not force:
        say(f"This removes {describe_sign_in(found)}.", err=True)
        if isinstance(found, AnonymousCredentials):
            say(_loss_warning(found), err=True)
        _confirm("Go on?")
    if not remove_credentials():
        say("You are not signed in.")
        return False
    if found is None:
        say(f"{credentials_path()} made no sense and is removed.")
        return True
    say(f"Signed out of {one_line(url_of(found))}.")
    if isinstance(found, AnonymousCredentials) and (force or not is_interactive()):
        say(_loss_warning(found), err=True)
    return True
