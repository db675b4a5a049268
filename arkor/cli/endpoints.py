"""Deployments: models behind an address that speaks OpenAI's chat completions, and the keys that open them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from arkor.cli.output import as_json_option, format_time, say, say_json, table
from arkor.cli.runs import find_job
from arkor.client.api import CloudApiClient
from arkor.client.connect import connect
from arkor.errors import InvalidConfig
from arkor.formatting import one_line
from arkor.protocol.deployments import AUTH_MODES, RETENTION_MODES, Deployment, DeploymentKey
from arkor.settings import MANAGED_CLOUD_API_URL

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = {"slug": "SLUG", "run_retention_days": "--keep-days", "label": "--label", "target.baseModel": "--base-model"}
_ENDPOINT = "ENDPOINT is the slug of one, or its id."


def _model_options(command: F) -> F:
    """Which weights answer."""
    run = click.option("--run", metavar="JOB[@STEP]", help="The final adapter of a run, or that of a checkpoint.")
    return run(click.option("--base-model", metavar="MODEL", help="A model as it is, without an adapter.")(command))


def _settings_options(command: F) -> F:
    """Who may ask, and how long it is kept what was asked."""
    for option in (
        click.option("--keep-days", type=click.IntRange(min=1), help='So many days. Goes with "days" alone.'),
        click.option("--keep", type=click.Choice(RETENTION_MODES), help="How long questions and answers are kept."),
        click.option("--auth", type=click.Choice(AUTH_MODES), help="Whether a key is asked for."),
    ):
        command = option(command)
    return command


@click.group()
def endpoints() -> None:
    """Put models behind addresses that speak OpenAI's chat completions."""


# Endpoints


@endpoints.command("list")
@as_json_option
def list_endpoints(as_json: bool) -> None:
    """List the endpoints of the project."""
    client = connect()
    found = client.list_deployments()
    if as_json:
        say_json(found)
    elif found:
        rows = [(one.slug, _state(one), one.auth_mode, _model(one), _base_url(client, one)) for one in found]
        say(table(("SLUG", "STATE", "AUTH", "MODEL", "ADDRESS"), rows))
    else:
        say("There are no endpoints yet; arkor endpoints create SLUG --run JOB makes one.")


@endpoints.command()
@click.argument("slug")
@_model_options
@_settings_options
@as_json_option
def create(slug: str, *, run: str | None, base_model: str | None, as_json: bool, **settings: Any) -> None:
    """Put a model behind an address, whose last part is SLUG.

    Without --auth, a key is asked for.
    """
    client = connect()
    target = _target(client, run, base_model)
    if target is None:
        raise click.UsageError("name the model: --run JOB[@STEP] or --base-model MODEL")
    chosen = _settings(settings)
    auth_mode = chosen.pop("auth_mode", "fixed_api_key")
    with _option_errors():
        made = client.create_deployment(slug, target, auth_mode, **chosen)
    if as_json:
        say_json(made)
        return
    say(f"{one_line(made.slug)} answers with {_model(made)} at {_base_url(client, made)}")
    if made.auth_mode == "fixed_api_key":
        say(f"It asks for a key: arkor endpoints keys create {one_line(made.slug)} --label LABEL")


@endpoints.command(epilog=_ENDPOINT)
@click.argument("endpoint")
@_model_options
@_settings_options
@click.option("--enable/--disable", "enabled", default=None, help="Whether it answers at all.")
@as_json_option
def update(
    endpoint: str, *, run: str | None, base_model: str | None, enabled: bool | None, as_json: bool, **settings: Any
) -> None:
    """Change what is named, and leave the rest as it is."""
    client = connect()
    change = {"target": _target(client, run, base_model), "enabled": enabled, **_settings(settings)}
    change = {name: value for name, value in change.items() if value is not None}
    if not change:
        raise click.UsageError("name what to change: --run, --base-model, --auth, --keep, --enable or --disable")
    with _option_errors():
        changed = client.update_deployment(find_endpoint(client, endpoint).id, **change)
    if as_json:
        say_json(changed)
    else:
        say(f"{one_line(changed.slug)} is {_state(changed)} and answers with {_model(changed)}.")


@endpoints.command(epilog=_ENDPOINT)
@click.argument("endpoint")
def delete(endpoint: str) -> None:
    """Take an endpoint down; its keys go too."""
    client = connect()
    found = find_endpoint(client, endpoint)
    client.delete_deployment(found.id)
    say(f"{one_line(found.slug)} is gone, and its keys with it.")


# Keys


@endpoints.group()
def keys() -> None:
    """The keys that open an endpoint."""


@keys.command("list", epilog=_ENDPOINT)
@click.argument("endpoint")
@as_json_option
def list_keys(endpoint: str, as_json: bool) -> None:
    """List the keys of an endpoint; what they are is not shown again."""
    client = connect()
    found = client.list_deployment_keys(find_endpoint(client, endpoint).id)
    if as_json:
        say_json(found)
    elif found:
        say(table(("ID", "LABEL", "BEGINS", "STATE", "CREATED", "LAST USED"), [_key_row(key) for key in found]))
    else:
        say(f"It has no keys yet; arkor endpoints keys create {one_line(endpoint)} --label LABEL makes one.")


@keys.command("create", epilog=_ENDPOINT)
@click.argument("endpoint")
@click.option("--label", required=True, help="What it is for: 1 to 80 characters.")
@as_json_option
def create_key(endpoint: str, label: str, as_json: bool) -> None:
    """Make a key and print it, this once.

    Nothing else goes to standard output: KEY=$(arkor endpoints keys create ENDPOINT --label ci)
    """
    client = connect()
    with _option_errors():
        made = client.create_deployment_key(find_endpoint(client, endpoint).id, label)
    if as_json:
        say_json(made)
    else:
        say(one_line(made.plaintext or ""))
    say(f"This is the key {one_line(made.label)} ({one_line(made.id)}). It cannot be shown again.", err=True)


@keys.command(epilog=_ENDPOINT)
@click.argument("endpoint")
@click.argument("key")
def revoke(endpoint: str, key: str) -> None:
    """Let a key, named by its id, open nothing from now on; it stays listed."""
    client = connect()
    found = find_endpoint(client, endpoint)
    matches = [one for one in client.list_deployment_keys(found.id) if one.id == key]
    if not matches:
        hint = f"arkor endpoints keys list {one_line(found.slug)}"
        raise click.BadParameter(f"{one_line(found.slug)} has no key {key!r}; `{hint}` lists them", param_hint="KEY")
    client.revoke_deployment_key(found.id, key)
    say(f"The key {one_line(matches[0].label)} opens nothing any more.")


def _key_row(key: DeploymentKey) -> tuple[str, ...]:
    state = "active" if key.enabled else "revoked"
    return key.id, key.label, f"{key.prefix}…", state, format_time(key.created_at), format_time(key.last_used_at)


# What is named, and how it is told


def find_endpoint(client: CloudApiClient, given: str) -> Deployment:
    """The endpoint of that slug or id. Raises `click.BadParameter`."""
    found = client.list_deployments()
    matches = [one for one in found if one.slug == given] or [one for one in found if one.id == given]
    if not matches:
        problem = f"there is no endpoint {given!r} in this project; `arkor endpoints list` lists them"
        raise click.BadParameter(problem, param_hint="ENDPOINT")
    return matches[0]


def _target(client: CloudApiClient, run: str | None, base_model: str | None) -> dict[str, Any] | None:
    if run is not None and base_model is not None:
        raise click.UsageError("--run and --base-model name two models; name one")
    if run is None:
        return None if base_model is None else {"kind": "base_model", "baseModel": base_model}
    name, at, step = run.partition("@")
    job_id = find_job(client, name).id
    if not at:
        return {"kind": "adapter", "adapter": {"kind": "final", "jobId": job_id}}
    if not (step.isascii() and step.isdigit() and len(step) < 10):
        raise click.BadParameter(f"the step of a checkpoint is a whole number, not {step!r}", param_hint="--run")
    return {"kind": "adapter", "adapter": {"kind": "checkpoint", "jobId": job_id, "step": int(step)}}


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """What was named of these, by the names of the client."""
    names = {"auth": "auth_mode", "keep": "run_retention_mode", "keep_days": "run_retention_days"}
    return {names[name]: value for name, value in options.items() if value is not None}


@contextmanager
def _option_errors() -> Iterator[None]:
    """A value that no backend would take is named by its option, not by its field."""
    try:
        yield
    except InvalidConfig as error:
        if error.field not in _OPTIONS:
            raise
        raise click.BadParameter(error.problem, param_hint=_OPTIONS[error.field]) from error


def _state(deployment: Deployment) -> str:
    return "enabled" if deployment.enabled else "disabled"


def _model(deployment: Deployment) -> str:
    """`"smollm2-135m-instruct"`, `"the run 1f3c"`, `"the run 1f3c at step 20"`."""
    target = deployment.target
    if target.get("kind") != "adapter":
        return one_line(str(target.get("baseModel", "an unknown kind of model")))
    adapter = target.get("adapter") or {}
    step = f" at step {adapter['step']}" if "step" in adapter else ""
    return one_line(f"the run {adapter.get('jobId')}{step}")


def _base_url(client: CloudApiClient, deployment: Deployment) -> str:
    """What an OpenAI client takes as its `base_url`; in the managed cloud, only its first part is known here."""
    if deployment.url is not None:
        return one_line(deployment.url)
    if client.base_url == MANAGED_CLOUD_API_URL:
        return deployment.custom_domain or f"the domain {one_line(deployment.slug)}.… of the cloud"
    return f"{client.base_url}/e/{one_line(deployment.slug)}/v1"
