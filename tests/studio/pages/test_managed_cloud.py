"""Studio with the managed cloud: a server with its host name and its fields, behind TLS and a proxy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from attrs import define, field

from arkor.client.auth.credentials import AnonymousCredentials, write_credentials
from arkor.settings import MANAGED_CLOUD_API_URL
from tests.fakes.corporate_proxy import CorporateProxy
from tests.fakes.http_server import Answer, HttpServer, Request
from tests.fakes.run_server import JOB, PROJECT
from tests.studio.conftest import Studio, start_studio

pytestmark = pytest.mark.slow

MENU = {
    "id": "d-1",
    "slug": "menu",
    "target": {"kind": "model_menu", "models": ["a", "b"]},
    "authMode": "fixed_api_key",
    "enabled": True,
    "createdAt": "2026-01-01T00:00:00.000Z",
    "expiresAt": "2030-01-02T12:00:00.000Z",
}
TUNED = {**MENU, "id": "d-2", "slug": "tuned", "expiresAt": None}
TUNED["target"] = {"kind": "adapter", "adapter": {"kind": "final", "jobId": "j"}}
ENDED = {**JOB, "status": "completed", "config": {"model": "m", "gpuTypes": ["l4"], "evalSteps": {"ratio": 1}}}


@define
class Cloud:
    """Answers the calls of Studio; `cancelled` has the answers to `POST …/cancel`."""

    job: dict[str, object] = field(factory=lambda: dict(ENDED))
    cancelled: Answer = field(factory=Answer)
    calls: list[str] = field(factory=list)

    def answer(self, request: Request) -> Answer:
        self.calls.append(f"{request.method} {request.path}")
        bodies = {
            "/v1/projects": {"projects": [PROJECT], "project": PROJECT},
            "/v1/jobs": {"jobs": [self.job]},
            "/v1/jobs/j": {"job": self.job},
            "/v1/endpoints": {"deployments": [MENU, TUNED]},
            "/v1/endpoints/d-1": {"deployment": MENU},
            "/v1/endpoints/d-1/keys": {"keys": []},
        }
        if request.path == "/v1/jobs/j/cancel":
            return self.cancelled
        return Answer(200, bodies[request.path]) if request.path in bodies else Answer(404, {"error": "no such route"})


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def cloud_studio(cloud: Cloud, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """Studio whose backend has the address of the managed cloud."""
    with closing(CorporateProxy(tmp_path)) as proxy, HttpServer(cloud.answer) as server:
        proxy.serve(MANAGED_CLOUD_API_URL.removeprefix("https://"), server.url)
        for other in ("CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.delenv(other, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", proxy.proxy_url)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(proxy.bundle))
        monkeypatch.setenv("ARKOR_CLOUD_API_URL", MANAGED_CLOUD_API_URL)
        write_credentials(AnonymousCredentials("secret", "anon", MANAGED_CLOUD_API_URL, "o"))
        started = start_studio(project)
        yield started
        started.process.kill()
        started.process.wait()


def test_deployments_have_the_addresses_of_the_cloud(cloud_studio: Studio) -> None:
    listed = cloud_studio.get("/parts/endpoints").text
    for slug in ("menu", "tuned"):
        assert f"<code>https://{slug}.arkor.app/v1</code>" in listed
    assert 'title="a model menu">a model menu</td>' in listed
    assert 'title="a run, final adapter">a run, final adapter</td>' in listed
    assert listed.count("until <time") == 1
    assert 'until <time datetime="2030-01-02T12:00:00.000Z"' in listed
    page = cloud_studio.get("/endpoints/d-1").text
    assert 'model menu, any model of the menu · expires <time datetime="2030-01-02T12:00:00.000Z"' in page
    assert "https://menu.arkor.app/v1" in page
    assert "does not exist any more" not in page
    assert "https://new-one.arkor.app/v1" in cloud_studio.get("/parts/slug?slug=new-one").text


def test_a_run_with_fields_of_the_cloud(cloud_studio: Studio) -> None:
    page = cloud_studio.get("/runs/j").text
    assert "gpu_types" in page
    assert "l4" in page
    assert "eval_steps.ratio" in page


@pytest.mark.parametrize("accepted", [Answer(200, {"job": ENDED}), Answer(202), Answer(204, b"")])
def test_a_cancel_that_the_cloud_accepts_after_the_end(cloud: Cloud, cloud_studio: Studio, accepted: Answer) -> None:
    cloud.cancelled = accepted
    response = cloud_studio.post("/actions/runs/j/cancel")
    assert response.status_code == 200
    assert "The run has already ended: completed." in response.text
    assert "POST /v1/jobs/j/cancel" in cloud.calls
    cloud.job = {**JOB}
    assert "The run is being cancelled." in cloud_studio.post("/actions/runs/j/cancel").text
