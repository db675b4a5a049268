"""Call a backend with `requests`, without our client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import requests
from attrs import field, frozen

from tests.conftest import Backend

LOCAL = {"orgSlug": "local", "projectSlug": "default"}
CONFIG = {"model": "scripted/model", "datasetSource": {"type": "huggingface", "name": "rows"}}


@frozen
class Frame:
    """One server-sent event; `at` is when its last line came (`time.time()`)."""

    id: str | None
    event: str
    data: dict[str, Any]
    at: float = field(factory=time.time, eq=False)


@frozen
class Caller:
    """A caller with a token and a scope."""

    url: str
    token: str | None
    scope: dict[str, str] = field(factory=lambda: dict(LOCAL))

    def call(self, method: str, path: str, *, params: dict[str, str] | None = None, **rest: Any) -> requests.Response:
        headers = {**({"Authorization": f"Bearer {self.token}"} if self.token else {}), **rest.pop("headers", {})}
        query = self.scope if params is None else params
        return requests.request(method, self.url + path, params=query, headers=headers, timeout=30, **rest)

    def submit(self, *, name: str = "a run", key: str | None = None, **config: Any) -> str:
        headers = {"Idempotency-Key": key} if key else {}
        body = {"name": name, "config": {**CONFIG, **config}}
        answer = self.call("POST", "/v1/jobs", json=body, headers=headers)
        assert answer.status_code in (200, 201), answer.text
        return str(answer.json()["job"]["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.call("GET", f"/v1/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()["job"]
        return job

    def cancel(self, job_id: str) -> requests.Response:
        return self.call("POST", f"/v1/jobs/{job_id}/cancel")

    def events(self, job_id: str, last_event_id: str | None = None) -> Iterator[Frame]:
        """Yield the frames of the stream as they arrive, to its end."""
        headers = {"Last-Event-ID": last_event_id} if last_event_id is not None else {}
        with self.call("GET", f"/v1/jobs/{job_id}/events/stream", headers=headers, stream=True) as answer:
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"].startswith("text/event-stream")
            pending = b""
            while chunk := answer.raw.read1():
                *whole, pending = (pending + chunk).split(b"\n\n")
                yield from (_frame(block.decode()) for block in whole)

    def until(self, job_id: str, *statuses: str, seconds: float = 60) -> dict[str, Any]:
        """Return the job once it has one of the statuses."""
        deadline = time.monotonic() + seconds
        while (job := self.job(job_id))["status"] not in statuses:
            assert time.monotonic() < deadline, job
            time.sleep(0.02)
        return job

    def until_step(self, job_id: str, step: int) -> None:
        """Return when the run has logged that step."""
        for frame in self.events(job_id):
            if frame.data.get("step", 0) >= step:
                return
        raise AssertionError(f"the run ended before step {step}")

    def until_resumed(self, job_id: str, *, after: int) -> None:
        """Return once the run has been resumed after that step and has logged another."""
        resumed = False
        for frame in self.events(job_id):
            resumed = resumed or (frame.event == "training.resumed" and frame.data["step"] >= after - 1)
            if resumed and frame.event == "training.log":
                return
        raise AssertionError(f"the run ended without having been resumed after step {after}")


def _frame(block: str) -> Frame:
    fields = dict(line.split(": ", 1) for line in block.split("\n"))
    return Frame(fields.get("id"), fields["event"], json.loads(fields["data"]))


def owner(backend: Backend) -> Caller:
    """Return the caller with the token of the backend's owner."""
    return Caller(backend.url, backend.token)


def stranger(backend: Backend) -> Caller:
    """Create an anonymous identity with a project `mine`."""
    identity = requests.post(f"{backend.url}/v1/auth/anonymous", json={"kind": "cli"}, timeout=30).json()
    scope = {"orgSlug": identity["personalOrg"]["slug"], "projectSlug": "mine"}
    caller = Caller(backend.url, identity["token"], scope)
    assert caller.call("POST", "/v1/projects", json={"name": "Mine", "slug": "mine"}).status_code == 201
    return caller
