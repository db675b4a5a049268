"""`arkor endpoints`, against a real backend."""

from __future__ import annotations

import json
import subprocess

import pytest
import requests

from arkor.client.api import CloudApiClient
from arkor.client.auth.credentials import AnonymousCredentials, write_credentials
from arkor.protocol.codec import from_wire
from arkor.protocol.deployments import Deployment
from arkor.studio.model_selection import address_of
from tests.cli.conftest import ARKOR, Run
from tests.conftest import Backend
from tests.fakes.http_server import Answer, HttpServer, Request

pytestmark = pytest.mark.slow  # every test starts processes of its own

QUESTION = {"model": "any", "messages": [{"role": "user", "content": "Hello"}]}


def ask(backend: Backend, slug: str, key: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{backend.url}/e/{slug}/v1/chat/completions"
    return requests.post(url, json=QUESTION, headers=headers, timeout=60).status_code


def test_from_nothing_to_a_key_and_back(backend: Backend, run: Run, run_anew: Run, finished_run: str) -> None:
    finished = finished_run
    assert "No endpoints yet." in run("endpoints", "list").stdout
    made = run_anew("endpoints", "create", "triage", "--run", finished[:12])
    assert made.returncode == 0, made.stderr
    first = f"triage serves the run {finished} at {backend.url}/e/triage/v1"
    assert made.stdout.splitlines() == [
        first,
        "Requests need a key: arkor endpoints keys create triage --label LABEL",
    ]
    assert ask(backend, "triage") == 401
    key = run("endpoints", "keys", "create", "triage", "--label", " ci ")
    assert (key.returncode, key.stdout.count("\n"), key.stdout[:9]) == (0, 1, "ark_live_"), key.stderr
    plaintext = key.stdout.strip()
    assert plaintext not in key.stderr
    assert "It cannot be shown again." in key.stderr
    assert ask(backend, "triage", plaintext) == 200
    (listed,) = json.loads(run("endpoints", "keys", "list", "triage", "--json").stdout)
    assert (listed["label"], listed["enabled"], "plaintext" in listed) == ("ci", True, False)
    table = run("endpoints", "keys", "list", "triage").stdout
    assert plaintext not in table
    assert run("endpoints", "keys", "revoke", "triage", listed["id"]).stdout == "The key ci is revoked.\n"
    assert ask(backend, "triage", plaintext) == 401
    assert "revoked" in run("endpoints", "keys", "list", "triage").stdout
    assert run("endpoints", "delete", "triage").stdout == "Deleted triage and its keys.\n"
    assert ask(backend, "triage", plaintext) == 404


def test_deployments_of_the_managed_cloud(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The addresses are those of a client of the cloud; the list is that of a server with the cloud's fields."""
    listed = {"id": "d", "slug": "menu", "target": {"kind": "model_menu", "models": ["a"]}, "authMode": "none"}
    listed |= {"enabled": True, "expiresAt": "2030-01-02T12:00:00.000Z"}
    deployment = from_wire(Deployment, listed)
    cloud = CloudApiClient("https://api.arkor.ai", AnonymousCredentials("t", "a", "https://api.arkor.ai", "o"))
    assert address_of(cloud, deployment) == "https://menu.arkor.app/v1"
    project = {"id": "p", "slug": "project", "name": "p", "orgId": "o"}
    projects = Answer(200, {"projects": [project], "project": project})

    def answer(request: Request) -> Answer:
        return Answer(200, {"deployments": [listed]}) if request.path == "/v1/endpoints" else projects

    with HttpServer(answer) as server:
        monkeypatch.setenv("ARKOR_CLOUD_API_URL", server.url)
        write_credentials(AnonymousCredentials("t", "a", server.url, "o"))
        done = run("endpoints", "list")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("menu"))
    assert "enabled until 2030-01-02" in line
    assert "a model menu" in line


def test_what_is_changed_and_what_stays(backend: Backend, run: Run, finished_run: str) -> None:
    finished = finished_run
    made = run(
        "endpoints", "create", "open-one", "--run", f"{finished}@5", "--auth", "none", "--keep", "disabled", "--json"
    )
    created = json.loads(made.stdout)
    assert created["target"] == {"kind": "adapter", "adapter": {"kind": "checkpoint", "jobId": finished, "step": 5}}
    assert (created["authMode"], created["runRetentionMode"]) == ("none", "disabled")
    assert ask(backend, "open-one") == 200
    off = run("endpoints", "update", "open-one", "--disable")
    assert off.stdout == f"open-one is disabled and serves the run {finished} at step 5.\n"
    assert ask(backend, "open-one") == 404
    changed = run(
        "endpoints", "update", created["id"], "--enable", "--run", finished, "--keep", "days", "--keep-days", "3"
    )
    assert changed.stdout == f"open-one is enabled and serves the run {finished}.\n", changed.stderr
    (now,) = json.loads(run("endpoints", "list", "--json").stdout)
    assert (now["runRetentionMode"], now["runRetentionDays"], now["authMode"]) == ("days", 3, "none")
    line = run("endpoints", "list").stdout.splitlines()[1]
    assert line.split()[:3] == ["open-one", "enabled", "none"]
    assert line.endswith(f"{backend.url}/e/open-one/v1")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create", "ok-slug"], "missing model: use --run JOB[@STEP] or --base-model MODEL"),
        (["create", "No", "--base-model", "m"], "Invalid value for SLUG: must be 2 to 50"),
        (["create", "ok-slug", "--run", "nowhere"], "no run has the id 'nowhere'"),
        (["create", "ok-slug", "--base-model", "m", "--run", "x"], "--run and --base-model cannot be used together"),
        (["create", "ok-slug", "--base-model", " "], "Invalid value for --base-model"),
        (["create", "ok-slug", "--base-model", "m", "--keep", "disabled", "--keep-days", "2"], "for --keep-days"),
        (["create", "www", "--base-model", "scripted/model"], "www"),
        (["update", "nobody", "--disable"], "this project has no endpoint 'nobody'"),
        (["update", "nobody"], "nothing to change: use"),
        (["delete", "nobody"], "this project has no endpoint 'nobody'"),
        (["keys", "create", "nobody", "--label", "x"], "this project has no endpoint 'nobody'"),
        (["keys", "create", "nobody"], "Missing option '--label'"),
    ],
)
def test_what_makes_no_sense(backend_env: Backend, run: Run, arguments: list[str], says: str) -> None:
    done = run("endpoints", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_backend_refuses(backend_env: Backend, run: Run, finished: str) -> None:
    assert run("endpoints", "create", "twice", "--run", finished).returncode == 0
    taken = run("endpoints", "create", "twice", "--run", finished)
    assert taken.returncode == 1
    assert "twice" in taken.stderr
    assert len(taken.stderr.splitlines()) == 1
    step = run("endpoints", "create", "no-step", "--run", f"{finished}@77")
    assert step.returncode == 2
    words = run("endpoints", "create", "no-step", "--run", f"{finished}@last")
    assert "for --run: must be the step of a checkpoint, a whole number, not 'last'" in words.stderr
    label = run("endpoints", "keys", "create", "twice", "--label", "x" * 81)
    assert "Invalid value for --label: must have 1 to 80 characters" in label.stderr
    key = run("endpoints", "keys", "revoke", "twice", "no-key")
    assert "`arkor endpoints keys list twice` lists its keys" in key.stderr


def test_a_key_goes_into_a_variable_of_the_shell(
    backend_env: Backend, run: Run, finished: str, project: object
) -> None:
    run("endpoints", "create", "shell", "--run", finished)
    command = f'KEY=$({" ".join(ARKOR)} endpoints keys create shell --label ci 2>/dev/null); printf "%s" "$KEY"'
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert ask(backend_env, "shell", done.stdout) == 200


def test_what_a_backend_of_tomorrow_says(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {"id": "d", "slug": "odd\x1b[31m", "target": {"kind": "chorus"}, "authMode": "badge"}
    odd["url"] = "https://odd.example/v1"
    every = {"user": {"id": "u"}, "orgs": [{"id": "o", "slug": "org"}], "project": {"id": "p", "slug": "project"}}
    with HttpServer(Answer(body={**every, "deployments": [odd]})) as server:
        monkeypatch.setenv("ARKOR_CLOUD_API_URL", server.url)
        monkeypatch.setenv("ARKOR_TOKEN", "token-of-the-operator")
        done = run("endpoints", "list")
        (kept,) = json.loads(run("endpoints", "list", "--json").stdout)
    assert done.returncode == 0, done.stderr
    assert "https://odd.example/v1" in done.stdout
    assert "an unknown kind of model" in done.stdout
    assert "\x1b" not in done.stdout
    assert kept["url"] == odd["url"]
