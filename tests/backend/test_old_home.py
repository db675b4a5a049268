"""A home that arkor 0.1.0 wrote opens unchanged: its runs, data set, deployment, key, conversation and project.

`tests/data/home-0.1.0.zip` has the folder `home`, a folder `project`, and in `expected.json` the responses of that
version's backend. The third run was killed after its checkpoint of step 4.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from arkor.backend.data.datasets import load_rows
from arkor.client.project_state import read_state
from arkor.protocol.datasets import BlobDataset
from tests.backend.caller import Caller, owner
from tests.conftest import Backend, start_backend, stop_backend

pytestmark = pytest.mark.slow  # starts a backend

ARCHIVE = Path(__file__).parent.parent / "data" / "home-0.1.0.zip"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "expected.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def old_backend(folder: Path) -> Iterator[Backend]:
    backend = start_backend(folder / "home", "--engine", "scripted")
    yield backend
    stop_backend(backend.home)
    backend.process.wait()


@pytest.fixture
def old_caller(old_backend: Backend) -> Caller:
    return owner(old_backend)


def test_the_token_of_the_owner_is_the_same(old_backend: Backend) -> None:
    assert zipfile.ZipFile(ARCHIVE).read("home/owner.token").decode() == old_backend.token


def test_its_runs_are_listed(old_caller: Caller, expected: dict[str, Any]) -> None:
    jobs = old_caller.call("GET", "/v1/jobs").json()["jobs"]
    assert [job["id"] for job in jobs] == [expected["killed"], expected["rich"], expected["plain"]]
    for found, before in zip(jobs[1:], expected["jobs"], strict=True):
        assert {name: found[name] for name in before} == before
    for job_id, before in expected["job"].items():
        found = old_caller.job(job_id)
        assert {name: found[name] for name in before} == before


@pytest.mark.parametrize("run", ["plain", "rich"])
def test_a_finished_run_is_streamed_as_before(old_caller: Caller, expected: dict[str, Any], run: str) -> None:
    stream = old_caller.call("GET", f"/v1/jobs/{expected[run]}/events/stream")
    assert stream.content.decode() == expected["events"][expected[run]]


def test_a_killed_run_resumes_from_its_checkpoint(old_caller: Caller, expected: dict[str, Any]) -> None:
    job = expected["killed"]
    old_caller.until(job, "completed")
    frames = list(old_caller.events(job))
    before = [json.loads(line) for line in expected["events"][job].splitlines()]
    assert [frame.data for frame in frames[: len(before)]] == before
    (resumed,) = [frame.data["step"] for frame in frames if frame.event == "training.resumed"]
    assert resumed == 4
    assert [frame.data["step"] for frame in frames if frame.event == "training.log"] == list(range(1, 9))


def test_its_data_set_is_read(old_backend: Backend, expected: dict[str, Any]) -> None:
    rows = load_rows(BlobDataset(expected["dataset"]), home=old_backend.home)
    assert [row["messages"][1]["content"] for row in rows.train] == ["0", "2", "4", "6", "8", "10"]


def test_its_deployment_answers_to_its_key(old_backend: Backend, old_caller: Caller, expected: dict[str, Any]) -> None:
    (deployment,) = expected["deployments"]
    (found,) = old_caller.call("GET", "/v1/endpoints").json()["deployments"]
    assert {name: found[name] for name in deployment} == deployment
    (key,) = old_caller.call("GET", f"/v1/endpoints/{deployment['id']}/keys").json()["keys"]
    assert key == expected["keys"][0]
    (day,) = (old_backend.home / "conversations" / deployment["id"]).glob("*.jsonl")
    before = day.read_bytes()
    body = {"model": "sums", "messages": [{"role": "user", "content": "What is 1 + 1?"}]}
    url = f"{old_backend.url}/e/{deployment['slug']}/v1/chat/completions"
    answer = requests.post(url, json=body, headers={"Authorization": f"Bearer {expected['key']}"}, timeout=30)
    assert answer.json()["choices"][0]["message"] == expected["answer"]
    assert day.read_bytes().startswith(before)
    assert (old_backend.home / "runs" / expected["rich"] / "checkpoints" / "6").is_dir()  # it is pinned


@pytest.mark.parametrize("run", ["plain", "rich"])
def test_its_runs_are_exported(old_backend: Backend, old_caller: Caller, expected: dict[str, Any], run: str) -> None:
    job = expected[run]
    exported = zipfile.ZipFile(io.BytesIO(old_caller.call("GET", f"/v1/jobs/{job}/export").content))
    kept = [name for name in zipfile.ZipFile(ARCHIVE).namelist() if name.startswith(f"home/runs/{job}/")]
    kept = [name for name in kept if name.split("/")[3] not in ("pins", "retired")]
    assert sorted(exported.namelist()) == sorted(name.removeprefix("home/runs/") for name in kept)
    for name in kept:
        assert exported.read(name.removeprefix("home/runs/")) == zipfile.ZipFile(ARCHIVE).read(name)


def test_its_project_is_known(folder: Path, expected: dict[str, Any]) -> None:
    state = read_state(folder / "project")
    assert state is not None
    assert (state.org_slug, state.project_slug) == ("local", "default")
    assert state.project_id == expected["jobs"][0]["projectId"]
