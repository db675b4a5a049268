"""Deployments and keys over HTTP: validation, access control, secrecy of keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import requests
from attrs import evolve

from tests.backend.caller import Caller, owner, stranger
from tests.conftest import Backend

pytestmark = pytest.mark.slow  # starts processes of its own

BASE = {"kind": "base_model", "baseModel": "any/model"}


def a_slug() -> str:
    return f"bot-{uuid4().hex[:12]}"


def body(**change: Any) -> dict[str, Any]:
    """Return a valid body with the change; None removes a field."""
    given = {"slug": a_slug(), "target": BASE, "authMode": "fixed_api_key", **change}
    return {name: value for name, value in given.items() if value is not None}


def create(caller: Caller, **change: Any) -> dict[str, Any]:
    answer = caller.call("POST", "/v1/endpoints", json=body(**change))
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()["deployment"]
    return made


def patch(caller: Caller, deployment: dict[str, Any], **change: Any) -> requests.Response:
    return caller.call("PATCH", f"/v1/endpoints/{deployment['id']}", json=change)


def refused(answer: requests.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.json()["code"]
    return str(answer.json()["error"])


@pytest.fixture(scope="module")
def finished(backend_env: Backend) -> str:
    """A finished run with a final adapter and checkpoints of steps 2, 4, … 10."""
    caller = owner(backend_env)
    job_id = caller.submit()
    caller.until(job_id, "completed")
    return job_id


@pytest.fixture
def deployment(caller: Caller) -> Iterator[dict[str, Any]]:
    made = create(caller)
    yield made
    caller.call("DELETE", f"/v1/endpoints/{made['id']}")


# Deployments


def test_a_deployment_has_every_field_of_the_protocol(caller: Caller) -> None:
    made = create(caller, slug="ab")
    ids = {name: made.pop(name) for name in ("id", "orgId", "projectId")}
    assert len(set(ids.values())) == 3
    assert made.pop("createdAt") == made.pop("updatedAt")
    assert made == {
        "slug": "ab",
        "target": BASE,
        "authMode": "fixed_api_key",
        "urlFormat": "openai_compat",
        "enabled": True,
        "customDomain": None,
        "runRetentionMode": "days",
        "runRetentionDays": 7,
    }


def test_what_was_made_is_listed_found_and_gone(caller: Caller) -> None:
    made = create(caller)
    path = f"/v1/endpoints/{made['id']}"
    assert made in caller.call("GET", "/v1/endpoints").json()["deployments"]
    assert caller.call("GET", path).json() == {"deployment": made}
    gone = caller.call("DELETE", path)
    assert (gone.status_code, gone.content) == (204, b"")
    assert made not in caller.call("GET", "/v1/endpoints").json()["deployments"]
    for method in ("GET", "DELETE"):
        assert made["id"] in refused(caller.call(method, path), 404)
    refused(patch(caller, made, enabled=False), 404)
    create(caller, slug=made["slug"])  # the slug is free again


def test_an_adapter_may_be_a_target(caller: Caller, finished: str) -> None:
    for adapter in ({"kind": "final", "jobId": finished}, {"kind": "checkpoint", "jobId": finished, "step": 10}):
        target = {"kind": "adapter", "adapter": adapter}
        assert create(caller, target=target)["target"] == target


def test_a_slug_is_there_once_on_the_whole_backend(
    backend_env: Backend, caller: Caller, deployment: dict[str, Any]
) -> None:
    for someone in (caller, stranger(backend_env)):
        answer = someone.call("POST", "/v1/endpoints", json=body(slug=deployment["slug"]))
        assert repr(deployment["slug"]) in refused(answer, 409)
        assert answer.json()["code"] == "slug_taken"


SLUGS: list[Any] = ["a", "-a", "a-", "A-b", "a_b", "ä-ö", "a b", "a\n", "../../etc", "a/b", "x" * 51, "", 5, ["a"]]


@pytest.mark.parametrize("slug", SLUGS, ids=repr)
def test_a_slug_that_cannot_be_had(caller: Caller, slug: Any) -> None:
    assert refused(caller.call("POST", "/v1/endpoints", json=body(slug=slug)), 400).startswith("slug: ")


@pytest.mark.parametrize("slug", ["www", "api", "admin", "localhost", "v1", "xn--bcher-kva"])
def test_a_reserved_slug_says_that_it_is(caller: Caller, slug: str) -> None:
    assert "reserved" in refused(caller.call("POST", "/v1/endpoints", json=body(slug=slug)), 400)


def adapter(**change: Any) -> dict[str, Any]:
    return {"target": {"kind": "adapter", "adapter": {"kind": "final", "jobId": "0" * 32, **change}}}


#: The field that the error names, the change, the status.
WRONG: list[tuple[str, dict[str, Any], int]] = [
    ("slug", {"slug": None}, 400),
    ("target", {"target": None}, 400),
    ("authMode", {"authMode": None}, 400),
    ("authMode", {"authMode": "open"}, 400),
    ("authMode", {"authMode": ["none"]}, 400),
    ("enabled", {"enabled": False}, 400),
    ("targets", {"targets": BASE}, 400),
    ("target", {"target": "any/model"}, 400),
    ("target", {"target": {"kind": "robot"}}, 400),
    ("target.baseModel", {"target": {"kind": "base_model"}}, 400),
    ("target.baseModel", {"target": {"kind": "base_model", "baseModel": " "}}, 400),
    ("target.jobId", {"target": {**BASE, "jobId": "x"}}, 400),
    ("target.adapter", {"target": {"kind": "adapter", "adapter": None}}, 400),
    ("target.adapter.jobId", adapter(jobId=""), 400),
    ("target.adapter.jobId", adapter(jobId=7), 400),
    ("target.adapter.step", adapter(step=1), 400),
    ("target.adapter.step", adapter(kind="checkpoint", step=-1), 400),
    ("target.adapter.step", adapter(kind="checkpoint", step=True), 400),
    ("target.adapter.step", adapter(kind="checkpoint"), 400),
    ("target.adapter.path", adapter(path="/etc"), 400),
    ("The project", adapter(), 404),
    ("The project", adapter(jobId="../../../etc"), 404),
    ("The project", adapter(jobId="%2e%2e"), 404),
    ("The project", adapter(jobId="x" * 100_000), 404),
    ("The project", adapter(jobId="\u202e\n\x1b[31m"), 404),
    ("runRetentionMode", {"runRetentionMode": "forever"}, 400),
    ("runRetentionDays", {"runRetentionDays": 0}, 400),
    ("runRetentionDays", {"runRetentionDays": -3}, 400),
    ("runRetentionDays", {"runRetentionDays": 1.5}, 400),
    ("runRetentionDays", {"runRetentionDays": True}, 400),
    ("runRetentionDays", {"runRetentionDays": "7"}, 400),
    ("runRetentionDays", {"runRetentionDays": 10**9}, 400),
    ("runRetentionDays", {"runRetentionDays": 10**400}, 400),
    ("runRetentionDays", {"runRetentionMode": "unlimited", "runRetentionDays": 7}, 400),
    ("runRetentionDays", {"runRetentionMode": "disabled", "runRetentionDays": 7}, 400),
]


@pytest.mark.parametrize(("field", "change", "status"), WRONG, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_named(caller: Caller, field: str, change: dict[str, Any], status: int) -> None:
    before = caller.call("GET", "/v1/endpoints").json()
    sentence = refused(caller.call("POST", "/v1/endpoints", json=body(**change)), status)
    assert sentence.startswith(f"{field}: " if status == 400 else field)
    assert len(sentence) < 500
    assert caller.call("GET", "/v1/endpoints").json() == before


def test_a_step_that_is_not_there_says_which_are(caller: Caller, finished: str) -> None:
    sentence = refused(
        caller.call("POST", "/v1/endpoints", json=body(**adapter(kind="checkpoint", jobId=finished, step=3))), 404
    )
    assert "step 8, 10." in sentence


def test_the_adapter_of_another_project_is_not_there(backend_env: Backend, caller: Caller, finished: str) -> None:
    other = stranger(backend_env)
    answer = other.call("POST", "/v1/endpoints", json=body(**adapter(jobId=finished)))
    assert "has no job" in refused(answer, 404)
    mine = create(other)
    refused(patch(other, mine, **adapter(jobId=finished)), 404)
    assert other.call("GET", f"/v1/endpoints/{mine['id']}").json()["deployment"] == mine


# Changes


def test_only_what_is_named_changes(caller: Caller, deployment: dict[str, Any], finished: str) -> None:
    target = adapter(jobId=finished)["target"]
    for change in ({"enabled": False}, {"authMode": "none"}, {"target": target}, {}):
        answer = patch(caller, deployment, **change)
        assert answer.status_code == 200, answer.text
        changed = answer.json()["deployment"]
        assert changed == {**deployment, **change, "updatedAt": changed["updatedAt"]}
        assert changed == caller.call("GET", f"/v1/endpoints/{deployment['id']}").json()["deployment"]
        deployment = changed


def retention(caller: Caller, deployment: dict[str, Any], **change: Any) -> tuple[Any, Any]:
    answer = patch(caller, deployment, **change)
    assert answer.status_code == 200, answer.text
    changed = answer.json()["deployment"]
    return changed["runRetentionMode"], changed.get("runRetentionDays")


def test_the_retention_pair(caller: Caller, deployment: dict[str, Any]) -> None:
    assert retention(caller, deployment, runRetentionDays=30) == ("days", 30)
    assert retention(caller, deployment, runRetentionMode="days") == ("days", 30)
    assert retention(caller, deployment, runRetentionMode="unlimited") == ("unlimited", None)
    assert refused(patch(caller, deployment, runRetentionDays=3), 400).startswith("runRetentionDays: ")
    assert retention(caller, deployment, runRetentionMode="days") == ("days", 7)
    assert retention(caller, deployment, runRetentionMode="disabled", runRetentionDays=None) == ("disabled", None)
    assert retention(caller, deployment, runRetentionMode="days", runRetentionDays=1) == ("days", 1)
    assert retention(caller, deployment, enabled=True) == ("days", 1)


def test_a_new_deployment_may_bring_either_of_the_pair(caller: Caller) -> None:
    for given, kept in (
        ({"runRetentionDays": 3}, ("days", 3)),
        ({"runRetentionMode": "days"}, ("days", 7)),
        ({"runRetentionMode": "unlimited"}, ("unlimited", None)),
        ({"runRetentionMode": "disabled"}, ("disabled", None)),
    ):
        made = create(caller, **given)
        assert (made["runRetentionMode"], made.get("runRetentionDays")) == kept


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("slug", {"slug": "other"}),
        ("enable", {"enable": True}),
        ("enabled", {"enabled": None}),
        ("enabled", {"enabled": 1}),
        ("authMode", {"authMode": None}),
        ("target", {"target": None}),
        ("runRetentionMode", {"runRetentionMode": None}),
        ("runRetentionDays", {"runRetentionDays": 0}),
    ],
)
def test_a_change_that_cannot_be(
    caller: Caller, deployment: dict[str, Any], field: str, change: dict[str, Any]
) -> None:
    assert refused(patch(caller, deployment, **change), 400).startswith(f"{field}: ")
    assert caller.call("GET", f"/v1/endpoints/{deployment['id']}").json()["deployment"] == deployment


# Access


def test_others_see_and_change_nothing(backend_env: Backend, caller: Caller, deployment: dict[str, Any]) -> None:
    path = f"/v1/endpoints/{deployment['id']}"
    key = caller.call("POST", f"{path}/keys", json={"label": "web"}).json()["key"]
    calls: list[tuple[str, str, Any]] = [
        ("GET", path, None),
        ("PATCH", path, {"enabled": False}),
        ("DELETE", path, None),
        ("GET", f"{path}/keys", None),
        ("POST", f"{path}/keys", {"label": "mine"}),
        ("DELETE", f"{path}/keys/{key['id']}", None),
    ]
    other = stranger(backend_env)
    assert other.call("GET", "/v1/endpoints").json() == {"deployments": []}
    for method, where, sent in calls:
        refused(other.call(method, where, json=sent), 404)
        refused(evolve(other, scope=caller.scope).call(method, where, json=sent), 403)
        refused(Caller(backend_env.url, key["plaintext"]).call(method, where, json=sent), 401)
        refused(Caller(backend_env.url, None).call(method, where, json=sent), 401)
        refused(caller.call(method, where, json=sent, params={"orgSlug": "local"}), 400)
    assert caller.call("GET", path).json()["deployment"] == deployment
    assert len(caller.call("GET", f"{path}/keys").json()["keys"]) == 1


@pytest.mark.parametrize("hostile", ["..", "%2e%2e", "%2e%2e%2fkeys", "%00", "x" * 3000, "é", "%0d%0aX: y", "' OR 1=1"])
def test_a_hostile_id_is_nobodys(caller: Caller, hostile: str) -> None:
    expected = (400,) if hostile == "%00" else (404, 405)
    for method in ("GET", "PATCH", "DELETE"):
        answer = caller.call(method, f"/v1/endpoints/{hostile}", json={})
        assert answer.status_code in expected, answer.text
        assert answer.json()["error"]
    assert caller.call("GET", f"/v1/endpoints/{hostile}/keys").status_code in expected


# Keys


def test_the_plaintext_is_shown_once(backend_env: Backend, caller: Caller, deployment: dict[str, Any]) -> None:
    path = f"/v1/endpoints/{deployment['id']}/keys"
    answer = caller.call("POST", path, json={"label": "  web  "})
    assert answer.status_code == 201
    key = answer.json()["key"]
    assert key.keys() == {"id", "label", "plaintext", "prefix", "createdAt"}
    assert key["label"] == "web"
    assert key["plaintext"].startswith("ark_live_")
    (listed,) = caller.call("GET", path).json()["keys"]
    shown = {name: key[name] for name in ("id", "label", "prefix", "createdAt")}
    assert listed == {**shown, "enabled": True, "lastUsedAt": None}
    for file in backend_env.home.rglob("*"):
        assert not file.is_file() or key["plaintext"].encode() not in file.read_bytes()


def test_a_revoked_key_stays_listed(caller: Caller, deployment: dict[str, Any]) -> None:
    path = f"/v1/endpoints/{deployment['id']}/keys"
    first, second = (caller.call("POST", path, json={"label": name}).json()["key"]["id"] for name in ("a", "b"))
    for _ in range(2):
        assert caller.call("DELETE", f"{path}/{first}").status_code == 204
    listed = {key["id"]: key["enabled"] for key in caller.call("GET", path).json()["keys"]}
    assert listed == {first: False, second: True}
    assert "no key" in refused(caller.call("DELETE", f"{path}/nothing"), 404)


@pytest.mark.parametrize("label", ["", "   ", "x" * 81, 5, None, ["a"], "a\nb", "\x1b[31m", "a\0"])
def test_a_label_that_cannot_be(caller: Caller, deployment: dict[str, Any], label: Any) -> None:
    answer = caller.call("POST", f"/v1/endpoints/{deployment['id']}/keys", json={"label": label})
    assert refused(answer, 400).startswith("label: ")


def test_labels_may_be_long_and_in_any_language(caller: Caller, deployment: dict[str, Any]) -> None:
    for label in ("x" * 80, "顧客サポート 🎈"):
        answer = caller.call("POST", f"/v1/endpoints/{deployment['id']}/keys", json={"label": f" {label}\t"})
        assert answer.json()["key"]["label"] == label
