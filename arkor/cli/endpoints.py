"""The command group `endpoints`: deployments with an OpenAI-compatible API, and their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from arkor.cli.errors import bad_parameter
from arkor.cli.output import as_json_option, format_time, say, say_result, table
from arkor.cli.runs import find_job
from arkor.client.api import CloudApiClient
from arkor.client.connect import connect
from arkor.errors import InvalidConfig
from arkor.formatting import one_line
from arkor.protocol.deployments import AUTH_MODES, RETENTION_MODES, Deployment, DeploymentKey
from arkor.protocol.model_target import ModelTarget, parse_step
from arkor.studio.model_selection import address_of, target_of

F = TypeVar("F", bound=Callable[..., Any])

#: The option of each field, for error messages.
_OPTIONS = {
    "slug": "SLUG",
    "run_retention_days": "--keep-days",
    "label": "--label",
    "target.baseModel": "--base-model",
    "step": "--run",
}
_ENDPOINT = "ENDPOINT is a slug or an id."
_RETENTION = click.Choice(RETENTION_MODES)


def _settings_options(command: F) -> F:
    for option in (
        click.option("--keep-days", "run_retention_days", type=click.IntRange(min=1), help="Days, with --keep days."),
        click.option("--keep", "run_retention_mode", type=_RETENTION, help="How long conversations are stored."),
        click.option("--auth", "auth_mode", type=click.Choice(AUTH_MODES), help="Whether requests need a key."),
        click.option("--base-model", metavar="MODEL", help="Serve a base model without an adapter."),
        click.option("--run", metavar="JOB[@STEP]", help="Serve a run's final adapter, or one of its checkpoints."),
    ):
        command = option(command)
    return command


@click.group()
def endpoints() -> None:
    """Serve models with an OpenAI-compatible API."""


@endpoints.command("list")
@as_json_option
def list_endpoints(as_json: bool) -> None:
    """List the endpoints of the project."""
    client = connect()
    found = client.list_deployments()
    rows = [
        (item.slug, _state(item), item.auth_mode, _model(item), one_line(address_of(client, item))) for item in found
    ]
    text = table(("SLUG", "STATE", "AUTH", "MODEL", "ADDRESS"), rows)
    say_result(found, as_json, text if found else "No endpoints yet. Create one: arkor endpoints create SLUG --run JOB")


@endpoints.command()
@click.argument("slug")
@_settings_options
@as_json_option
def create(slug: str, *, run: str | None, base_model: str | None, as_json: bool, **settings: Any) -> None:
    """Create an endpoint for a model; SLUG becomes part of its URL.

    Requests need a key unless --auth none is given.
    """
    client = connect()
    target = _target(client, run, base_model)
    if target is None:
        raise click.UsageError("missing model: use --run JOB[@STEP] or --base-model MODEL")
    chosen = {name: value for name, value in settings.items() if value is not None}
    auth_mode = chosen.pop("auth_mode", "fixed_api_key")
    with _option_errors():
        made = client.create_deployment(slug, target.to_wire(), auth_mode, **chosen)
    lines = [f"{one_line(made.slug)} serves {_model(made)} at {one_line(address_of(client, made))}"]
    if made.expires_at:
        lines.append(f"It expires at {format_time(made.expires_at)}.")
    if made.auth_mode == "fixed_api_key":
        lines.append(f"Requests need a key: arkor endpoints keys create {one_line(made.slug)} --label LABEL")
    say_result(made, as_json, *lines)


@endpoints.command(epilog=_ENDPOINT)
@click.argument("endpoint")
@_settings_options
@click.option("--enable/--disable", "enabled", default=None, help="Whether the endpoint accepts requests.")
@as_json_option
def update(
    endpoint: str, *, run: str | None, base_model: str | None, enabled: bool | None, as_json: bool, **settings: Any
) -> None:
    """Change the given settings of an endpoint; the others stay."""
    if all(value is None for value in (run, base_model, enabled, *settings.values())):
        raise click.UsageError("nothing to change: use --run, --base-model, --auth, --keep, --enable or --disable")
    client, found = _find_endpoint(endpoint)
    target = _target(client, run, base_model)
    change = {"target": target and target.to_wire(), "enabled": enabled, **settings}
    change = {name: value for name, value in change.items() if value is not None}
    with _option_errors():
        changed = client.update_deployment(found.id, **change)
    say_result(changed, as_json, f"{one_line(changed.slug)} is {_state(changed)} and serves {_model(changed)}.")


@endpoints.command(epilog=_ENDPOINT)
@click.argument("endpoint")
def delete(endpoint: str) -> None:
    """Delete an endpoint and its keys."""
    client, found = _find_endpoint(endpoint)
    client.delete_deployment(found.id)
    say(f"Deleted {one_line(found.slug)} and its keys.")


@endpoints.group()
def keys() -> None:
    """Manage the API keys of an endpoint."""


@keys.command("list", epilog=_ENDPOINT)
@click.argument("endpoint")
@as_json_option
def list_keys(endpoint: str, as_json: bool) -> None:
    """List the keys of an endpoint, without their secrets."""
    client, deployment = _find_endpoint(endpoint)
    found = client.list_deployment_keys(deployment.id)
    text = table(("ID", "LABEL", "PREFIX", "STATE", "CREATED", "LAST USED"), [_key_row(key) for key in found])
    none = f"No keys yet. Create one: arkor endpoints keys create {one_line(endpoint)} --label LABEL"
    say_result(found, as_json, text if found else none)


@keys.command("create", epilog=_ENDPOINT)
@click.argument("endpoint")
@click.option("--label", required=True, help="A label for the key: 1 to 80 characters.")
@as_json_option
def create_key(endpoint: str, label: str, as_json: bool) -> None:
    """Create a key and print it; it cannot be shown again.

    Standard output contains only the key: KEY=$(arkor endpoints keys create ENDPOINT --label ci)
    """
    client, found = _find_endpoint(endpoint)
    with _option_errors():
        made = client.create_deployment_key(found.id, label)
    say_result(made, as_json, one_line(made.plaintext or ""))
    say(f"This is the key {one_line(made.label)} ({one_line(made.id)}). It cannot be shown again.", err=True)


@keys.command(epilog=_ENDPOINT)
@click.argument("endpoint")
@click.argument("key")
def revoke(endpoint: str, key: str) -> None:
    """Revoke the key with the id KEY; it remains listed."""
    client, found = _find_endpoint(endpoint)
    slug = one_line(found.slug)
    matches = [item for item in client.list_deployment_keys(found.id) if item.id == key]
    if not matches:
        problem = f"{slug} has no key {key!r}; `arkor endpoints keys list {slug}` lists its keys"
        raise click.BadParameter(problem, param_hint="KEY")
    client.revoke_deployment_key(found.id, key)
    say(f"The key {one_line(matches[0].label)} is revoked.")


def _key_row(key: DeploymentKey) -> tuple[str, ...]:
    state = "active" if key.enabled else "revoked"
    return key.id, key.label, f"{key.prefix}…", state, format_time(key.created_at), format_time(key.last_used_at)


def _find_endpoint(given: str) -> tuple[CloudApiClient, Deployment]:
    """Return a client and the endpoint with this slug or id. Raises `click.BadParameter`."""
    client = connect()
    found = client.list_deployments()
    matches = [item for item in found if item.slug == given] or [item for item in found if item.id == given]
    if not matches:
        problem = f"this project has no endpoint {given!r}; `arkor endpoints list` lists its endpoints"
        raise click.BadParameter(problem, param_hint="ENDPOINT")
    return client, matches[0]


def _target(client: CloudApiClient, run: str | None, base_model: str | None) -> ModelTarget | None:
    if run is not None and base_model is not None:
        raise click.UsageError("--run and --base-model cannot be used together")
    if run is None:
        return None if base_model is None else ModelTarget(base_model)
    name, at, step = run.partition("@")
    with _option_errors():
        return ModelTarget.of_run(find_job(client, name).id, parse_step(step) if at else None)


@contextmanager
def _option_errors() -> Iterator[None]:
    """Name the command line's option instead of the field in an error about an invalid value."""
    try:
        yield
    except InvalidConfig as error:
        if error.field not in _OPTIONS:
            raise
        raise bad_parameter(error, _OPTIONS[error.field]) from error


def _state(deployment: Deployment) -> str:
    state = "enabled" if deployment.enabled else "disabled"
    return f"{state} until {format_time(deployment.expires_at)}" if deployment.expires_at else state


def _model(deployment: Deployment) -> str:
    """Describe the target (`"smollm2-135m-instruct"`, `"the run 1f3c at step 20"`)."""
    target = target_of(deployment)
    if target.menu is not None:
        return "a model menu"
    if target.adapter is None:
        return one_line(target.base_model or "")
    step = "" if target.adapter.step is None else f" at step {target.adapter.step}"
    return one_line(f"the run {target.adapter.job_id}{step}")
