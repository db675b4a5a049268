"""`CloudApiClient`: a typed method for each route of the protocol.

Retries and errors are in `http/client.py`, the choice of a backend in `connect.py`.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import attrs
import requests

from arkor.client.auth.credentials import Credentials
from arkor.client.auth.oauth import auth_for
from arkor.client.chat_response import ChatResponse, deadline_for
from arkor.client.http.auth import Auth
from arkor.client.http.client import TIMEOUT, HttpClient, may_have_succeeded
from arkor.client.http.decoding import decode, decode_list, decode_one
from arkor.client.response_format import build_response_format
from arkor.client.streaming.check_stream import ReportStatus, request_check
from arkor.errors import ArkorError, BackendUnavailable, CloudApiError, InvalidConfig, Problem
from arkor.protocol.accounts import Me, Project
from arkor.protocol.chat import InferenceRequest
from arkor.protocol.codec import camel_case, to_wire
from arkor.protocol.datasets import BlobDataset, FileDataset
from arkor.protocol.deployments import (
    AUTH_MODES,
    Deployment,
    DeploymentKey,
    check_choice,
    check_retention,
    check_slug,
    clean_label,
)
from arkor.protocol.jobs import JobConfig, Scope, TrainingJob
from arkor.protocol.model_target import ModelTarget
from arkor.protocol.run_archive import as_zip
from arkor.results.check import Check
from arkor.settings import is_managed_cloud

#: Timeout for responses that need work first: loading a model, storing a file.
LONG_TIMEOUT = (10.0, 600.0)

#: The remedy for a submission without an answer, where a repetition could start a second run.
_MAY_EXIST = (
    "the run may exist all the same: look for it with `arkor jobs` (client.list_jobs()), and watch it with "
    "Trainer.attach(job_id); to submit it again, make a new Trainer"
)

#: The most runs that a backend lists at once.
MAX_PAGE_SIZE = 1000


class CloudApiClient:
    """The calls to one backend with one set of credentials.

    `scope` is the project that calls refer to unless they name another one. Every method raises
    `CloudApiError` for an error status and `BackendUnavailable` without a response.
    """

    def __init__(
        self,
        base_url: str,
        credentials: Credentials | None = None,
        *,
        scope: Scope | None = None,
        access: Auth | None = None,
    ) -> None:
        self.credentials = credentials
        self.scope = scope
        self.http = HttpClient(access or auth_for(base_url, credentials))
        self._unanswered: set[str] = set()  # keys of submissions whose answers were lost

    def __repr__(self) -> str:
        return f"CloudApiClient({self.base_url!r}, scope={self.scope!r})"

    @property
    def base_url(self) -> str:
        """The backend's URL, without a trailing slash."""
        return self.http.auth.base_url

    def close(self) -> None:
        """Close idle connections; the next call opens a new one."""
        self.http.close()

    # Account and projects

    def me(self) -> Me:
        """Return whom the token belongs to."""
        return decode(Me, self.http.call("GET", "/v1/me"), "user")

    def list_projects(self, *, scope: Scope | None = None) -> list[Project]:
        """Return the projects of the scope's organisation."""
        query = {"orgSlug": self._scope(scope).org_slug}
        return decode_list(Project, self.http.call("GET", "/v1/projects", query=query), "projects")

    def create_project(self, name: str, slug: str, *, scope: Scope | None = None) -> Project:
        """Create a project in the scope's organisation. `CloudApiError` 409: the slug is taken."""
        query = {"orgSlug": self._scope(scope).org_slug}
        response = self.http.call("POST", "/v1/projects", query=query, body={"name": name, "slug": slug})
        return decode_one(Project, response, "project")

    # Jobs

    def create_job(
        self, name: str, config: JobConfig, *, idempotency_key: str | None = None, scope: Scope | None = None
    ) -> TrainingJob:
        """Submit a run, once per `idempotency_key`; raise `InvalidConfig` for an invalid value.

        If the answer is lost, the call is repeated if the backend has shown that it honours the
        key; otherwise the error says that the run may exist, and so does a second call with the
        key.
        """
        _require_sendable(config)
        key = idempotency_key or uuid.uuid4().hex
        if key in self._unanswered and not self.http.honours_idempotency_keys():
            raise BackendUnavailable(f"{self.base_url} did not answer when this run was submitted", remedy=_MAY_EXIST)
        body, headers = {"name": name, "config": self._config_json(config)}, {"Idempotency-Key": key}
        self._unanswered.add(key)
        try:
            response = self._call("POST", "/v1/jobs", scope, body=body, headers=headers)
        except ArkorError as error:
            if not may_have_succeeded(error):
                self._unanswered.discard(key)
            elif not self.http.honours_idempotency_keys():
                raise _doubtful(error) from error.__cause__
            raise
        self._unanswered.discard(key)
        return decode_one(TrainingJob, response, "job")

    def check(
        self,
        config: JobConfig,
        *,
        say: ReportStatus | None = None,
        abort_signal: threading.Event | None = None,
        scope: Scope | None = None,
    ) -> Check:
        """Check a configuration without starting a run; `say` receives the progress.

        Raise `InvalidConfig` for an invalid value, `CloudApiError` for a configuration that cannot
        be trained or a backend without this route.
        """
        _require_sendable(config)
        query, body = self._query(scope), {"config": self._config_json(config)}
        open_stream = partial(self.http.open, "POST", "/v1/jobs/check", query=query, body=body)
        return request_check(open_stream, say, abort_signal)

    def list_jobs(
        self, *, limit: int | None = None, id_prefix: str = "", scope: Scope | None = None
    ) -> list[TrainingJob]:
        """Return the project's runs with that id prefix, newest first, at most `limit`."""
        page = MAX_PAGE_SIZE if limit is None else min(limit, MAX_PAGE_SIZE)
        return list(islice(self.iter_jobs(page=page, id_prefix=id_prefix, scope=scope), limit)) if page else []

    def iter_jobs(self, *, page: int = 100, id_prefix: str = "", scope: Scope | None = None) -> Iterator[TrainingJob]:
        """Yield what `list_jobs` returns, requesting `page` runs (1 to 1000) at a time."""
        query = {**self._query(scope), "limit": str(page), **({"idPrefix": id_prefix} if id_prefix else {})}
        while True:
            response = self.http.call("GET", "/v1/jobs", query=query)
            yield from (job for job in decode_list(TrainingJob, response, "jobs") if job.id.startswith(id_prefix))
            before = response.get("nextBefore")
            if not isinstance(before, str) or before == query.get("before"):
                return
            query["before"] = before

    def get_job(self, job_id: str, *, scope: Scope | None = None) -> TrainingJob:
        """Return a run in its current state. `CloudApiError` 404: the project does not have it."""
        response = self._call("GET", _job_path(job_id), scope)
        job = decode_one(TrainingJob, response, "job")
        return attrs.evolve(job, events=response["events"]) if "events" in response else job

    def cancel_job(self, job_id: str, *, scope: Scope | None = None) -> None:
        """Ask the backend to stop the run.

        `CloudApiError` 409 if it has already ended; the managed cloud may accept the call then.
        """
        self._call("POST", f"{_job_path(job_id)}/cancel", scope)

    def open_event_stream(
        self,
        job_id: str,
        *,
        last_event_id: str | None = None,
        from_now: bool = False,
        timeout: tuple[float, float] = TIMEOUT,
        scope: Scope | None = None,
    ) -> requests.Response:
        """Return the unread event stream of a run after `last_event_id`, without a retry.

        Without an id, the stream begins with the whole history, or if `from_now` and the backend
        supports it, with the next event. `timeout` is in seconds: to connect, and between two
        bytes.
        """
        path = f"{_job_path(job_id)}/events/stream"
        cursor = {}
        if last_event_id is not None:
            if any(c in "\r\n\0" for c in last_event_id):
                raise InvalidConfig("last_event_id", "must be the id of an event, on one line")
            cursor["Last-Event-ID"] = last_event_id.encode("utf-8", "surrogatepass")
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        query = {**self._query(scope), **({"since": "now"} if from_now else {})}
        return self.http.open("GET", path, query=query, headers=headers, raw_headers=cursor, timeout=timeout)

    def export_job(self, job_id: str, file: str | os.PathLike[str], *, scope: Scope | None = None) -> None:
        """Write a zip of a run's folder to `file` atomically.

        Raise `CloudApiError` 409 while it is running, OSError if the file cannot be written.
        """
        headers = {"Accept": "application/zip"}
        path = f"{_job_path(job_id)}/export"
        self.http.save(Path(file).expanduser(), "GET", path, query=self._query(scope), headers=headers)

    def import_job(self, path: str | os.PathLike[str], *, scope: Scope | None = None) -> TrainingJob:
        """Import a run from its folder or the zip of it; importing it again changes nothing.

        Raise `InvalidConfig` if it is not a run's folder or cannot be read.
        """
        with as_zip(Path(path).expanduser()) as file:
            response = self._upload("/v1/jobs/import", "path", file, self._query(scope))
        return decode_one(TrainingJob, response, "job")

    # Data and inference

    def upload_dataset(self, path: str | os.PathLike[str], *, scope: Scope | None = None) -> BlobDataset:
        """Upload a file as a source of rows; raise `InvalidConfig` if it cannot be read."""
        file = Path(path).expanduser()
        response = self._upload("/v1/datasets", "dataset.path", file, {**self._query(scope), "filename": file.name})
        return BlobDataset(decode_one(BlobDataset, response, "dataset").url)

    def chat(
        self, request: InferenceRequest, *, abort_signal: threading.Event | None = None, scope: Scope | None = None
    ) -> ChatResponse:
        """Send a chat completion; `abort_signal` ends it with `TrainerAborted`.

        If `response_format` is a class (attrs, dataclass, Pydantic), `parsed` of the response is an
        instance of it.
        """
        response_class = request.response_format
        if isinstance(response_class, Mapping):
            response_class = None
        elif response_class is not None:
            request = attrs.evolve(request, response_format=build_response_format(response_class))
        query, body = self._query(scope), to_wire(request)
        headers = {"Accept": "text/event-stream" if request.stream else "application/json"}

        def send() -> requests.Response:
            path = "/v1/inference/chat"
            return self.http.open("POST", path, query=query, body=body, headers=headers, timeout=LONG_TIMEOUT)

        deadline = deadline_for(abort_signal)
        response = deadline.call(send, requests.Response.close) if deadline else send()
        return ChatResponse(response, abort_signal, response_class)

    # Deployments

    def list_deployments(self, *, scope: Scope | None = None) -> list[Deployment]:
        """Return the deployments of the project."""
        return decode_list(Deployment, self._call("GET", "/v1/endpoints", scope), "deployments")

    def get_deployment(self, deployment_id: str, *, scope: Scope | None = None) -> Deployment:
        """Return a deployment; `CloudApiError` 404 if the project does not have it."""
        return decode_one(Deployment, self._call("GET", _deployment_path(deployment_id), scope), "deployment")

    def create_deployment(
        self,
        slug: str,
        target: Mapping[str, Any],
        auth_mode: str,
        *,
        run_retention_mode: str | None = None,
        run_retention_days: int | None = None,
        scope: Scope | None = None,
    ) -> Deployment:
        """Deploy a model; `target`: see `Deployment`.

        Raise `InvalidConfig` for an invalid value, `CloudApiError` 409 if the slug is taken.
        """
        check_slug(slug)
        ModelTarget.parse(to_wire(target))
        check_choice("auth_mode", auth_mode, AUTH_MODES)
        retention = {"run_retention_mode": run_retention_mode, "run_retention_days": run_retention_days}
        body = _deployment_body(slug=slug, target=target, auth_mode=auth_mode, **retention)
        response = self._call("POST", "/v1/endpoints", scope, body=body)
        return decode_one(Deployment, response, "deployment")

    def update_deployment(
        self,
        deployment_id: str,
        *,
        target: Mapping[str, Any] | None = None,
        auth_mode: str | None = None,
        enabled: bool | None = None,
        run_retention_mode: str | None = None,
        run_retention_days: int | None = None,
        scope: Scope | None = None,
    ) -> Deployment:
        """Change the given fields, keep the others. Raise `InvalidConfig` for an invalid value."""
        retention = {"run_retention_mode": run_retention_mode, "run_retention_days": run_retention_days}
        body = _deployment_body(target=target, auth_mode=auth_mode, enabled=enabled, **retention)
        response = self._call("PATCH", _deployment_path(deployment_id), scope, body=body)
        return decode_one(Deployment, response, "deployment")

    def delete_deployment(self, deployment_id: str, *, scope: Scope | None = None) -> None:
        """Delete a deployment and its keys."""
        self._call("DELETE", _deployment_path(deployment_id), scope)

    def list_deployment_keys(self, deployment_id: str, *, scope: Scope | None = None) -> list[DeploymentKey]:
        """Return all keys of a deployment, without their `plaintext`."""
        return decode_list(DeploymentKey, self._call("GET", f"{_deployment_path(deployment_id)}/keys", scope), "keys")

    def create_deployment_key(self, deployment_id: str, label: str, *, scope: Scope | None = None) -> DeploymentKey:
        """Create a key, with its `plaintext`; raise `InvalidConfig` for an invalid label."""
        path, body = f"{_deployment_path(deployment_id)}/keys", {"label": clean_label(label)}
        return decode_one(DeploymentKey, self._call("POST", path, scope, body=body), "key")

    def revoke_deployment_key(self, deployment_id: str, key_id: str, *, scope: Scope | None = None) -> None:
        """Revoke a key; it remains listed with `enabled` False."""
        self._call("DELETE", f"{_deployment_path(deployment_id)}/keys/{_path_segment('key_id', key_id)}", scope)

    # Requests

    def _scope(self, scope: Scope | None) -> Scope:
        chosen = scope or self.scope
        if chosen is None:
            raise ArkorError("this call needs a project", remedy="pass scope=Scope(org_slug, project_slug)")
        return chosen

    def _query(self, scope: Scope | None) -> dict[str, str]:
        chosen = self._scope(scope)
        return {"orgSlug": chosen.org_slug, "projectSlug": chosen.project_slug}

    def _config_json(self, config: JobConfig) -> dict[str, Any]:
        body: dict[str, Any] = config.to_cloud_wire() if is_managed_cloud(self.base_url) else to_wire(config)
        return body

    def _call(self, method: str, path: str, scope: Scope | None, **rest: Any) -> dict[str, Any]:
        return self.http.call(method, path, query=self._query(scope), **rest)

    def _upload(self, path: str, field: str, file: Path, query: Mapping[str, str]) -> dict[str, Any]:
        def open_file() -> IO[bytes]:
            try:
                return file.open("rb")
            except OSError as error:
                raise InvalidConfig(field, f"{file} cannot be read ({error.strerror})") from None

        return self.http.call("POST", path, query=query, upload=open_file, timeout=LONG_TIMEOUT, repeatable=True)


def _doubtful(error: ArkorError) -> ArkorError:
    """Return the error of a submission that the backend may have carried out."""
    if not isinstance(error, CloudApiError):
        return type(error)(error.problem, remedy=_MAY_EXIST)
    message = str(Problem(error.message, remedy=_MAY_EXIST))
    known = {name: getattr(error, name) for name in ("method", "path", "request_id", "retry_after", "problem", "field")}
    return CloudApiError(error.status, error.code, message, remedy=_MAY_EXIST, **known)


def _require_sendable(config: JobConfig) -> None:
    config.check()
    if isinstance(config.dataset_source, FileDataset):
        raise InvalidConfig("dataset", "a file must be uploaded first: client.upload_dataset(path)")


def _deployment_body(**settings: Any) -> dict[str, Any]:
    """Return the settings that are not None as JSON; raise `InvalidConfig` for an invalid value."""
    given = {name: value for name, value in settings.items() if value is not None}
    if "target" in given:
        ModelTarget.parse(to_wire(given["target"]))
    if "auth_mode" in given:
        check_choice("auth_mode", given["auth_mode"], AUTH_MODES)
    check_retention(given.get("run_retention_mode"), given.get("run_retention_days"))
    return {camel_case(name): to_wire(value) for name, value in given.items()}


def _path_segment(name: str, value: str) -> str:
    """Return an id, whatever characters it has, as one segment of a path."""
    if not isinstance(value, str) or not value or value in (".", ".."):
        raise InvalidConfig(name, f"must be an id, not {value!r}")
    return quote(value, safe="", errors="surrogatepass")


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{_path_segment('job_id', job_id)}"


def _deployment_path(deployment_id: str) -> str:
    return f"/v1/endpoints/{_path_segment('deployment_id', deployment_id)}"
