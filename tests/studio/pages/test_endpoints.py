"""Endpoints in Studio: created, changed, deleted; their keys and their code."""

from __future__ import annotations

import html
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from arkor.client.api import CloudApiClient
from arkor.errors import CloudApiError
from arkor.protocol.deployments import Deployment
from arkor.studio.rendering import form_message
from tests.studio.conftest import Studio, start_studio
from tests.studio.pages.test_playground import ask_endpoint, eventually, run, shown, trained

BASE = {"kind": "base_model", "baseModel": "org/small-model"}
NAME = "<img src=x onerror=alert(1)>"


@pytest.fixture
def endpoint(studio_env: Studio, client: CloudApiClient) -> Iterator[Deployment]:
    """An endpoint that requires a key."""
    made = client.create_deployment("an-endpoint", BASE, "fixed_api_key")
    yield made
    if made.id in {one.id for one in client.list_deployments()}:
        client.delete_deployment(made.id)


def new_key(studio: Studio, endpoint: Deployment, label: str = "laptop") -> tuple[str, str]:
    """Create a key; return it and the page that shows it."""
    answer = studio.post(f"/actions/endpoints/{endpoint.id}/keys", data={"label": label})
    assert answer.status_code == 200, answer.text
    found = re.search(r"ark_live_[\w-]{20,}", answer.text)
    assert found
    return found[0], answer.text


# Creating


def test_a_new_one_of_a_checkpoint(studio_env: Studio, client: CloudApiClient) -> None:
    job = trained(client)
    form = {
        "slug": " new-one ",
        "run": job,
        "step": "4",
        "model": "org/x",
        "auth_mode": "none",
        "keep": "disabled",
        "days": "7",
    }
    answer = studio_env.post("/actions/endpoints", data=form)
    assert answer.status_code == 204, answer.text
    made = client.get_deployment(answer.headers["HX-Redirect"].removeprefix("/endpoints/"))
    assert made.target == {"kind": "adapter", "adapter": {"kind": "checkpoint", "jobId": job, "step": 4}}
    assert (made.slug, made.auth_mode, made.run_retention_mode) == ("new-one", "none", "disabled")
    assert "scripted: Hi" in ask_endpoint(client, "new-one", None).text
    client.delete_deployment(made.id)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"slug": "-x"}, "Name: must be 2 to 50 of a-z, 0-9 and hyphens"),
        ({"slug": "www"}, "Name: &#39;www&#39; is reserved; choose another one"),
        ({"slug": NAME}, "Name: must be 2 to 50"),
        ({"slug": "an-endpoint"}, "The slug &#39;an-endpoint&#39; is taken; choose another."),
        ({"model": ""}, "Model: choose a run or a model"),
        ({"run": "nothing"}, "has no job &#39;nothing&#39;"),
        ({"auth_mode": "magic"}, "Access: must be"),
        ({"days": "1e3"}, "Days: must be a whole number of days"),
        ({"days": "99999999"}, "Days: must be at most 36500"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_the_form(
    studio_env: Studio, client: CloudApiClient, endpoint: Deployment, change: dict[str, str], sentence: str
) -> None:
    form = {"slug": "fine", "model": "org/small-model", "auth_mode": "none", "keep": "days", "days": "7", **change}
    answer = studio_env.post("/actions/endpoints", data=form)
    assert answer.status_code == 400
    assert answer.headers["HX-Retarget"] == "#form-error"
    assert sentence in answer.text
    assert NAME not in answer.text
    assert [one.slug for one in client.list_deployments()] == ["an-endpoint"]


def test_an_error_of_the_backend_has_the_label_of_the_field(
    studio_env: Studio, client: CloudApiClient, endpoint: Deployment
) -> None:
    with pytest.raises(CloudApiError, match=r"^label: must be one line of 1 to 80 visible") as refused:
        client.create_deployment_key(endpoint.id, "a\u200eb")
    assert refused.value.field == "label"
    answer = studio_env.post(f"/actions/endpoints/{endpoint.id}/keys", data={"label": "a\u200eb"})
    assert answer.status_code == 400
    assert "Label: must be one line of 1 to 80 visible" in answer.text
    with pytest.raises(CloudApiError, match=r"^runRetentionDays: requires") as refused:
        client.update_deployment(endpoint.id, run_retention_mode="unlimited")
        client.update_deployment(endpoint.id, run_retention_days=3)
    assert "Days: requires the retention mode" in form_message(refused.value)


@pytest.mark.parametrize(
    ("slug", "verdict"),
    [("a", "Must be 2 to 50"), ("An", "Must be"), ("an-endpoint", "is used by another"), ("free", "/e/free/v1"), (NAME, "Must be"), ("", "2 to 50")],
)  # fmt: skip
def test_a_slug_is_judged_while_it_is_typed(studio_env: Studio, endpoint: Deployment, slug: str, verdict: str) -> None:
    text = studio_env.get("/parts/slug", params={"slug": slug}).text
    assert verdict in text
    assert NAME not in text
    assert ('data-verdict="yes"' in text) is (slug == "free")


# Listing and changing


def test_the_list(studio_env: Studio, client: CloudApiClient) -> None:
    assert "No endpoints yet" in studio_env.get("/parts/endpoints").text
    job = trained(client, NAME)
    made = [
        client.create_deployment("first", {"kind": "adapter", "adapter": {"kind": "final", "jobId": job}}, "none"),
        client.create_deployment("second", BASE, "fixed_api_key"),
    ]
    client.update_deployment(made[1].id, enabled=False)
    eventually(lambda: NAME in html.unescape(studio_env.get("/parts/endpoints").text))  # the list is a second old
    text = studio_env.get("/parts/endpoints").text
    assert NAME not in text
    assert f"{html.escape(NAME, quote=False)}, final adapter" in text
    assert f"{client.base_url}/e/first/v1" in text
    assert (text.count(">enabled<"), text.count(">disabled<")) == (1, 1)
    for one in made:
        client.delete_deployment(one.id)


def test_disabled_enabled_and_with_another_model(
    studio_env: Studio, client: CloudApiClient, endpoint: Deployment
) -> None:
    path = f"/actions/endpoints/{endpoint.id}"
    assert "disabled" in studio_env.post(path, data={"enabled": "0"}).text
    key, _ = new_key(studio_env, endpoint)
    assert ask_endpoint(client, endpoint.slug, key).status_code == 404
    studio_env.post(path, data={"enabled": "1"})
    assert ask_endpoint(client, endpoint.slug, key).json()["choices"][0]["message"]["content"] == "scripted: Hi"
    job = trained(client, "the next one")
    assert "the next one, final adapter" in studio_env.post(path, data={"run": job, "step": "", "model": "x"}).text
    assert client.get_deployment(endpoint.id).target["adapter"] == {"kind": "final", "jobId": job}
    studio_env.post(path, data={"run": job, "step": "base", "model": ""})
    assert client.get_deployment(endpoint.id).target == BASE
    studio_env.post(path, data={"auth_mode": "none", "keep": "days", "days": "30"})
    changed = client.get_deployment(endpoint.id)
    assert (changed.auth_mode, changed.run_retention_days, changed.target) == ("none", 30, BASE)
    wrong = studio_env.post(path, data={"run": "nothing"})
    assert wrong.headers["HX-Retarget"] == "#toasts"
    assert "has no job" in wrong.text


def test_deleting_needs_its_name(studio_env: Studio, client: CloudApiClient, endpoint: Deployment) -> None:
    path = f"/actions/endpoints/{endpoint.id}/delete"
    for typed in ("", "another", "AN-ENDPOINT"):
        refused = studio_env.post(path, data={"slug": typed})
        assert refused.status_code == 400
        assert "type an-endpoint to delete" in refused.text
    assert studio_env.post(path, data={"slug": "an-endpoint"}).headers["HX-Redirect"] == "/endpoints"
    assert client.list_deployments() == []
    assert studio_env.get(f"/endpoints/{endpoint.id}").status_code == 404


# Keys


def test_a_key_is_shown_once(studio_env: Studio, client: CloudApiClient, endpoint: Deployment) -> None:
    key, page = new_key(studio_env, endpoint, NAME)
    assert NAME not in page
    assert ask_endpoint(client, endpoint.slug, key).status_code == 200
    for place in (f"/endpoints/{endpoint.id}", f"/parts/endpoints/{endpoint.id}", "/parts/endpoints"):
        text = studio_env.get(place).text
        assert key not in text
        assert key[:40] not in text
    assert key[:13] in text or key[:13] in studio_env.get(f"/endpoints/{endpoint.id}").text
    assert key not in (studio_env.folder / "studio.log").read_text()


def test_a_revoked_key_opens_nothing(studio_env: Studio, client: CloudApiClient, endpoint: Deployment) -> None:
    key, _ = new_key(studio_env, endpoint)
    id_ = client.list_deployment_keys(endpoint.id)[0].id
    assert "revoked" in studio_env.post(f"/actions/endpoints/{endpoint.id}/keys/{id_}/revoke").text
    assert ask_endpoint(client, endpoint.slug, key).status_code == 401


@pytest.mark.parametrize("label", ["", "   ", "x" * 81])
def test_a_label_that_is_none(studio_env: Studio, endpoint: Deployment, label: str) -> None:
    answer = studio_env.post(f"/actions/endpoints/{endpoint.id}/keys", data={"label": label})
    assert answer.status_code == 400
    assert "Label: must have 1 to 80 characters" in answer.text


# Code


@pytest.mark.parametrize("keyed", [True, False], ids=["with a key", "without"])
def test_the_quick_start_works_when_pasted(
    studio_env: Studio, client: CloudApiClient, endpoint: Deployment, keyed: bool
) -> None:
    pytest.importorskip("openai", reason="the code for OpenAI's package needs it")
    if keyed:
        _, page = new_key(studio_env, endpoint)
    else:
        client.update_deployment(endpoint.id, auth_mode="none")
        page = studio_env.get(f"/endpoints/{endpoint.id}").text
    assert "YOUR_KEY" not in page
    code, folder = shown(page), studio_env.folder
    assert run(code["Python"], folder) == "scripted: Hello!\n"
    answered = json.loads(run(code["curl"], folder, shell=True))
    assert answered["choices"][0]["message"]["content"] == "scripted: Hello!"
    if shutil.which("node"):
        (folder / "start.mjs").write_text(code["JavaScript"])
        assert run("node start.mjs", folder, shell=True) == "scripted: Hello!\n"


# Access


def test_nothing_changes_by_get_or_without_the_token(
    studio_env: Studio, client: CloudApiClient, endpoint: Deployment
) -> None:
    actions = ["", f"/{endpoint.id}", f"/{endpoint.id}/delete", f"/{endpoint.id}/keys", f"/{endpoint.id}/keys/x/revoke"]
    for action in actions:
        path = f"/actions/endpoints{action}"
        form = {"slug": "an-endpoint", "enabled": "0", "label": "x", "model": "m", "auth_mode": "none"}
        assert studio_env.get(path).status_code == 405
        assert requests.post(studio_env.url + path, data=form, timeout=10).status_code == 401
        assert studio_env.post(path, data=form, headers={"Origin": "http://example.com"}).status_code == 403
    assert [(one.slug, one.enabled) for one in client.list_deployments()] == [("an-endpoint", True)]
    assert client.list_deployment_keys(endpoint.id) == []


def test_one_of_another_project_is_not_there(studio_env: Studio) -> None:
    assert studio_env.get("/endpoints/nothing").status_code == 404
    assert studio_env.get("/endpoints/%2e%2e%2fjobs").status_code == 404
    assert studio_env.post("/actions/endpoints/nothing", data={"enabled": "0"}).status_code == 404


# A backend without endpoints


class Sparse(BaseHTTPRequestHandler):
    """A backend with projects and runs only."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        known: dict[str, Any] = {
            "/v1/projects": {"org": {"slug": "org"}, "projects": [{"id": "p", "slug": "my-project", "name": "x", "orgId": "o"}]},
            "/v1/me": {"user": {"id": "u", "email": None}, "orgs": [{"id": "o", "slug": "org", "name": "org"}]},
            "/v1/jobs": {"jobs": []},
        }  # fmt: skip
        self._say(200 if path in known else 404, known.get(path, {"error": "Not Found"}))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/v1/projects"):
            return self._say(200, {"project": {"id": "p", "slug": "my-project", "name": "x", "orgId": "o"}})
        return self._say(404, {"error": "Not Found"})

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def _say(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def minimal_studio(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """Studio with a remote backend that supports neither endpoints nor chat."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sparse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("ARKOR_TOKEN", "a-token-of-an-operator")
    started = start_studio(project)
    yield started
    started.process.kill()
    started.process.wait()
    server.shutdown()
    server.server_close()


def test_a_backend_that_lacks_them_says_so(minimal_studio: Studio) -> None:
    assert "This backend does not support endpoints" in minimal_studio.get("/parts/endpoints").text
    form = {"slug": "fine", "model": "org/m", "auth_mode": "none"}
    assert "no endpoints" in minimal_studio.post("/actions/endpoints", data=form).text
    body = {"messages": [{"role": "user", "content": "Hi"}], "baseModel": "org/m"}
    answer = minimal_studio.post("/streams/answers", json=body)
    assert answer.text == "This backend does not know the model, or does not support chat (Not Found)."
    page = minimal_studio.get("/playground").text
    assert "Choose a model" in page
    code = shown(minimal_studio.post("/parts/code", json=body).text)
    assert "$ARKOR_TOKEN" in code["curl"]
    assert "a-token-of" not in code["curl"]
