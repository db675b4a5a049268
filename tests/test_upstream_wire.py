"""Clients that we did not write: the bytes that Node's `fetch` sends for the TypeScript client, and what it needs back.

Plain sockets, requests exactly in that order of headers and fields, connections kept alive as Node keeps them.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import pytest
from attrs import define, field, frozen

from arkor import Trainer, read_credentials, read_state, state_path, write_credentials, write_state
from tests.conftest import Backend

pytestmark = pytest.mark.slow  # real processes

DATA = {"type": "huggingface", "name": "rows"}
ASK = [{"role": "user", "content": "Can't log in"}]

#: Its decoder refuses an answer that lacks one of these, or has another type there.
JOB = {"id": str, "orgId": str, "projectId": str, "name": str, "status": str, "config": dict, "createdAt": str}
PROJECT = {"id": str, "slug": str, "name": str, "orgId": str}
DEPLOYMENT = {
    **dict.fromkeys(("id", "slug", "orgId", "projectId", "authMode", "urlFormat", "createdAt", "updatedAt"), str),
    "target": dict,
    "enabled": bool,
    "customDomain": type(None),  # present and null
    "runRetentionMode": str,
    "runRetentionDays": int,
}
KEY = {"id": str, "label": str, "prefix": str, "createdAt": str}


@frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@define
class NodeFetch:
    """One connection of Node's `fetch`; `token` goes out once there is one."""

    url: str
    token: str | None = None
    scope: str = ""
    _socket: socket.socket = field(init=False)

    def __attrs_post_init__(self) -> None:
        where = urlsplit(self.url)
        self._socket = socket.create_connection((where.hostname or "", where.port or 80), timeout=30)

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, path: str, body: Any = None, *, accept: str = "*/*", **more: str) -> Answer:
        """Send a request on the connection, which stays open."""
        self._socket.sendall(self._request(method, path, body, accept, more))
        head, rest = self._until(b"\r\n\r\n")
        status, headers = _head(head)
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, b"".join(self._chunks(rest)))
        length = int(headers.get("content-length", 0))
        while len(rest) < length:
            rest += self._more()
        assert len(rest) == length  # no byte of the next response
        return Answer(status, headers, rest)

    def get(self, path: str) -> Any:
        answer = self.call("GET", path)
        assert answer.status == 200, answer
        return answer.json()

    def post(self, path: str, body: Any) -> Any:
        answer = self.call("POST", path, body)
        assert answer.status in (200, 201), answer
        return answer.json()

    def _request(self, method: str, path: str, body: Any, accept: str, more: dict[str, str]) -> bytes:
        data = b"" if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        lines = [
            f"{method} {path}{self.scope} HTTP/1.1",
            f"host: {urlsplit(self.url).netloc}",
            "connection: keep-alive",
        ]
        lines += [f"Authorization: Bearer {self.token}"] if self.token else []
        lines += ["X-Arkor-Client: arkor/0.0.2-alpha.1"]
        lines += ["Content-Type: application/json"] if data else []
        lines += [f"accept: {accept}", *(f"{name.replace('_', '-')}: {value}" for name, value in more.items())]
        lines += ["accept-language: *", "sec-fetch-mode: cors", "user-agent: node", "accept-encoding: gzip, deflate"]
        lines += [f"content-length: {len(data)}"] if data or method == "POST" else []
        return "\r\n".join([*lines, "", ""]).encode() + data

    def _more(self) -> bytes:
        data = self._socket.recv(65536)
        assert data, "the backend closed a connection that was to be kept alive"
        return data

    def _until(self, mark: bytes, data: bytes = b"") -> tuple[bytes, bytes]:
        while mark not in data:
            data += self._more()
        before, _, behind = data.partition(mark)
        return before, behind

    def _chunks(self, rest: bytes) -> Iterator[bytes]:
        while True:
            size, rest = self._until(b"\r\n", rest)
            while len(rest) < int(size, 16) + 2:
                rest += self._more()
            if not int(size, 16):
                return
            yield rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]


def _head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines)
    return int(first.split()[1]), {name.lower(): value.strip() for name, value in pairs}


def needs(value: Any, kinds: dict[str, Any]) -> Any:
    """Return the value, which must have these fields with these types."""
    wrong = {name: value.get(name, "absent") for name, kind in kinds.items() if type(value.get(name, ...)) is not kind}
    assert not wrong, wrong
    return value


def frames(stream: bytes) -> list[dict[str, str]]:
    """Parse the frames of a stream by the rules of the HTML standard (for LF line ends)."""
    parsed = [dict(line.split(": ", 1) for line in part.split("\n")) for part in stream.decode().split("\n\n") if part]
    assert stream.endswith(b"\n\n")
    return parsed


Dial = Callable[..., NodeFetch]


@pytest.fixture
def dial() -> Iterator[Dial]:
    """Opens connections, which are closed after the test."""
    with ExitStack() as open_ones:
        yield lambda *where: open_ones.enter_context(closing(NodeFetch(*where)))


def signed_in(node: NodeFetch) -> NodeFetch:
    """An anonymous identity with a project, as the TypeScript client makes them at its first run."""
    answer = node.post("/v1/auth/anonymous", {"kind": "cli"})
    needs(answer, {"token": str, "anonymousId": str, "kind": str, "personalOrg": dict})
    org = needs(answer["personalOrg"], {"id": str, "slug": str, "name": str})
    node.token, node.scope = answer["token"], f"?orgSlug={quote_plus(org['slug'])}"
    project = node.post("/v1/projects", {"name": "My Bot", "slug": "my-bot"})["project"]
    node.scope += f"&projectSlug={quote(needs(project, PROJECT)['slug'])}"
    return node


def run(node: NodeFetch, **config: Any) -> str:
    """Submit a run and watch it to its end; its id."""
    body = {"name": "a run", "config": {"model": "m", "datasetSource": DATA, "maxSteps": 4, **config}}
    job = needs(node.post("/v1/jobs", body)["job"], JOB)
    node.call("GET", f"/v1/jobs/{job['id']}/events/stream", accept="text/event-stream")
    return str(job["id"])


def test_it_signs_in_and_makes_its_project(backend_env: Backend, dial: Dial) -> None:
    node = signed_in(dial(backend_env.url))
    assert needs(node.get("/v1/me"), {"user": dict, "orgs": list})["orgs"][0]["slug"] in node.scope
    again = node.call("POST", "/v1/projects", {"name": "My Bot", "slug": "my-bot"})
    assert again.status == 409  # the client then finds the project in the list
    listed = needs(node.get("/v1/projects"), {"org": dict, "projects": list})
    assert [needs(project, PROJECT)["slug"] for project in listed["projects"]] == ["my-bot"]
    config = {"auth0Domain": None, "clientId": None, "audience": None, "callbackPorts": []}
    assert dial(backend_env.url).get("/v1/auth/cli/config") == config


def test_it_watches_a_run_and_goes_on_behind_any_event(backend_env: Backend, dial: Dial) -> None:
    node = signed_in(dial(backend_env.url))
    job = run(node, saveSteps=2)
    path = f"/v1/jobs/{job}/events/stream"
    answer = node.call("GET", path, accept="text/event-stream")
    assert (answer.status, answer.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    assert "content-encoding" not in answer.headers  # compression would delay events
    *events, end = frames(answer.body)
    assert end == {"event": "end", "data": "{}"}
    for event in events:
        data = needs(json.loads(event["data"]), {"type": str, "jobId": str, "timestamp": str})
        assert (data["type"], data["jobId"]) == (event["event"], job)
    for index, event in enumerate(events):
        rest = node.call("GET", path, accept="text/event-stream", Last_Event_ID=event["id"])
        assert frames(rest.body) == [*events[index + 1 :], end]
    done = json.loads(events[-1]["data"])
    assert done["type"] == "training.completed"
    assert isinstance(done["artifacts"], list)
    assert needs(node.get(f"/v1/jobs/{job}")["job"], JOB)["status"] == "completed"
    assert [needs(one, JOB)["id"] for one in node.get("/v1/jobs")["jobs"]] == [job]


def test_it_cancels_with_an_empty_body(slow_backend: Backend, dial: Dial) -> None:
    node = signed_in(dial(slow_backend.url))
    job = node.post("/v1/jobs", {"name": "long", "config": {"model": "m", "datasetSource": DATA, "maxSteps": 900}})[
        "job"
    ]
    assert node.call("POST", f"/v1/jobs/{job['id']}/cancel").status in range(200, 300)
    stream = node.call("GET", f"/v1/jobs/{job['id']}/events/stream", accept="text/event-stream")
    *_, last, end = frames(stream.body)
    assert (last["event"], end["event"]) == ("training.failed", "end")
    assert (
        json.loads(last["data"])["error"] == "Job cancelled"
    )  # the client distinguishes it from a failure by this text
    assert node.get(f"/v1/jobs/{job['id']}")["job"]["status"] == "cancelled"
    refused = node.call("POST", f"/v1/jobs/{job['id']}/cancel")
    assert (refused.status, type(refused.json()["error"])) == (409, str)


def test_it_talks_to_a_checkpoint(backend_env: Backend, dial: Dial) -> None:
    node = signed_in(dial(backend_env.url))
    job = run(node, saveSteps=2)
    body = {"messages": ASK, "adapter": {"kind": "checkpoint", "jobId": job, "step": 2}}
    streamed = node.call("POST", "/v1/inference/chat", {**body, "stream": True})
    *chunks, last = [frame["data"] for frame in frames(streamed.body)]
    assert last == "[DONE]"
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    whole = node.post("/v1/inference/chat", {**body, "temperature": 0, "topP": 1, "maxTokens": 99, "stream": False})
    text = whole["choices"][0]["message"]["content"]
    assert "".join(delta.get("content") or "" for delta in deltas) == text
    assert text


def test_it_asks_for_a_form_and_for_tools_in_its_own_words(backend_env: Backend, dial: Dial) -> None:
    node = signed_in(dial(backend_env.url))
    ask = {"messages": ASK, "adapter": {"kind": "final", "jobId": run(node)}, "stream": False}
    shape = {"type": "object", "properties": {"urgency": {"enum": ["low", "high"]}}, "required": ["urgency"]}
    schema = {"name": "triage", "schema": {**shape, "additionalProperties": False}, "strict": True}

    def answer(**form: Any) -> Any:
        return node.post("/v1/inference/chat", {**ask, **form})["choices"][0]["message"]

    whole = answer(responseFormat={"type": "json_schema", "json_schema": schema})
    assert json.loads(whole["content"])["urgency"] in ("low", "high")
    assert answer(structuredOutputs={"choice": ["low", "high"]})["content"] in ("low", "high")
    tool = {"type": "function", "function": {"name": "set_urgency", "parameters": schema["schema"]}}
    (call,) = answer(tools=[tool], toolChoice="required")["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "set_urgency")
    assert json.loads(call["function"]["arguments"])["urgency"] in ("low", "high")
    output = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]}]
    output += [{"role": "tool", "tool_call_id": call["id"], "content": "done"}]
    assert answer(messages=output, tools=[tool], toolChoice="none")["content"]


def test_what_it_is_refused_is_a_sentence_and_the_connection_lives_on(backend_env: Backend, dial: Dial) -> None:
    node = signed_in(dial(backend_env.url))
    bad = {"name": "x", "config": {"model": "m", "datasetSource": DATA, "maxSteps": -1}}
    for answer, status in (
        (node.call("POST", "/v1/jobs", bad), 400),
        (node.call("POST", "/v1/inference/chat", {"messages": [], "baseModel": "m", "stream": True}), 400),
        (node.call("GET", "/v1/jobs/nothing"), 404),
        (node.call("GET", "/v1/jobs/nothing/events/stream", accept="text/event-stream"), 404),
        (dial(backend_env.url, "wrong", node.scope).call("GET", "/v1/jobs"), 401),
        (dial(backend_env.url, node.token, "?orgSlug=local&projectSlug=default").call("GET", "/v1/jobs"), 403),
    ):
        assert answer.status == status
        needs(answer.json(), {"error": str, "code": str})
    assert node.get("/v1/jobs") == {"jobs": []}  # on the connection of four rejected requests


def test_it_manages_deployments_and_their_keys(backend_env: Backend, dial: Dial) -> None:
    node = signed_in(dial(backend_env.url))
    target = {"kind": "adapter", "adapter": {"kind": "final", "jobId": run(node)}}
    body = {"slug": "support-bot", "target": target, "authMode": "fixed_api_key"}
    made = needs(node.post("/v1/endpoints", body)["deployment"], DEPLOYMENT)
    assert (made["target"], made["urlFormat"], made["runRetentionMode"]) == (target, "openai_compat", "days")
    at = f"/v1/endpoints/{made['id']}"
    patched = node.call("PATCH", at, {"runRetentionMode": "disabled"}).json()["deployment"]
    assert "runRetentionDays" not in patched  # absent: the client rejects null
    assert node.get(at)["deployment"] == patched == node.get("/v1/endpoints")["deployments"][0]
    assert node.call("POST", "/v1/endpoints", body).status == 409
    key = needs(node.post(f"{at}/keys", {"label": "production"})["key"], {**KEY, "plaintext": str})
    assert node.call("DELETE", f"{at}/keys/{key['id']}").status == 204
    (listed,) = node.get(f"{at}/keys")["keys"]
    assert needs(listed, {**KEY, "enabled": bool, "lastUsedAt": type(None)})["enabled"] is False
    assert "plaintext" not in listed
    assert node.call("DELETE", at).status == 204
    assert node.get("/v1/endpoints") == {"deployments": []}


def test_our_client_goes_on_with_its_files(backend_env: Backend, dial: Dial, tmp_path: Path) -> None:
    node = signed_in(dial(backend_env.url))
    (org,), (project,) = node.get("/v1/me")["orgs"], node.get("/v1/projects")["projects"]
    account = {"mode": "anon", "token": node.token, "anonymousId": "a", "arkorCloudApiUrl": backend_env.url}
    account["orgSlug"] = org["slug"]
    state = {"orgSlug": org["slug"], "projectSlug": project["slug"], "projectId": project["id"]}
    file, folder = Path(os.environ["ARKOR_HOME"]) / "credentials.json", tmp_path / "My Bot"
    file.write_text(json.dumps(account, indent=2))  # no newline at the end
    state_path(folder).parent.mkdir(parents=True)
    state_path(folder).write_text(json.dumps({**state, "anonymousId": "a"}, indent=2) + "\n")

    result = Trainer("ours", "m", DATA, max_steps=1, project_dir=folder, progress=False).wait(timeout=30)
    assert (result.job.status, result.job.project_id) == ("completed", project["id"])
    assert [job["name"] for job in node.get("/v1/jobs")["jobs"]] == ["ours"]

    found, where = read_credentials(), read_state(folder)
    assert found is not None
    assert where is not None
    write_credentials(found)
    write_state(where, folder)
    assert json.loads(file.read_text()).items() >= account.items()
    assert json.loads(state_path(folder).read_text()).items() >= state.items()
