"""The commands `login` and `logout`."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import Any

import click
from attrs import evolve

from arkor.cli.errors import EXIT_FAILED, bad_parameter
from arkor.cli.output import as_json_option, is_interactive, only_json_on_stdout, say, say_json
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

OAUTH, ANONYMOUS, TOKEN = "oauth", "anonymous", "token"

_MAX_TOKEN_LENGTH = 64 * 1024  # characters

_NO_BROWSER_IN_CI = (
    "--oauth needs a browser, and CI is set. Use --anonymous, set ARKOR_TOKEN, or sign in on another machine and "
    "provide its credentials.json in ARKOR_HOME, as a secret"
)


@click.command()
@click.option("--oauth", is_flag=True, help="Sign in as a user, in the browser.")
@click.option("--anonymous", is_flag=True, help="Create an anonymous identity with its own organisation.")
@click.option("--token", is_flag=True, help="Prompt for the token from the backend's operator.")
@click.option("--token-stdin", is_flag=True, help="Read that token from standard input.")
@click.option("--no-browser", is_flag=True, help="Print the URL to sign in at; do not open a browser.")
@click.option("--url", help="The backend. Default: ARKOR_CLOUD_API_URL, the backend of the sign-in, the Arkor cloud.")
@as_json_option
def login(url: str | None, *, no_browser: bool, as_json: bool, **flags: bool) -> None:
    """Sign in to a backend; in a terminal, prompts for the method if no option is given.

    The backend of this machine needs no sign-in. A new sign-in replaces the old one.
    """
    before = read_credentials()
    try:
        target = checked_url(url if url is not None else default_cloud_api_url(before))
    except InvalidConfig as error:
        raise bad_parameter(error, "ARKOR_CLOUD_API_URL" if url is None else "--url") from None
    oauth, token = flags["oauth"] or no_browser, flags["token"] or flags["token_stdin"]
    given = [method for method, on in ((OAUTH, oauth), (ANONYMOUS, flags["anonymous"]), (TOKEN, token)) if on]
    with only_json_on_stdout(as_json):
        method = _sign_in_method(target, given)
        if method == TOKEN:
            result = _sign_in_with_token(target, before, _read_token(piped=flags["token_stdin"]))
        elif method == ANONYMOUS:
            result = _sign_in_anonymously(target, before)
        else:
            result = _sign_in_with_browser(target, before, browser=not no_browser)
    if as_json:
        say_json(result)


def _sign_in_method(target: str, given: list[str]) -> str:
    in_ci = os.environ.get("CI", "").strip().lower() not in ("", "0", "false")
    if len(given) > 1:
        raise click.UsageError("--oauth, --anonymous and --token cannot be used together; choose one")
    if given == [OAUTH] and in_ci:
        raise click.UsageError(_NO_BROWSER_IN_CI)
    if given:
        return given[0]
    if in_ci or not is_interactive():
        reason = "CI is set" if in_ci else "standard input is not a terminal"
        raise click.UsageError(
            f"cannot prompt for the sign-in method ({reason}): use --oauth (a user), --anonymous, or --token-stdin "
            "(the token from the backend's operator)"
        )
    return _prompt_method(target)


def _prompt_method(target: str) -> str:
    supports_oauth = sign_in_config(target) is not None
    methods = {OAUTH: "as a user, in the browser"} if supports_oauth else {}
    methods[ANONYMOUS] = "anonymously, with a new organisation"
    methods[TOKEN] = "with a token from the backend's operator"
    say(f"How do you want to sign in to {target}?{'' if supports_oauth else ' (It has no user accounts.)'}")
    numbered = {str(number): method for number, method in enumerate(methods, 1)}
    for number, method in numbered.items():
        say(f"  {number}  {methods[method]}")
    return numbered[click.prompt("Method", type=click.Choice(list(numbered)), default="1")]


def _read_token(*, piped: bool) -> str:
    """Read the token from standard input or a prompt; other users could see it as an argument."""
    if not piped and not is_interactive():
        raise click.UsageError("cannot prompt for the token: standard input is not a terminal; use --token-stdin")
    text = sys.stdin.read(_MAX_TOKEN_LENGTH) if piped else click.prompt("Token", hide_input=True, err=True)
    try:
        return checked_token(text.strip()) or ""
    except CredentialsError:
        raise click.UsageError("invalid token: it is empty or contains characters that tokens never contain") from None


def _sign_in_with_token(target: str, before: Credentials | None, token: str) -> dict[str, Any]:
    credentials = TokenCredentials(token, target)
    try:
        fetch_identity(credentials)  # raises before anything has changed
    except CloudApiError as error:
        if error.status not in (401, 403):
            raise
        raise CredentialsError(f"{target} rejects this token: {error}; nothing has changed") from error
    if target.startswith("http:") and not is_loopback_url(target):
        say(f"The connection to {target} is not encrypted; the token can be intercepted.", err=True)
    _confirm_replacement(before)
    return _save_sign_in(credentials)


def _sign_in_anonymously(target: str, before: Credentials | None) -> dict[str, Any]:
    if isinstance(before, AnonymousCredentials) and before.incidental and url_of(before) == target:
        # Keep the identity that the first call of a script has created.
        return _save_sign_in(evolve(before, incidental=None))
    _confirm_replacement(before)
    return _save_sign_in(ensure_registered(target))


def _sign_in_with_browser(target: str, before: Credentials | None, *, browser: bool) -> dict[str, Any]:
    config = sign_in_config(target)
    if config is None:
        raise ArkorError(
            f"{target} has no user accounts. Sign in anonymously: arkor login --anonymous --url {target}. "
            f"With a token from its operator: arkor login --token --url {target}"
        )
    _confirm_replacement(before)
    return _save_sign_in(sign_in(target, config, announce=partial(_print_sign_in_url, browser), browser=browser))


def _print_sign_in_url(browser: bool, address: str, port: int) -> None:
    if browser:
        say("Opening the browser to sign in. If it does not open, go to:", err=True)
    else:
        say("To sign in, go to:", err=True)
    say(f"\n  {address}\n", err=True)
    if not browser:
        forward = f"ssh -L {port}:127.0.0.1:{port} …"
        say(f"If your browser is on another machine, forward this port first: {forward}", err=True)
    say("Waiting for the sign-in (Ctrl-C cancels) …", err=True)


def _save_sign_in(credentials: Credentials) -> dict[str, Any]:
    """Save credentials unless the backend rejects them; return the JSON document of `whoami`."""
    me = fetch_identity(credentials, only_refusals=True)
    with credentials_lock():
        write_credentials(credentials)
    url = url_of(credentials)
    if isinstance(credentials, AnonymousCredentials):
        say(f"Signed in to {url} anonymously; the organisation is {one_line(credentials.org_slug)}.")
    else:
        say(f"Signed in to {url}{f' as {display_name(me)}' if me else ''}.")
    configured = cloud_api_url_from_env()
    if configured and configured != url:
        say(f"ARKOR_CLOUD_API_URL takes precedence and is {configured}; unset it to use {url}.", err=True)
    return report(credentials.mode, me, url=url, why="credentials file")


def _confirm_replacement(before: Credentials | None) -> None:
    """Print which sign-in is replaced; in a terminal, ask first if it cannot be restored."""
    if before is not None:
        say(f"This replaces {describe_sign_in(before)}.", err=True)
        _confirm(before, asks=isinstance(before, AnonymousCredentials) and is_interactive())


def _loss_warning(credentials: AnonymousCredentials) -> str:
    slug = one_line(credentials.org_slug)
    return f"This cannot be undone: the runs of its organisation {slug} cannot be reached any more."


def _confirm(found: Credentials, *, asks: bool) -> None:
    """Warn of the loss of an anonymous identity. Raises `click.exceptions.Exit` if declined."""
    if isinstance(found, AnonymousCredentials):
        say(_loss_warning(found), err=True)
    if asks and not click.confirm("Continue?"):
        say("Nothing has changed.", err=True)
        raise click.exceptions.Exit(EXIT_FAILED)


@click.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask for confirmation.")
@as_json_option
def logout(force: bool, as_json: bool) -> None:
    """Remove the sign-in.

    Scripts then use the backend of this machine, unless ARKOR_CLOUD_API_URL is set.
    """
    found = read_credentials()
    with only_json_on_stdout(as_json):
        removed = _sign_out(found, force=force)
    if as_json:
        say_json({"removed": removed, "mode": found and found.mode, "url": found and url_of(found)})


def _sign_out(found: Credentials | None, *, force: bool) -> bool:
    """Remove the credentials file. Return False if it does not exist."""
    asks = is_interactive() and not force
    if found is not None and asks:
        say(f"This removes {describe_sign_in(found)}.", err=True)
        _confirm(found, asks=True)
    if not remove_credentials():
        say("You are not signed in.")
        return False
    if found is None:
        say(f"Removed {credentials_path()}, which was invalid.")
        return True
    say(f"Signed out of {one_line(url_of(found))}.")
    if isinstance(found, AnonymousCredentials) and not asks:
        say(_loss_warning(found), err=True)
    return True
