"""Checks over HTTP: results, waiting, cancellation, crashes, and the estimate of a later run."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.backend.caller import Caller, Frame, owner, stranger
from tests.conftest import Backend

ROWS = b"""{"text": "one"}
{"text": "two"}
{"text": "one"}
"""


def uploaded(caller: Caller, content: bytes = ROWS) -> dict[str, Any]:
    answer = caller.call("POST", "/v1/datasets", params={**caller.scope, "filename": "rows.jsonl"}, data=content)
    return {"type": "blob", "url": answer.json()["dataset"]["url"]}


def post_check(caller: Caller, *, status: int = 200, **config: Any) -> requests.Response:
    body = {"config": {"model": "scripted/model", "datasetSource": {"type": "huggingface", "name": "rows"}, **config}}
    answer = caller.call("POST", "/v1/jobs/check", json=body, stream=True)
    assert answer.status_code == status, answer.text
    return answer


def frames(answer: requests.Response) -> Generator[Frame, None, None]:
    pending = b""
    with answer:
        while chunk := answer.raw.read1():
            *whole, pending = (pending + chunk).split(b"\n\n")
            for block in whole:
                fields = dict(line.split(": ", 1) for line in block.decode().split("\n"))
                yield Frame(fields.get("id"), fields["event"], json.loads(fields["data"]))


def check_result(caller: Caller, **config: Any) -> dict[str, Any]:
    """Return all results of a complete stream."""
    output = list(frames(post_check(caller, **config)))
    assert output[-1].event == "end"
    parts = [frame.data["found"] for frame in output if frame.event == "check.found"]
    return {name: value for part in parts for name, value in part.items()}


def check_processes(backend: Backend) -> list[psutil.Process]:
    """Return the check processes of this backend."""
    wanted = ["arkor.backend.preflight.process", str(backend.home)]
    return [one for one in psutil.process_iter(["cmdline"]) if all(w in (one.info["cmdline"] or []) for w in wanted)]


def until(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_rows_duplicates_and_an_estimate(caller: Caller) -> None:
    check = check_result(caller, datasetSource=uploaded(caller), maxSteps=7)
    assert (check["trainRows"], check["format"]) == (3, "text")
    assert check["duplicates"] == {"within": 1, "between": 0, "withinExamples": [[3, 1]], "betweenExamples": []}
    assert check["estimate"]["steps"] == 7


def test_errors_are_reported_by_line(caller: Caller) -> None:
    lines = [b'{"text": "fine"}', *[b'{"text": ""}'] * 1200]
    check = check_result(caller, datasetSource=uploaded(caller, b"\n".join(lines)))
    assert check["problemCount"] == 1200
    assert check["problems"][0] == "line 2: text: is empty; write a text there or leave the row out"
    assert check["problems"][-1].startswith("line 21:")  # the scripted engine reports as many as a run
    assert "estimate" not in check


def test_a_run_of_the_same_configuration_has_the_estimate(caller: Caller) -> None:
    source = uploaded(caller)
    estimate = check_result(caller, datasetSource=source, maxSteps=3)["estimate"]
    same, other = caller.submit(datasetSource=source, maxSteps=3), caller.submit(datasetSource=source, maxSteps=4)
    started = {job: next(f.data for f in caller.events(job) if f.event == "training.started") for job in (same, other)}
    assert started[same]["estimate"] == estimate
    assert "estimate" not in started[other]


def test_tokens_are_not_stored_or_returned(caller: Caller, backend_env: Backend) -> None:
    source = {"type": "blob", "url": "http://127.0.0.1:9/rows.jsonl", "token": "hf_very_secret_token"}
    with post_check(caller, datasetSource=source) as answer:
        assert b"very_secret" not in answer.content
    files = [file for file in backend_env.home.rglob("*") if file.is_file() and "check" in str(file)]
    assert all(b"very_secret" not in file.read_bytes() for file in files)


def test_a_configuration_that_cannot_be_trained_is_refused(caller: Caller) -> None:
    *_, failed, end = frames(post_check(caller, model="scripted/fail"))
    assert (failed.event, end.event) == ("check.failed", "end")
    assert failed.data["status"] == 400
    assert "fails by design" in failed.data["error"]
    assert "config.maxSteps" in post_check(caller, status=400, maxSteps=0).json()["error"]


def test_rows_of_another_project_are_refused(caller: Caller, backend_env: Backend) -> None:
    source = uploaded(caller, b'{"text": "not yours"}')
    assert "no file of this project" in post_check(stranger(backend_env), status=400, datasetSource=source).text


def test_the_estimate_notes_a_concurrent_run(slow_backend: Backend) -> None:
    caller = owner(slow_backend)
    assert not check_result(caller, maxSteps=50)["estimate"]["busy"]
    job = caller.submit(maxSteps=50)
    caller.until_step(job, 1)
    assert check_result(caller, maxSteps=50)["estimate"]["busy"]
    assert caller.job(job)["status"] == "running"


@pytest.fixture
def endless_url(tmp_path: Path) -> Iterator[str]:
    """The URL of a file that never ends."""
    import socket  # noqa: PLC0415 - here alone

    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/rows.jsonl"


@pytest.fixture
def silent_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A backend that may download from this machine."""
    from tests.conftest import start_backend  # noqa: PLC0415 - as above

    monkeypatch.setenv("ARKOR_ALLOW_PRIVATE_URLS", "1")
    started = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    yield started
    started.process.kill()
    started.process.wait()


def test_a_starting_run_takes_precedence(silent_backend: Backend, endless_url: str) -> None:
    caller = owner(silent_backend)
    output = started_check(caller, endless_url)
    [process] = check_processes(silent_backend)
    assert process.nice() == 0
    caller.submit(model="scripted/model", maxSteps=3_000_000)
    until(lambda: process.nice() == 5)
    threads = [psutil.Process(thread.id).nice() for thread in process.threads()]
    assert set(threads) == {5}
    output.close()


def started_check(caller: Caller, url: str) -> Generator[Frame, None, None]:
    """Start a check that waits for its data."""
    output = frames(post_check(caller, datasetSource={"type": "blob", "url": url}))
    assert next(output).data["message"] == "Reading the data"
    return output


def test_disconnecting_ends_a_check_and_starts_the_next(silent_backend: Backend, endless_url: str) -> None:
    caller = owner(silent_backend)
    answer = post_check(caller, datasetSource={"type": "blob", "url": endless_url})
    until(lambda: check_processes(silent_backend))
    second = frames(post_check(caller))
    assert next(second).data["message"] == "Waiting for another check to end"
    [process] = check_processes(silent_backend)
    answer.close()
    assert [frame.event for frame in second][-1] == "end"
    until(lambda: not process.is_running())
    until(lambda: not check_processes(silent_backend))
    until(lambda: not list((silent_backend.home / "checks").glob(".at-work-*")))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_crash_is_reported(silent_backend: Backend, endless_url: str, number: signal.Signals) -> None:
    output = started_check(owner(silent_backend), endless_url)
    check_processes(silent_backend)[0].send_signal(number)
    *_, failed, end = output
    assert (failed.event, end.event) == ("check.failed", "end")
    assert f"by the signal {number.name}" in failed.data["error"]
    assert ("Too little memory" in failed.data["error"]) == (number == signal.SIGKILL)


def test_it_exits_when_the_server_is_killed(silent_backend: Backend, endless_url: str) -> None:
    output = started_check(owner(silent_backend), endless_url)
    [process] = check_processes(silent_backend)
    silent_backend.process.kill()
    process.wait(30)
    output.close()
