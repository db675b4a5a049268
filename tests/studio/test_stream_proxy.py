"""The event streams for the browser: complete, resumable, and closed with the browser's connection."""

from __future__ import annotations

import asyncio
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from starlette.types import Message

from arkor.client.api import CloudApiClient
from arkor.studio.security import TOKEN_HEADER
from arkor.studio.stream_proxy import open_proxy
from tests.conftest import Backend, start_backend
from tests.studio.conftest import Studio, submit, until


def ids(text: str) -> list[str]:
    return re.findall(r"(?m)^id: (.+)$", text)


def connections(backend: Backend) -> int:
    """Return the number of open connections of the backend."""
    return sum(item.status == "ESTABLISHED" for item in psutil.Process(backend.process.pid).net_connections("tcp"))


def test_the_whole_history_as_the_backend_has_it(studio_env: Studio, client: CloudApiClient) -> None:
    job = submit(client, max_steps=5)
    until(client, job, "completed")
    answer = studio_env.get(f"/streams/runs/{job}")
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    with client.open_event_stream(job) as direct:
        assert answer.content == direct.content
    assert answer.text.endswith("event: end\ndata: {}\n\n")


def test_it_goes_on_behind_the_last_event_id(studio_env: Studio, client: CloudApiClient) -> None:
    job = submit(client, max_steps=5)
    until(client, job, "completed")
    every = ids(studio_env.get(f"/streams/runs/{job}").text)
    rest = studio_env.get(f"/streams/runs/{job}", headers={"Last-Event-ID": every[3]}).text
    assert ids(rest) == every[4:]


def test_up_to_now_and_no_longer(slow_studio: Studio, client: CloudApiClient) -> None:
    job = submit(client, max_steps=100_000, model="org/m")
    until(client, job, "running")
    waiting = submit(client)
    began = time.monotonic()
    assert slow_studio.get(f"/streams/runs/{waiting}?once").text == ""  # it is queued after the other run
    assert time.monotonic() - began < 20
    began = time.monotonic()
    seen = ids(slow_studio.get(f"/streams/runs/{job}?once").text)  # it logs every tenth of a second and never pauses
    assert time.monotonic() - began < 20
    more = ids(slow_studio.get(f"/streams/runs/{job}?once", headers={"Last-Event-ID": seen[-1]}).text)
    assert seen
    assert more
    assert not set(seen) & set(more)
    client.cancel_job(job)


def test_a_run_that_goes_on_comes_as_it_comes(slow_studio: Studio, client: CloudApiClient) -> None:
    job = submit(client, max_steps=30)
    headers = {TOKEN_HEADER: slow_studio.token}
    with requests.get(f"{slow_studio.url}/streams/runs/{job}", headers=headers, stream=True, timeout=20) as answer:
        seen = [line for line in answer.iter_lines() if line.startswith(b"event: training.log")]
    assert len(seen) == 30
    assert client.get_job(job).status == "completed"


def test_leaving_ends_the_connection_to_the_backend(
    slow_studio: Studio, slow_backend: Backend, client: CloudApiClient
) -> None:
    job = submit(client, max_steps=1000)
    until(client, job, "running")
    slow_studio.get("/parts/runs")
    before = connections(slow_backend)
    headers = {TOKEN_HEADER: slow_studio.token}
    tabs = [
        requests.get(f"{slow_studio.url}/streams/runs/{job}", headers=headers, stream=True, timeout=20)
        for _ in range(8)
    ]
    assert connections(slow_backend) > before + 6  # one idle connection may have been reused
    for tab in tabs:
        next(tab.iter_content(1))
        tab.close()
    deadline = time.monotonic() + 30
    while connections(slow_backend) > before + 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.get_job(job).status == "running"
    threads = psutil.Process(slow_studio.process.pid).num_threads()
    assert threads < 40
    client.cancel_job(job)


@pytest.mark.parametrize("path", ["/streams/runs/nothing", "/streams/runs/..", "/streams/runs/%00"])
def test_what_is_no_run(studio_env: Studio, path: str) -> None:
    answer = studio_env.get(path)
    assert answer.status_code in (400, 404)
    assert "Traceback" not in answer.text


def test_a_backend_that_dies_ends_the_stream_and_is_there_again(
    slow_studio: Studio, slow_backend: Backend, client: CloudApiClient, tmp_path: Path
) -> None:
    job = submit(client, max_steps=60)
    headers = {TOKEN_HEADER: slow_studio.token}
    with requests.get(f"{slow_studio.url}/streams/runs/{job}", headers=headers, stream=True, timeout=20) as answer:
        text = ""
        for chunk in answer.iter_content(None, decode_unicode=True):
            text += chunk
            if text.count("training.log") > 5 and slow_backend.process.poll() is None:
                slow_backend.process.kill()
                slow_backend.process.wait()
    assert slow_backend.process.poll() is not None
    seen = ids(text.rpartition("\n\n")[0] + "\n")
    again = start_backend(Path(os.environ["ARKOR_HOME"]), "--engine", "scripted")
    rest = slow_studio.get(f"/streams/runs/{job}", headers={"Last-Event-ID": seen[-1]}).text
    steps = [int(step) for step in re.findall(r'"training.log".*?"step":(\d+)', text.rpartition("\n\n")[0] + rest)]
    assert steps == list(range(1, 61))
    again.process.kill()
    again.process.wait()


def test_a_browser_that_leaves_ends_no_connection_but_its_own(slow_backend: Backend, client: CloudApiClient) -> None:
    job = submit(client, max_steps=3)
    until(client, job, "completed")
    going = submit(client, max_steps=1000)
    until(client, going, "running")
    relay = open_proxy(lambda: client.open_event_stream(job))
    others: list[requests.Response] = []

    async def leave(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(0.5)  # everything has been read, so its connection is free for the next call
            others.append(client.open_event_stream(going))
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - it has no message
        with ThreadPoolExecutor(1) as elsewhere:  # a browser of other tests may use this thread's event loop
            elsewhere.submit(asyncio.run, relay.stream_response(leave)).result()
    with others[0] as other:
        lines = other.iter_lines()
        assert [next(lines) for _ in range(100)]
    client.cancel_job(going)
