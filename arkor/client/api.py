"""`CloudApiClient`: a typed method for each route of the protocol.

What every call has in common is in `http/client.py`; which backend a script talks to is found out in `connect.py`.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

import attrs
import requests

from arkor.client.auth.credentials import Credentials
from arkor.client.auth.oauth import auth_for
from arkor.client.chat_response import ChatResponse, deadline_for
from arkor.client.http.client import TIMEOUT, Auth, HttpClient
from arkor.client.http.decoding import Upload, decode, decode_list, decode_one
from arkor.client.response_format import build_response_format
from arkor.client.streaming.check_stream import ReportStatus, request_check
from arkor.errors import ArkorError, InvalidConfig
from arkor.protocol.accounts import Me, Project
from arkor.protocol.chat import InferenceRequest
from arkor.protocol.codec import to_wire
from arkor.protocol.datasets import BlobDataset, FileDataset
from arkor.protocol.deployments import (
    Deployment,
    DeploymentKey,
    check_auth_mode,
    check_retention,
    check_slug,
    check_target,
    clean_label,
)
from arkor.protocol.jobs import JobConfig, Scope, TrainingJob
from arkor.protocol.run_archive import as_zip
from arkor.results.check import Check

T = TypeVar("T")

#: Seconds to wait for an answer that needs work first: a model to be loaded, a file to be stored.
LONG_TIMEOUT = (10.0, 600.0)

#: How many runs a backend lists at once, at most.
MAX_PAGE_SIZE = 1000


class CloudApiClient:
    """The calls to one backend, in the name of one sign-in.

    `scope` is the project that calls are about unless they name another one. Every method raises `CloudApiError` for
    an error status and `BackendUnavailable` when there is no answer.
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

    def __repr__(self) -> str:
        return f"CloudApiClient({self.base_url!r}, scope={self.scope!r})"

    @property
    def base_url(self) -> str:
        """Where the backend listens, without a slash at the end."""
        return self.http.auth.base_url

    def close(self) -> None:
        """Close the connections that are not in use; the next call opens a new one."""
        self.http.close()

    # Account and projects

    def me(self) -> Me:
        """Who the token belongs to."""
        return decode(Me, self.http.call("GET", "/v1/me"), "user")

    def list_projects(self, *, scope: Scope | None = None) -> list[Project]:
        """The projects of the scope's organisation."""
        query = {"orgSlug": self._scope(scope).org_slug}
        return decode_list(Project, self.http.call("GET", "/v1/projects", query=query), "projects")

    def create_project(self, name: str, slug: str, *, scope: Scope | None = None) -> Project:
        """A new project in the scope's organisation; `CloudApiError` 409 when the slug is taken."""
        query = {"orgSlug": self._scope(scope).org_slug}
        answer = self.http.call("POST", "/v1/projects", query=query, body={"name": name, "slug": slug})
        return decode_one(Project, answer, "project")

    # Jobs

    def create_job(
        self, name: str, config: JobConfig, *, idempotency_key: str | None = None, scope: Scope | None = None
    ) -> TrainingJob:
        """Submit a run. The same `idempotency_key` submits it once, however often it is sent.

        Raises `InvalidConfig` for a value that no backend would take.
        """
        _require_sendable(config)
        body = {"name": name, "config": to_wire(config)}
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        query = self._query(scope)
        answer = self.http.call("POST", "/v1/jobs", query=query, body=body, headers=headers, repeatable=True)
        return decode_one(TrainingJob, answer, "job")

    def check(
        self,
        config: JobConfig,
        *,
        say: ReportStatus | None = None,
        abort_signal: threading.Event | None = None,
        scope: Scope | None = None,
    ) -> Check:
        """Have the backend look at a run without starting it; `say` hears what it is at.

        Takes about half a minute. Raises `InvalidConfig` for a value that no backend would take, and `CloudApiError`
        for a configuration that cannot be trained, and where the backend knows no checks.
        """
        _require_sendable(config)
        body, query = {"config": to_wire(config)}, self._query(scope)
        return request_check(
            partial(self.http.open, "POST", "/v1/jobs/check", query=query, body=body), say, abort_signal
        )

    def list_jobs(
        self, *, limit: int | None = None, id_prefix: str = "", scope: Scope | None = None
    ) -> list[TrainingJob]:
        """The runs of the project, newest first: all of them, or `limit`; those whose id begins with `id_prefix`."""
        page = MAX_PAGE_SIZE if limit is None else min(limit, MAX_PAGE_SIZE)
        return list(islice(self.iter_jobs(page=page, id_prefix=id_prefix, scope=scope), limit)) if page else []

    def iter_jobs(self, *, page: int = 100, id_prefix: str = "", scope: Scope | None = None) -> Iterator[TrainingJob]:
        """The same one by one; `page` of them (1 to 1000) are asked for when they are needed.

        A backend that does not know of pages answers with all at once.
        """
        wanted = {"limit": str(page), **({"idPrefix": id_prefix} if id_prefix else {})}
        before: str | None = None
        while True:
            query = {**self._query(scope), **wanted, **({"before": before} if before else {})}
            answer = self.http.call("GET", "/v1/jobs", query=query)
            yield from (job for job in decode_list(TrainingJob, answer, "jobs") if job.id.startswith(id_prefix))
            behind = answer.get("nextBefore")
            if not isinstance(behind, str) or behind == before:
                return
            before = behind

    def get_job(self, job_id: str, *, scope: Scope | None = None) -> TrainingJob:
        """One run, as it stands; `CloudApiError` 404 when the project has none of this id."""
        path = f"/v1/jobs/{_path_segment('job_id', job_id)}"
        return decode_one(TrainingJob, self.http.call("GET", path, query=self._query(scope)), "job")

    def cancel_job(self, job_id: str, *, scope: Scope | None = None) -> None:
        """Ask the backend to stop the run; `CloudApiError` 409 when it has already ended."""
        path = f"/v1/jobs/{_path_segment('job_id', job_id)}/cancel"
        self.http.call("POST", path, query=self._query(scope))

    def open_event_stream(
        self,
        job_id: str,
        *,
        last_event_id: str | None = None,
        from_now: bool = False,
        timeout: tuple[float, float] = TIMEOUT,
        scope: Scope | None = None,
    ) -> requests.Response:
        """The run's events behind that id as server-sent events, still to be read; sent once, without a retry.

        Without an id, its whole history, or with `from_now` none of it, where the backend knows how. `timeout` is in
        seconds: to connect, and between two bytes.
        """
        path = f"/v1/jobs/{_path_segment('job_id', job_id)}/events/stream"
        cursor = {} if last_event_id is None else {"Last-Event-ID": _header_value("last_event_id", last_event_id)}
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        query = {**self._query(scope), **({"since": "now"} if from_now else {})}
        return self.http.open("GET", path, query=query, headers=headers, raw_headers=cursor, timeout=timeout)

    def export_job(self, job_id: str, file: str | os.PathLike[str], *, scope: Scope | None = None) -> None:
        """Write a zip of a run's folder; `file` is there whole or not at all. `CloudApiError` 409 while it goes on.

        Raises OSError for a file that cannot be written.
        """
        path = f"/v1/jobs/{_path_segment('job_id', job_id)}/export"
        headers = {"Accept": "application/zip"}
        self.http.save(Path(file).expanduser(), "GET", path, query=self._query(scope), headers=headers)

    def import_job(self, path: str | os.PathLike[str], *, scope: Scope | None = None) -> TrainingJob:
        """Make a run from elsewhere one of the project: its folder, or the zip of it. Twice is once.

        Raises `InvalidConfig` for what is no run's folder or cannot be read.
        """
        query, route = self._query(scope), "/v1/jobs/import"
        with as_zip(Path(path).expanduser()) as file:
            upload = _opener("path", file)
            answer = self.http.call("POST", route, query=query, upload=upload, timeout=LONG_TIMEOUT, repeatable=True)
        return decode_one(TrainingJob, answer, "job")

    # Data and inference

    def upload_dataset(self, path: str | os.PathLike[str], *, scope: Scope | None = None) -> BlobDataset:
        """Send a file to the backend, streamed from disk, and return it as a data set that runs can name.

        Raises `InvalidConfig` for a file that cannot be read.
        """
        file = Path(path).expanduser()
        query = {**self._query(scope), "filename": file.name}
        answer = self.http.call(
            "POST",
            "/v1/datasets",
            query=query,
            upload=_opener("dataset.path", file),
            timeout=LONG_TIMEOUT,
            repeatable=True,
        )
        return decode_one(Upload, answer, "dataset").as_source()

    def chat(
        self,
        request: InferenceRequest,
        *,
        abort_signal: threading.Event | None = None,
        scope: Scope | None = None,
    ) -> ChatResponse:
        """One chat completion, streamed or not as the request says; `abort_signal` ends it (`TrainerAborted`).

        Its `response_format` may be a class (attrs, dataclass, Pydantic); the answer's `parsed` is an instance then.
        """
        response_class = request.response_format
        if isinstance(response_class, Mapping):
            response_class = None
        elif response_class is not None:
            request = attrs.evolve(request, response_format=build_response_format(response_class))
        body, query = to_wire(request), self._query(scope)
        headers = {"Accept": "text/event-stream" if request.stream else "application/json"}

        def ask() -> requests.Response:
            route = "/v1/inference/chat"
            return self.http.open("POST", route, query=query, body=body, headers=headers, timeout=LONG_TIMEOUT)

        deadline = deadline_for(abort_signal)
        response = deadline.call(ask, requests.Response.close) if deadline else ask()
        return ChatResponse(response, abort_signal, response_class)

    # Deployments

    def list_deployments(self, *, scope: Scope | None = None) -> list[Deployment]:
        """The deployments of a project."""
        return decode_list(Deployment, self.http.call("GET", "/v1/endpoints", query=self._query(scope)), "deployments")

    def get_deployment(self, deployment_id: str, *, scope: Scope | None = None) -> Deployment:
        """One deployment, by its id; `CloudApiError` 404 when the project has none of it."""
        answer = self.http.call("GET", _deployment_path(deployment_id), query=self._query(scope))
        return decode_one(Deployment, answer, "deployment")

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
        """Put a model behind an address (`target`: see `Deployment`); `CloudApiError` 409 when the slug is taken.

        Raises `InvalidConfig` for a value that no backend would take.
        """
        wanted = to_wire(target)
        check_slug(slug)
        check_target(wanted)
        check_auth_mode(auth_mode)
        check_retention(run_retention_mode, run_retention_days)
        retention = _without_none(runRetentionMode=run_retention_mode, runRetentionDays=run_retention_days)
        body = {"slug": slug, "target": wanted, "authMode": auth_mode, **retention}
        return decode_one(
            Deployment, self.http.call("POST", "/v1/endpoints", query=self._query(scope), body=body), "deployment"
        )

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
        """Change what is given, leave the rest as it is. Raises `InvalidConfig` for what no backend would take."""
        wanted = to_wire(target)
        if target is not None:
            check_target(wanted)
        if auth_mode is not None:
            check_auth_mode(auth_mode)
        check_retention(run_retention_mode, run_retention_days)
        body = _without_none(
            target=wanted,
            authMode=auth_mode,
            enabled=enabled,
            runRetentionMode=run_retention_mode,
            runRetentionDays=run_retention_days,
        )
        answer = self.http.call("PATCH", _deployment_path(deployment_id), query=self._query(scope), body=body)
        return decode_one(Deployment, answer, "deployment")

    def delete_deployment(self, deployment_id: str, *, scope: Scope | None = None) -> None:
        """Take it down; its keys go too."""
        self.http.call("DELETE", _deployment_path(deployment_id), query=self._query(scope))

    def list_deployment_keys(self, deployment_id: str, *, scope: Scope | None = None) -> list[DeploymentKey]:
        """The keys of a deployment, revoked ones too; none has its `plaintext`."""
        answer = self.http.call("GET", f"{_deployment_path(deployment_id)}/keys", query=self._query(scope))
        return decode_list(DeploymentKey, answer, "keys")

    def create_deployment_key(self, deployment_id: str, label: str, *, scope: Scope | None = None) -> DeploymentKey:
        """A new key; its `plaintext` is in this answer and never again. Raises `InvalidConfig` for the label."""
        body = {"label": clean_label(label)}
        path = f"{_deployment_path(deployment_id)}/keys"
        answer = self.http.call("POST", path, query=self._query(scope), body=body)
        return decode_one(DeploymentKey, answer, "key")

    def revoke_deployment_key(self, deployment_id: str, key_id: str, *, scope: Scope | None = None) -> None:
        """The key opens nothing from now on; it stays listed with `enabled` False."""
        path = f"{_deployment_path(deployment_id)}/keys/{_path_segment('key_id', key_id)}"
        self.http.call("DELETE", path, query=self._query(scope))

    # Scope

    def _scope(self, scope: Scope | None) -> Scope:
        chosen = scope or self.scope
        if chosen is None:
            raise ArkorError("this call is about a project; pass scope=Scope(org_slug, project_slug)")
        return chosen

    def _query(self, scope: Scope | None) -> dict[str, str]:
        chosen = self._scope(scope)
        return {"orgSlug": chosen.org_slug, "projectSlug": chosen.project_slug}


# Requests


def _require_sendable(config: JobConfig) -> None:
    config.check()
    if isinstance(config.dataset_source, FileDataset):
        raise InvalidConfig("dataset", "a file goes to the backend first: client.upload_dataset(path)")


def _path_segment(name: str, value: str) -> str:
    """An id as one segment of a path, whatever is in it."""
    if not isinstance(value, str) or not value or value in (".", ".."):
        raise InvalidConfig(name, f"must be an id, not {value!r}")
    return quote(value, safe="", errors="surrogatepass")


def _deployment_path(deployment_id: str) -> str:
    return f"/v1/endpoints/{_path_segment('deployment_id', deployment_id)}"


def _header_value(name: str, value: str) -> bytes:
    if any(c in "\r\n\0" for c in value):
        raise InvalidConfig(name, "must be the id of an event, on one line")
    return value.encode("utf-8", "surrogatepass")


def _without_none(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _opener(field: str, file: Path) -> Callable[[], IO[bytes]]:
    def open_file() -> IO[bytes]:
        try:
            return file.open("rb")
        except OSError as error:
            raise InvalidConfig(field, f"{file} cannot be read ({error.strerror})") from None

    return open_file
