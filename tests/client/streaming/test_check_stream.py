"""The event stream of a check: reports, errors, and incomplete streams."""

from __future__ import annotations

import threading
import time

import pytest

from arkor.client.api import CloudApiClient
from arkor.client.auth.credentials import TokenCredentials
from arkor.errors import BackendUnavailable, CloudApiError, InvalidConfig, TrainerAborted
from arkor.protocol.datasets import BlobDataset, FileDataset
from arkor.protocol.jobs import JobConfig, Scope
from arkor.results.check import Check
from tests.fakes.http_server import Answer, HttpServer
from tests.fakes.sse_server import ScriptedServer, send

CONFIG = JobConfig("a/model", BlobDataset("https://example.org/rows.jsonl"))
STREAM = {"Content-Type": "text/event-stream"}
TOKEN = "secret-token-of-mine"


def client_of(url: str) -> CloudApiClient:
    return CloudApiClient(url, TokenCredentials(TOKEN, url), scope=Scope("org", "project"))


def check(server: HttpServer) -> Check:
    return client_of(server.url).check(CONFIG)


def frames(*data: str) -> Answer:
    body = "".join(f"event: {kind}\ndata: {text}\n\n" for kind, _, text in (one.partition(" ") for one in data))
    return Answer(200, body.encode(), STREAM)


def test_reports_are_merged_and_progress_is_reported() -> None:
    answer = frames(
        'check.progress {"message": "Reading the data"}',
        'check.found {"found": {"trainRows": 3, "notes": ["a"]}}',
        "ping {}",
        "check.unheard of this",
        'check.found {"found": {"notes": ["b"], "later": 1}}',
        "end {}",
    )
    output: list[str] = []
    with HttpServer(answer) as server:
        found = client_of(server.url).check(CONFIG, say=output.append)
        assert server.requests[0].json() == {
            "config": {"model": "a/model", "datasetSource": {"type": "blob", "url": "https://example.org/rows.jsonl"}}
        }
    assert found == Check(train_rows=3, notes=("a", "b"), extra={"later": 1})
    assert output == ["Reading the data"]


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404, {"error": "Not found"}),
        Answer(405, {"error": "No"}),
        Answer(404, b"<html>", {"Content-Type": "text/html"}),
    ],
)
def test_a_backend_without_checks(answer: Answer) -> None:
    with (
        HttpServer(answer) as server,
        pytest.raises(CloudApiError, match=r"cannot check a run before.*--dry-run") as error,
    ):
        check(server)
    assert error.value.code == "no_check"


def test_a_missing_project() -> None:
    answer = Answer(404, {"error": "no project 'x'", "code": "project_not_found"})
    with HttpServer(answer) as server, pytest.raises(CloudApiError, match="no project 'x'"):
        check(server)


def test_a_failure_in_the_stream_is_an_error_without_the_token() -> None:
    answer = frames(f'check.failed {{"error": "no {TOKEN} for you", "code": "invalid_request", "status": 400}}')
    with HttpServer(answer) as server, pytest.raises(CloudApiError, match=r"no \[token\] for you") as error:
        check(server)
    assert (error.value.status, error.value.code) == (400, "invalid_request")


@pytest.mark.parametrize("kept", ['check.found {"found": {"trainRows": 3}}', "ping {}"])
def test_an_incomplete_stream(kept: str) -> None:
    with HttpServer(frames(kept)) as server, pytest.raises(BackendUnavailable, match="before the end of the check"):
        check(server)


def test_an_invalid_report() -> None:
    answer = frames('check.found {"found": {"lengths": {"rows": 1}}}', "end {}")
    with HttpServer(answer) as server, pytest.raises(CloudApiError, match="cannot be read"):
        check(server)


def test_the_abort_signal_ends_a_check_at_once() -> None:
    signal = threading.Event()
    threading.Timer(0.3, signal.set).start()
    over = threading.Event()
    with ScriptedServer(send(b"event: ping\ndata: {}\n\n", until=over)) as server:
        began = time.monotonic()
        with pytest.raises(TrainerAborted, match="the check was abandoned"):
            client_of(server.url).check(CONFIG, abort_signal=signal)
        assert time.monotonic() - began < 10
        over.set()


def test_a_file_must_be_uploaded_first() -> None:
    with pytest.raises(InvalidConfig, match="upload_dataset"):
        client_of("http://127.0.0.1:9").check(JobConfig("m", FileDataset("rows.jsonl")))
