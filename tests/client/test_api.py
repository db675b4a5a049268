"""Each route of the protocol: its request and its decoded response."""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arkor.client.api import CloudApiClient
from arkor.client.auth.bootstrap import request_anonymous_token
from arkor.client.auth.credentials import AnonymousCredentials
from arkor.client.http.auth import Auth
from arkor.errors import ArkorError, BackendUnavailable, CloudApiError, InvalidConfig, TrainerAborted
from arkor.protocol.accounts import Me, Org, Project, User
from arkor.protocol.chat import Adapter, InferenceRequest
from arkor.protocol.datasets import BlobDataset, FileDataset, HuggingFaceDataset
from arkor.protocol.deployments import Deployment, DeploymentKey
from arkor.protocol.jobs import JobConfig, JobStatus, Scope
from arkor.protocol.transport import IDEMPOTENCY_HEADER
from tests.conftest import Backend, start_backend, stop_backend
from tests.fakes.http_server import Answer, HttpServer, Request

SCOPE = Scope("org-1", "bot")
BOTH = {"orgSlug": "org-1", "projectSlug": "bot"}
CONFIG = JobConfig("m", HuggingFaceDataset("owner/name"), max_steps=3, lora_r=4, load_in_4bit=False)

JOB = {
    "id": "j-1",
    "orgId": "o-1",
    "projectId": "p-1",
    "name": "run",
    "status": "queued",
    "config": {"model": "m", "datasetSource": {"type": "huggingface", "name": "owner/name"}, "maxSteps": 3},
    "createdAt": "2027-01-01T00:00:00Z",
    "gpu": "new field",
}
DEPLOYMENT = {
    "id": "d-1",
    "slug": "bot",
    "orgId": "o-1",
    "projectId": "p-1",
    "target": {"kind": "base_model", "baseModel": "m"},
    "authMode": "none",
    "urlFormat": "openai_compat",
    "enabled": True,
    "customDomain": None,
    "createdAt": "2027-01-01T00:00:00Z",
    "updatedAt": "2027-01-01T00:00:00Z",
}
KEY = {"id": "k-1", "label": "ci", "prefix": "ark_live_ab", "createdAt": "2027-01-01T00:00:00Z"}


def client(server: HttpServer) -> CloudApiClient:
    return CloudApiClient(server.url, AnonymousCredentials("t", "a", server.url, "org-1"), scope=SCOPE)


Call = Callable[[CloudApiClient], Any]

ROUTES: list[tuple[Call, str, dict[str, str], Any, Any]] = [
    (lambda c: c.me(), "GET /v1/me", {}, None, {"user": {"id": "u"}, "orgs": []}),
    (lambda c: c.list_projects(), "GET /v1/projects", {"orgSlug": "org-1"}, None, {"projects": []}),
    (
        lambda c: c.create_project("Bot", "bot"),
        "POST /v1/projects",
        {"orgSlug": "org-1"},
        {"name": "Bot", "slug": "bot"},
        {"project": {"id": "p", "slug": "bot"}},
    ),
    (lambda c: c.list_jobs(), "GET /v1/jobs", {**BOTH, "limit": "1000"}, None, {"jobs": [JOB]}),
    (
        lambda c: c.list_jobs(limit=7, id_prefix="j"),
        "GET /v1/jobs",
        {**BOTH, "limit": "7", "idPrefix": "j"},
        None,
        {"jobs": [JOB]},
    ),
    (lambda c: c.get_job("a/b?"), "GET /v1/jobs/a%2Fb%3F", BOTH, None, {"job": JOB, "events": []}),
    (lambda c: c.cancel_job("j-1"), "POST /v1/jobs/j-1/cancel", BOTH, None, {}),
    (lambda c: c.list_deployments(), "GET /v1/endpoints", BOTH, None, {"deployments": [DEPLOYMENT]}),
    (lambda c: c.get_deployment("d-1"), "GET /v1/endpoints/d-1", BOTH, None, {"deployment": DEPLOYMENT}),
    (
        lambda c: c.create_deployment("bot", {"kind": "adapter", "adapter": Adapter("checkpoint", "j-1", 5)}, "none"),
        "POST /v1/endpoints",
        BOTH,
        {
            "slug": "bot",
            "target": {"kind": "adapter", "adapter": {"kind": "checkpoint", "jobId": "j-1", "step": 5}},
            "authMode": "none",
        },
        {"deployment": DEPLOYMENT},
    ),
    (
        lambda c: c.update_deployment("d-1", enabled=False, run_retention_mode="days", run_retention_days=3),
        "PATCH /v1/endpoints/d-1",
        BOTH,
        {"enabled": False, "runRetentionMode": "days", "runRetentionDays": 3},
        {"deployment": DEPLOYMENT},
    ),
    (lambda c: c.delete_deployment("d-1"), "DELETE /v1/endpoints/d-1", BOTH, None, {}),
    (lambda c: c.list_deployment_keys("d-1"), "GET /v1/endpoints/d-1/keys", BOTH, None, {"keys": [KEY]}),
    (
        lambda c: c.create_deployment_key("d-1", "ci"),
        "POST /v1/endpoints/d-1/keys",
        BOTH,
        {"label": "ci"},
        {"key": {**KEY, "plaintext": "ark_live_abc"}},
    ),
    (lambda c: c.revoke_deployment_key("d-1", "k-1"), "DELETE /v1/endpoints/d-1/keys/k-1", BOTH, None, {}),
]


@pytest.mark.parametrize(("call", "line", "query", "body", "answer"), ROUTES, ids=[r[1] for r in ROUTES])
def test_the_request_of_each_route(call: Call, line: str, query: Any, body: Any, answer: Any) -> None:
    with HttpServer(Answer(200, answer)) as server:
        call(client(server))
    (request,) = server.requests
    assert f"{request.method} {request.path}" == line
    assert request.query == query
    assert (request.json() if request.body else None) == body
    assert request.headers["authorization"] == "Bearer t"


@pytest.mark.parametrize("call", [r[0] for r in ROUTES if r[4]])
@pytest.mark.parametrize("answer", [{}, {"job": 1, "project": [], "key": None, "jobs": {}, "keys": [1]}])
def test_a_response_without_the_resource_is_an_error(call: Call, answer: object) -> None:
    with HttpServer(Answer(200, answer)) as server, pytest.raises(CloudApiError, match="no usable") as caught:
        call(client(server))
    assert caught.value.code == "bad_answer"


def test_the_responses_are_decoded() -> None:
    me = {"user": {"id": "u", "email": None}, "orgs": [{"id": "o-1", "slug": "org-1", "name": "Org", "plan": "x"}]}
    project = {"id": "p-1", "slug": "bot", "name": "Bot", "orgId": "o-1"}
    key = {"key": {**KEY, "plaintext": "ark_live_abc"}}
    answers = [me, {"projects": [project]}, {"job": JOB}, {"deployment": DEPLOYMENT}, key]
    with HttpServer(*[Answer(200, answer) for answer in answers]) as server:
        caller = client(server)
        assert caller.me() == Me(User("u"), (Org("o-1", "org-1", "Org", {"plan": "x"}),))
        assert caller.list_projects() == [Project("p-1", "bot", "Bot", "o-1")]
        job = caller.get_job("j-1")
        deployment = caller.get_deployment("d-1")
        made = caller.create_deployment_key("d-1", "ci")
    assert (job.id, job.status, job.config.max_steps, job.extra) == ("j-1", JobStatus.QUEUED, 3, {"gpu": "new field"})
    assert job.config.dataset_source == HuggingFaceDataset("owner/name")
    assert isinstance(deployment, Deployment)
    assert deployment.target == {"kind": "base_model", "baseModel": "m"}
    assert isinstance(made, DeploymentKey)
    assert made.plaintext == "ark_live_abc"
    assert "ark_live_abc" not in repr(made)


def test_an_unknown_status_is_kept() -> None:
    with HttpServer(Answer(200, {"job": {**JOB, "status": "paused"}})) as server:
        assert client(server).get_job("j-1").status == "paused"


def test_the_scope_of_a_call_takes_precedence() -> None:
    with HttpServer(Answer(200, {"jobs": []})) as server:
        client(server).list_jobs(scope=Scope("o", "p"))
        CloudApiClient(server.url).list_jobs(scope=Scope("o", "p"))
        with pytest.raises(ArkorError, match="Scope"):
            CloudApiClient(server.url).list_jobs()
    scopes = [(r.query["orgSlug"], r.query["projectSlug"]) for r in server.requests]
    assert scopes == [("o", "p")] * 2


def list_route(count: int, *, in_pages: bool) -> Callable[[Request], Answer]:
    """`GET /v1/jobs` of a backend with `count` runs, newest first."""
    every = [{**JOB, "id": f"run-{number}"} for number in range(count)]

    def answer(request: Request) -> Answer:
        if not in_pages:
            return Answer(200, {"jobs": every})
        ids = [job["id"] for job in every]
        start = ids.index(request.query["before"]) + 1 if "before" in request.query else 0
        page = every[start : start + int(request.query["limit"])]
        more = {"nextBefore": page[-1]["id"]} if start + len(page) < count else {}
        return Answer(200, {"jobs": page, **more})

    return answer


@pytest.mark.parametrize("in_pages", [True, False])
def test_the_list_is_the_same_with_and_without_pages(in_pages: bool) -> None:
    with HttpServer(list_route(2500, in_pages=in_pages)) as server:
        caller = client(server)
        assert [job.id for job in caller.list_jobs()] == [f"run-{number}" for number in range(2500)]
        assert [job.id for job in caller.list_jobs(limit=3)] == ["run-0", "run-1", "run-2"]
        assert len(caller.list_jobs(limit=1500)) == 1500
        assert len(caller.list_jobs(limit=9999)) == 2500
        assert caller.list_jobs(limit=0) == []
        assert [job.id for job in caller.list_jobs(id_prefix="run-249")] == [
            "run-249",
            *(f"run-249{n}" for n in range(10)),
        ]


def test_only_the_needed_pages_are_requested() -> None:
    with HttpServer(list_route(50, in_pages=True)) as server:
        jobs = client(server).iter_jobs(page=10)
        assert [next(jobs).id for _ in range(11)][-1] == "run-10"
    assert len(server.requests) == 2


def test_a_repeated_page_ends_the_list() -> None:
    with HttpServer(Answer(200, {"jobs": [JOB], "nextBefore": "j-1"})) as server:
        assert len(client(server).list_jobs()) == 2


@pytest.mark.parametrize("job_id", ["", ".", "..", None, 7])
def test_an_invalid_id_is_rejected(job_id: Any) -> None:
    with pytest.raises(InvalidConfig, match="job_id"):
        CloudApiClient("http://127.0.0.1:1", scope=SCOPE).get_job(job_id)


# Submitting


def test_only_given_settings_are_submitted() -> None:
    with HttpServer(Answer(201, {"job": JOB})) as server:
        client(server).create_job("run", CONFIG, idempotency_key="k-1")
    (request,) = server.requests
    source = {"type": "huggingface", "name": "owner/name"}
    config = {"model": "m", "datasetSource": source, "maxSteps": 3, "loraR": 4, "loadIn4bit": False}
    assert request.json() == {"name": "run", "config": config}
    assert request.headers["idempotency-key"] == "k-1"
    assert request.query == BOTH


HONOURED = {IDEMPOTENCY_HEADER: "honoured"}
LOST = pytest.mark.parametrize("lost", [Answer(None), Answer(500), Answer(502), Answer(504)])


@LOST
def test_a_lost_response_is_requested_again_where_the_backend_honours_the_key(lost: Answer) -> None:
    with HttpServer(lost, Answer(200, {}, HONOURED), Answer(201, {"job": JOB})) as server:
        client(server).create_job("run", CONFIG)
    posts = [request for request in server.requests if request.method == "POST"]
    assert len({request.headers["idempotency-key"] for request in posts}) == 1
    assert [request.path for request in server.requests] == ["/v1/jobs", "/healthz", "/v1/jobs"]


def test_a_backend_that_has_shown_the_header_is_not_asked_again() -> None:
    with HttpServer(Answer(200, {"jobs": []}, HONOURED), Answer(None), Answer(201, {"job": JOB})) as server:
        caller = client(server)
        caller.list_jobs()
        caller.create_job("run", CONFIG)
    assert [request.path for request in server.requests] == ["/v1/jobs", "/v1/jobs", "/v1/jobs"]


@LOST
def test_a_lost_response_is_not_requested_again_elsewhere(lost: Answer) -> None:
    with HttpServer(lost, Answer(404, {"error": "No such route."})) as server:
        caller = client(server)
        for _ in range(2):
            with pytest.raises((BackendUnavailable, CloudApiError), match=r"the run may exist.*arkor jobs"):
                caller.create_job("run", CONFIG, idempotency_key="k-1")
    assert [request.method for request in server.requests].count("POST") == 1


@pytest.mark.parametrize("status", [425, 429, 503])
def test_a_refusal_is_repeated_everywhere(status: int) -> None:
    with HttpServer(Answer(status), Answer(201, {"job": JOB})) as server:
        client(server).create_job("run", CONFIG)
    assert [request.path for request in server.requests] == ["/v1/jobs", "/v1/jobs"]


def test_a_rejected_submission_may_be_made_again() -> None:
    with HttpServer(Answer(400, {"error": "No."}), Answer(201, {"job": JOB})) as server:
        caller = client(server)
        with pytest.raises(CloudApiError, match="No"):
            caller.create_job("run", CONFIG, idempotency_key="k")
        assert caller.create_job("run", CONFIG, idempotency_key="k").id == JOB["id"]


@pytest.mark.parametrize("auth", [Auth("http://127.0.0.1:1"), Auth("https://api.arkor.ai")])
def test_the_form_of_the_configuration_follows_the_backend(auth: Auth) -> None:
    settings = {"eval_steps": {"ratio": 0.1}, "save_steps": 25, "warmup_steps": 0, "logging_steps": {"steps": 5}}
    config = JobConfig("m", CONFIG.dataset_source, **settings, dataset_split=0.2, train_on_responses_only=True)
    caller = CloudApiClient(auth.base_url, scope=SCOPE, access=auth)
    body = {
        name: value for name, value in caller._config_json(config).items() if name not in ("model", "datasetSource")
    }
    ours = {"evalSteps": 0.1, "saveSteps": 25, "warmupSteps": 0, "loggingSteps": 5}
    ours |= {"datasetSplit": 0.2, "trainOnResponsesOnly": True}
    cloud = {"evalSteps": {"ratio": 0.1}, "saveSteps": {"steps": 25}, "warmupSteps": {"steps": 0}}
    cloud |= {"loggingSteps": {"steps": 5}, "datasetSplit": {"enabled": True, "testSize": 0.2}}
    cloud |= {"trainOnResponsesOnly": {"enabled": True}}
    assert body == (cloud if "arkor.ai" in auth.base_url else ours)


def test_the_events_of_a_job_are_kept() -> None:
    events = [{"type": "training.started", "jobId": "j", "timestamp": "t"}]
    with HttpServer(Answer(200, {"job": JOB, "events": events})) as server:
        assert client(server).get_job("j").events == tuple(events)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (JobConfig("m", FileDataset("x.jsonl")), "dataset"),
        (JobConfig("m", HuggingFaceDataset("n"), max_steps=0), "max_steps"),
        (JobConfig("m", HuggingFaceDataset("n"), extra={"odd": object()}), "request"),
        (JobConfig("m", HuggingFaceDataset("n"), extra={"odd": float("nan")}), "request"),
    ],
)
def test_an_invalid_configuration_is_not_sent(config: JobConfig, field: str) -> None:
    with HttpServer(Answer()) as server, pytest.raises(InvalidConfig) as caught:
        client(server).create_job("run", config)
    assert caught.value.field == field
    assert server.requests == []


# The event stream


@pytest.mark.parametrize("event_id", ["204", " 7", "a b", "zwölf", "日本", "\ud800"])
def test_any_cursor_is_sent(event_id: str) -> None:
    with HttpServer(Answer(200, b"", {"Content-Type": "text/event-stream"})) as server:
        client(server).open_event_stream("j-1", last_event_id=event_id).close()
    (request,) = server.requests
    sent = request.headers["last-event-id"].encode("latin-1")
    assert sent.strip() == event_id.encode("utf-8", "surrogatepass").strip()
    assert (request.path, request.query) == ("/v1/jobs/j-1/events/stream", BOTH)
    assert request.headers["accept"] == "text/event-stream"


def test_a_cursor_of_two_lines_is_rejected() -> None:
    with HttpServer(Answer()) as server, pytest.raises(InvalidConfig, match="last_event_id"):
        client(server).open_event_stream("j-1", last_event_id="a\r\nX-Evil: 1")
    assert server.requests == []


@pytest.mark.parametrize("status", [401, 404, 410, 426, 503])
def test_a_rejected_stream_is_one_error(status: int) -> None:
    with HttpServer(Answer(status, {"error": "No."})) as server, pytest.raises(CloudApiError) as caught:
        client(server).open_event_stream("j-1")
    assert caught.value.status == status
    assert len(server.requests) == 1


# Chat


def test_a_chat_request_keeps_inner_keys() -> None:
    completion = {"choices": [{"message": {"role": "assistant", "content": "Hi"}}]}
    messages = [{"role": "tool", "tool_call_id": "c", "content": "x"}]
    request = InferenceRequest(
        messages, Adapter("final", "j-1"), temperature=0.0, max_tokens=5, stream=False, tool_choice="auto"
    )
    with HttpServer(Answer(200, completion)) as server:
        assert client(server).chat(request).text() == "Hi"
    (sent,) = server.requests
    assert (sent.method, sent.path, sent.query) == ("POST", "/v1/inference/chat", BOTH)
    assert sent.json() == {
        "messages": messages,
        "adapter": {"kind": "final", "jobId": "j-1"},
        "temperature": 0.0,
        "maxTokens": 5,
        "stream": False,
        "toolChoice": "auto",
    }


def test_a_rejected_chat_request() -> None:
    refusal = Answer(404, {"error": "No such checkpoint."})
    with HttpServer(refusal) as server, pytest.raises(CloudApiError, match="No such checkpoint"):
        client(server).chat(InferenceRequest([], Adapter("checkpoint", "j-1", 7)))
    assert len(server.requests) == 1


def test_an_unanswered_chat_request_can_be_aborted() -> None:
    signal, over = threading.Event(), threading.Event()

    def slow(request: object) -> Answer:
        over.wait(20)
        return Answer(200, b"")

    threading.Timer(0.1, signal.set).start()
    with HttpServer(slow) as server:
        began = time.monotonic()
        with pytest.raises(TrainerAborted):
            client(server).chat(InferenceRequest([]), abort_signal=signal)
        assert time.monotonic() - began < 10
        over.set()


# Files


def test_a_file_is_uploaded_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "täglich tickets.jsonl"
    file.write_bytes(b'{"a": 1}\n')
    with HttpServer(Answer(201, {"dataset": {"id": "s", "bytes": 9, "url": "/v1/datasets/s/x"}})) as server:
        assert client(server).upload_dataset(file) == BlobDataset("/v1/datasets/s/x")
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/datasets")
    assert request.query == {**BOTH, "filename": file.name}
    assert request.body == file.read_bytes()
    assert request.headers["content-length"] == "9"


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_an_unreadable_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidConfig, match=f"dataset.path: {tmp_path}.*cannot be read"):
        CloudApiClient("http://127.0.0.1:1", scope=SCOPE).upload_dataset(tmp_path / name)


# Against the real backend


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """One backend for this module; a test that needs a new one creates its own identity."""
    home = tmp_path_factory.mktemp("home")
    started = start_backend(home, "--engine", "scripted")
    yield started
    stop_backend(home)
    started.process.wait()


@pytest.fixture
def real(backend: Backend) -> CloudApiClient:
    """A client of the backend's owner, whose runs are scripted."""
    owner = AnonymousCredentials(backend.token, "local", backend.url, "local")
    return CloudApiClient(backend.url, owner, scope=Scope("local", "default"))


def finished(caller: CloudApiClient, job_id: str) -> Any:
    deadline = time.monotonic() + 30
    while not (job := caller.get_job(job_id)).status.terminal and time.monotonic() < deadline:
        time.sleep(0.05)
    return job


def uploaded(caller: CloudApiClient, folder: Path) -> BlobDataset:
    file = folder / "rows.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 4)
    return caller.upload_dataset(file)


def test_real_me(real: CloudApiClient) -> None:
    assert [org.slug for org in real.me().orgs] == ["local"]
    assert [project.slug for project in real.list_projects()] == ["default"]
    with pytest.raises(CloudApiError) as caught:
        real.create_project("Default", "default")
    assert caught.value.status == 409


def test_real_upload(real: CloudApiClient, tmp_path: Path) -> None:
    source = uploaded(real, tmp_path)
    digest = hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()
    assert source.url == f"/v1/datasets/{digest}/rows.jsonl"
    assert uploaded(real, tmp_path) == source


@pytest.mark.slow
def test_a_large_upload_uses_little_memory(backend: Backend, tmp_path: Path) -> None:
    file = tmp_path / "large.jsonl"
    with file.open("wb") as out:
        for _ in range(200):
            out.write(b"x" * 1024 * 1024)
    identity = request_anonymous_token(backend.url)
    caller = CloudApiClient(backend.url, identity)
    scope = Scope(identity.org_slug, caller.create_project("P", "p", scope=Scope(identity.org_slug, "")).slug)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    caller.upload_dataset(file, scope=scope)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 30 * 1024 * 1024


def test_real_run(real: CloudApiClient, tmp_path: Path) -> None:
    config = JobConfig("smollm2-135m-instruct", uploaded(real, tmp_path), max_steps=3)
    job = real.create_job("run", config, idempotency_key="once")
    assert real.create_job("run", config, idempotency_key="once").id == job.id
    with real.open_event_stream(job.id) as response:
        events = response.raw.read().decode()
    assert events.count("event: training.log") == 3
    assert events.rstrip().endswith("event: end\ndata: {}")
    done = finished(real, job.id)
    assert (done.status, done.name, done.config.max_steps) == (JobStatus.COMPLETED, "run", 3)
    assert real.list_jobs()[0].id == job.id
    with pytest.raises(CloudApiError) as caught:
        real.cancel_job(job.id)
    assert caught.value.status == 409


@pytest.mark.parametrize("stream", [True, False])
def test_real_chat(real: CloudApiClient, stream: bool) -> None:
    messages = [{"role": "user", "content": "Hello there"}]
    request = InferenceRequest(messages, base_model="smollm2-135m-instruct", max_tokens=20, stream=stream)
    assert "Hello there" in real.chat(request).text()


def test_real_errors(real: CloudApiClient, backend: Backend) -> None:
    with pytest.raises(CloudApiError) as missing:
        real.get_job("no-such-job")
    with pytest.raises(CloudApiError) as foreign:
        CloudApiClient(backend.url, request_anonymous_token(backend.url)).list_jobs(scope=Scope("local", "default"))
    with pytest.raises(CloudApiError) as unknown:
        CloudApiClient(backend.url, scope=SCOPE).list_jobs()
    assert [e.value.status for e in (missing, foreign, unknown)] == [404, 403, 401]


# The cost of an import


def test_importing_arkor_is_light() -> None:
    heavy = ("tqdm", "click", "torch", "starlette", "sqlalchemy")
    code = f"import sys; import arkor.client.api; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_an_unreachable_backend_is_one_line() -> None:
    with pytest.raises(BackendUnavailable, match=r"http://127.0.0.1:1 cannot be reached \(Connection refused\)"):
        CloudApiClient("http://127.0.0.1:1", scope=SCOPE).open_event_stream("j-1")


def test_unknown_fields_of_a_newer_backend_are_sent_again() -> None:
    """The settings of a job and the target of a deployment can be reused without loss."""
    config = {**JOB["config"], "ofTomorrow": {"depth": [1, 2]}}
    target = {"kind": "adapter", "adapter": {"kind": "final", "jobId": "j-1", "blend": 0.5}, "fallback": "m"}
    answers = [{"job": {**JOB, "config": config}}, {"job": JOB}, {"deployment": {**DEPLOYMENT, "target": target}}]
    with HttpServer(*[Answer(200, answer) for answer in answers], Answer(200, {"deployment": DEPLOYMENT})) as server:
        caller = client(server)
        caller.create_job("again", caller.get_job("j-1").config)
        caller.update_deployment("d-2", target=caller.get_deployment("d-1").target)
    assert server.requests[1].json() == {"name": "again", "config": config}
    assert server.requests[3].json() == {"target": target}
