"""The processes that Studio starts: one for each click, independent of Studio."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from arkor.client.api import CloudApiClient
from arkor.studio.run_processes import RunProcesses
from arkor.studio.security import TOKEN_HEADER
from tests.studio.conftest import Studio, start_studio, until


def eventually(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def click(studio: Studio, name: str = "", **form: str) -> str:
    name = name or uuid.uuid4().hex
    answer = studio.post("/actions/launch", data={"click": name, **form})
    assert answer.status_code == 200, answer.text
    return name


def test_a_click_runs_the_trainer_and_shows_what_it_prints(studio_env: Studio, client: CloudApiClient) -> None:
    name = click(studio_env)
    printed = studio_env.get(f"/streams/launches/{name}").text  # to the end of the process
    job = client.list_jobs()[0]
    assert f"support-bot: run {job.id}" in printed
    assert "support-bot: completed" in printed
    state = studio_env.get(f"/parts/launches/{name}").text
    assert ">ended<" in state
    assert f"/runs/{job.id}" in state


def test_a_double_click_is_one(studio_env: Studio, client: CloudApiClient) -> None:
    before, name = len(client.list_jobs()), uuid.uuid4().hex
    for _ in range(3):
        click(studio_env, name)
    studio_env.get(f"/streams/launches/{name}")
    assert len(client.list_jobs()) == before + 1


def test_the_page_gives_each_button_a_click_of_its_own(studio_env: Studio) -> None:
    first, second = studio_env.get("/parts/trainer").text, studio_env.get("/parts/trainer").text
    clicks = [line for text in (first, second) for line in text.splitlines() if 'name="click"' in line]
    assert len(clicks) == len(set(clicks)) == 4


def test_a_dry_run(studio_env: Studio, client: CloudApiClient) -> None:
    studio_env.get(f"/streams/launches/{click(studio_env, dry_run='1')}")
    assert client.list_jobs()[0].config.dry_run is True


def test_a_trainer_that_cannot_start_says_so(studio: Studio, client: CloudApiClient) -> None:
    (studio.folder / "train.py").write_text("raise ValueError('mend me')\n")
    printed = studio.get(f"/streams/launches/{click(studio)}").text
    assert 'train.py", line 1' in printed
    assert "ValueError: mend me" in printed
    assert client.list_jobs() == []


def test_the_output_goes_on_from_where_it_was(studio_env: Studio) -> None:
    name = click(studio_env)
    whole = studio_env.get(f"/streams/launches/{name}").content
    assert studio_env.get(f"/streams/launches/{name}?from=10").content == whole[10:]
    assert studio_env.get(f"/streams/launches/{name}?from={len(whole)}").content == b""
    assert studio_env.get(f"/streams/launches/{name}?from=x").content == whole


def test_stopping_studio_stops_nothing_and_the_next_one_finds_it(slow_studio: Studio, client: CloudApiClient) -> None:
    entry = slow_studio.folder / "train.py"
    entry.write_text(entry.read_text().replace("max_steps=12", "max_steps=100_000"))
    name = click(slow_studio)
    eventually(lambda: [job for job in client.list_jobs() if job.status == "running"])
    slow_studio.stop()
    launch = RunProcesses(slow_studio.folder).find(name)
    assert launch
    assert launch.alive
    again = start_studio(slow_studio.folder)
    try:
        assert name in again.get("/").text
        assert ">running<" in again.get(f"/parts/launches/{name}").text
        (job,) = client.list_jobs()
        client.cancel_job(job.id)
        printed = again.get(f"/streams/launches/{name}").text  # from the start to the end of the process
        assert f"support-bot: run {job.id}" in printed
        assert f"Run {job.id} cancelled" in printed
    finally:
        again.stop()
    assert not launch.alive


def test_leaving_the_page_stops_nothing(slow_studio: Studio, client: CloudApiClient) -> None:
    name = click(slow_studio)
    headers = {TOKEN_HEADER: slow_studio.token}
    with requests.get(f"{slow_studio.url}/streams/launches/{name}", headers=headers, stream=True, timeout=10) as answer:
        next(answer.iter_content(1))
    eventually(client.list_jobs)
    until(client, client.list_jobs()[0].id, "completed")


def test_a_project_that_cannot_be_written(studio: Studio) -> None:
    (studio.folder / ".arkor").write_text("in the way")
    answer = studio.post("/actions/launch", data={"click": uuid.uuid4().hex})
    assert answer.status_code == 400
    assert "cannot be written" in answer.text
    assert answer.headers["HX-Retarget"] == "#toasts"


@pytest.mark.parametrize("id_", ["", "..", "x" * 32, "../launch", "0" * 32])
def test_what_is_no_launch(project: Path, id_: str) -> None:
    assert RunProcesses(project).find(id_) is None
