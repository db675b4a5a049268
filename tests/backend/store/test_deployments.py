"""Deployments and keys in the database: what is unique, what is kept of a key, how often its use is written."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from attrs import evolve

from arkor.backend.store.deployments import MAX_KEYS, DeploymentStore, TooManyKeys
from arkor.backend.store.schema import AlreadyExists
from arkor.backend.store.store import Store, new_id
from arkor.protocol.deployments import Deployment
from arkor.protocol.events import now


@pytest.fixture
def endpoints(store: Store) -> DeploymentStore:
    return store.deployments


def make_deployment(store: Store, slug: str = "bot") -> Deployment:
    user = store.user("the owner's token")
    assert user
    (org,) = store.orgs(user)
    project = store.project(org, "default")
    assert project
    return Deployment(
        new_id(),
        slug,
        {"kind": "base_model", "baseModel": "any/model"},
        "fixed_api_key",
        org_id=org.id,
        project_id=project.id,
        run_retention_mode="days",
        run_retention_days=7,
        created_at=now(),
        updated_at=now(),
    )


@pytest.fixture
def deployment(store: Store) -> Deployment:
    made = make_deployment(store)
    store.deployments.add(made)
    return made


def statements(path: Path, query: str) -> list[object]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_a_deployment_comes_back_as_it_went(endpoints: DeploymentStore, deployment: Deployment) -> None:
    assert endpoints.get(deployment.id) == endpoints.by_slug("bot") == deployment
    assert endpoints.of_project(deployment.project_id) == endpoints.all() == [deployment]
    assert endpoints.get("other") is None
    assert endpoints.by_slug("other") is None
    assert endpoints.of_project("other") == []


def test_a_slug_is_there_once(store: Store, endpoints: DeploymentStore, deployment: Deployment) -> None:
    with pytest.raises(AlreadyExists):
        endpoints.add(make_deployment(store))
    endpoints.add(make_deployment(store, "a-bot"))
    assert [one.slug for one in endpoints.of_project(deployment.project_id)] == ["a-bot", "bot"]


def test_only_what_is_named_is_changed(endpoints: DeploymentStore, deployment: Deployment) -> None:
    assert endpoints.replace(deployment.id, {}) == deployment
    target = {"kind": "base_model", "baseModel": "other/model"}
    changed = endpoints.replace(deployment.id, {"target": target, "enabled": False})
    assert changed is not None
    assert changed == evolve(deployment, target=target, enabled=False, updated_at=changed.updated_at)
    assert changed.updated_at >= deployment.updated_at
    assert endpoints.replace("gone", {"enabled": False}) is None


def test_a_key_is_shown_once_and_kept_as_a_hash(
    tmp_path: Path, endpoints: DeploymentStore, deployment: Deployment
) -> None:
    key = endpoints.add_key(deployment.id, "web")
    assert key.plaintext is not None
    assert key.plaintext.startswith("ark_live_")
    assert len(key.plaintext) == len("ark_live_") + 43  # 256 bits
    assert key.plaintext.startswith(key.prefix)
    assert len(key.prefix) < 16
    assert key.plaintext not in repr(key)
    (listed,) = endpoints.keys_of(deployment.id)
    assert listed == evolve(key, plaintext=None)
    assert key.plaintext.encode() not in (tmp_path / "arkor.db").read_bytes()


def test_a_key_opens_its_own_deployment_until_it_is_revoked(
    store: Store, endpoints: DeploymentStore, deployment: Deployment
) -> None:
    other = make_deployment(store, "other")
    endpoints.add(other)
    key = endpoints.add_key(deployment.id, "web")
    assert key.plaintext
    assert endpoints.verify_key(deployment.id, key.plaintext) == key.id
    assert endpoints.verify_key(other.id, key.plaintext) is None
    for wrong in ("", "ark_live_", key.prefix, key.plaintext[:-1], key.plaintext + "x", "\ud800", "ä"):
        assert endpoints.verify_key(deployment.id, wrong) is None
    assert not endpoints.revoke_key(other.id, key.id)
    assert endpoints.revoke_key(deployment.id, key.id)
    assert endpoints.revoke_key(deployment.id, key.id)
    assert endpoints.verify_key(deployment.id, key.plaintext) is None
    assert [one.enabled for one in endpoints.keys_of(deployment.id)] == [False]


def test_a_deployment_takes_its_keys_along(tmp_path: Path, endpoints: DeploymentStore, deployment: Deployment) -> None:
    key = endpoints.add_key(deployment.id, "web")
    assert key.plaintext
    endpoints.remove(deployment.id)
    assert endpoints.get(deployment.id) is None
    assert endpoints.verify_key(deployment.id, key.plaintext) is None
    assert statements(tmp_path / "arkor.db", "SELECT count(*) FROM deployment_keys") == [(0,)]
    with pytest.raises(LookupError):
        endpoints.add_key(deployment.id, "late")


def test_there_is_an_end_to_keys(endpoints: DeploymentStore, deployment: Deployment) -> None:
    made = [endpoints.add_key(deployment.id, str(number)) for number in range(MAX_KEYS)]
    with pytest.raises(TooManyKeys):
        endpoints.add_key(deployment.id, "one more")
    endpoints.revoke_key(deployment.id, made[0].id)
    endpoints.add_key(deployment.id, "one more")


def test_the_last_use_is_known_at_once_and_written_once_a_minute(tmp_path: Path, deployment: Deployment) -> None:
    path = tmp_path / "arkor.db"
    store = Store(path)
    key = store.deployments.add_key(deployment.id, "web")
    assert key.plaintext
    assert [one.last_used_at for one in store.deployments.keys_of(deployment.id)] == [None]
    used = []
    for _ in range(200):
        store.deployments.verify_key(deployment.id, key.plaintext)
        (listed,) = store.deployments.keys_of(deployment.id)
        used.append(listed.last_used_at)
        written = statements(path, "SELECT last_used_at FROM deployment_keys")
        assert len({str(at)[:16] for at in (listed.last_used_at, written[0][0])}) == 1
    assert used == sorted(used, key=str)
    assert len(set(used)) > 1
    store.close()
    assert statements(path, "SELECT last_used_at FROM deployment_keys") == [(used[-1],)]


def test_a_busy_key_hardly_writes(tmp_path: Path, endpoints: DeploymentStore, deployment: Deployment) -> None:
    key = endpoints.add_key(deployment.id, "web")
    assert key.plaintext
    plaintext = key.plaintext
    with closing(sqlite3.connect(tmp_path / "arkor.db")) as watcher:
        before = watcher.execute("PRAGMA data_version").fetchone()[0]
        versions = set()
        with ThreadPoolExecutor(4) as threads:
            for opened in threads.map(lambda _: endpoints.verify_key(deployment.id, plaintext), range(300)):
                assert opened == key.id
                versions.add(watcher.execute("PRAGMA data_version").fetchone()[0])
    assert len(versions - {before}) <= 2  # once, or twice if a minute ended meanwhile
