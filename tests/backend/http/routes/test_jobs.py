"""Jobs over HTTP: validation, limits, and the event stream."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from arkor.backend.runs.event_log import LogWriter
from arkor.backend.runs.log_notifier import notify
from arkor.backend.runs.paths import notifier_file, run_folder
from arkor.protocol.events import TrainingCompleted, TrainingLog, now
from tests.backend.caller import CONFIG, Caller, owner, stranger
from tests.conftest import Backend, start_backend

pytestmark = pytest.mark.slow  # real processes, terminals or clocks


BLOB = {"type": "blob", "url": "https://example.com/rows.jsonl", "token": "hush-hush"}


def refuse(caller: Caller, body: Any, status: int = 400) -> str:
    answer = caller.call("POST", "/v1/jobs", json=body)
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"])


def test_a_job(caller: Caller) -> None:
    config = {**CONFIG, "maxSteps": 2, "loadIn4bit": False, "someFutureField": {"a": [1]}}
    answer = caller.call("POST", "/v1/jobs", json={"name": "my run", "config": config})
    assert answer.status_code == 201
    job = answer.json()["job"]
    assert (job["name"], job["status"], job["config"]) == ("my run", "queued", config)
    assert set(job) == {"id", "orgId", "projectId", "name", "status", "config", "createdAt"}
    ended = caller.until(job["id"], "completed")
    assert (ended["step"], ended["totalSteps"], ended["lastLoss"]) == (2, 2, pytest.approx(1.62))
    changed = ("status", "startedAt", "completedAt", "step", "totalSteps", "lastLoss", "checkpoints")
    assert ended == {**job, **{key: ended[key] for key in changed}}
    assert job["createdAt"] <= ended["startedAt"] <= ended["completedAt"]
    assert {**caller.call("GET", "/v1/jobs").json()["jobs"][0], "checkpoints": [1, 2]} == ended


def test_a_job_lists_the_checkpoints_that_it_keeps(caller: Caller) -> None:
    job = caller.submit(maxSteps=10, saveSteps=2)
    assert caller.until(job, "completed")["checkpoints"] == [8, 10]
    assert "checkpoints" not in caller.call("GET", "/v1/jobs").json()["jobs"][0]  # the list does not read the folders


def test_a_failed_job_says_why(caller: Caller) -> None:
    job = caller.submit(model="scripted/fail")
    assert caller.until(job, "failed")["error"] == "This model fails by design; name another one."


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": None}, "config.model"),
        ({"model": ""}, "config.model"),
        ({"model": 5}, "config.model"),
        ({"datasetSource": None}, "config.datasetSource"),
        ({"datasetSource": "rows"}, "config.datasetSource"),
        ({"datasetSource": {"type": "disk"}}, "config.datasetSource.type"),
        ({"datasetSource": {"type": "huggingface"}}, "config.datasetSource.name"),
        ({"datasetSource": {"type": "blob", "url": "ftp://x"}}, "config.datasetSource.url"),
        ({"datasetSource": {"type": "blob", "url": "/v1/datasets/../x"}}, "config.datasetSource.url"),
        ({"datasetSource": {"type": "file", "path": "rows.jsonl"}}, "config.datasetSource"),
        ({"datasetFormat": {"type": "xml"}}, "config.datasetFormat"),
        ({"datasetSplit": {"train": 5}}, "config.datasetSplit.train"),
        ({"loraR": 0}, "config.loraR"),
        ({"loadIn4bit": "yes"}, "config.loadIn4bit"),
        ({"maxSteps": 1.5}, "config.maxSteps"),
        ({"maxSteps": 2**40}, "config.maxSteps"),
        ({"learningRate": 0}, "config.learningRate"),
        ({"lrSchedulerType": ""}, "config.lrSchedulerType"),
    ],
)
def test_a_wrong_value_is_named_as_on_the_wire(caller: Caller, change: dict[str, Any], field: str) -> None:
    assert refuse(caller, {"name": "n", "config": {**CONFIG, **change}}).startswith(f"{field}: ")


def test_a_wrong_request_is_named(caller: Caller) -> None:
    assert refuse(caller, {"config": CONFIG}).startswith("name: ")
    assert refuse(caller, {"name": "n"}).startswith("config: ")
    assert refuse(caller, {"name": "n", "config": []}).startswith("config: ")
    assert refuse(caller, {"name": "", "config": CONFIG}).startswith("name: ")
    assert "did you mean config?" in refuse(caller, {"name": "n", "conifg": CONFIG})
    answer = caller.call(
        "POST", "/v1/jobs", json={"name": "n", "config": CONFIG}, headers={"Idempotency-Key": "x" * 256}
    )
    assert answer.status_code == 400


def test_a_file_must_be_uploaded_first(caller: Caller) -> None:
    source = {"type": "file", "path": "rows.jsonl"}
    assert "POST /v1/datasets" in refuse(caller, {"name": "n", "config": {**CONFIG, "datasetSource": source}})


def test_a_key_makes_one_job(caller: Caller) -> None:
    body = {"name": "n", "config": CONFIG}

    def submit(_: int) -> tuple[int, str]:
        headers = {"Idempotency-Key": "the same"}
        answer = Caller(caller.url, caller.token).call("POST", "/v1/jobs", json=body, headers=headers)
        return answer.status_code, answer.json()["job"]["id"]

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(submit, range(16)))
    assert len({job for _, job in answers}) == 1
    assert sorted(status for status, _ in answers) == [200] * 15 + [201]


def test_a_key_is_good_for_its_project_alone(caller: Caller, backend_env: Backend) -> None:
    assert caller.submit(key="shared") != stranger(backend_env).submit(key="shared")


def test_a_token_is_never_shown_again(caller: Caller, backend_env: Backend) -> None:
    answer = caller.call("POST", "/v1/jobs", json={"name": "n", "config": {**CONFIG, "datasetSource": BLOB}})
    job = answer.json()["job"]
    assert job["config"]["datasetSource"] == {"type": "blob", "url": BLOB["url"]}
    caller.until(job["id"], "completed")
    assert "hush-hush" not in answer.text + caller.call("GET", "/v1/jobs").text
    assert "hush-hush" not in run_folder(backend_env.home, job["id"]).job.read_text()


def test_another_projects_job_is_not_there(caller: Caller, backend_env: Backend) -> None:
    job = caller.submit()
    other = stranger(backend_env)
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/events/stream")):
        answer = other.call(method, f"/v1/jobs/{job}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    assert other.call("GET", "/v1/jobs").json() == {"jobs": []}


@pytest.mark.parametrize("job", ["unknown", "..", "%2e%2e%2f", "a" * 5000])
def test_an_unknown_job_is_a_404(caller: Caller, job: str) -> None:
    assert caller.call("GET", f"/v1/jobs/{job}/events/stream").status_code == 404


def test_jobs_are_listed_newest_first(backend_env: Backend) -> None:
    caller = stranger(backend_env)
    jobs = [caller.submit(name=str(number), maxSteps=1) for number in range(3)]
    assert [job["id"] for job in caller.call("GET", "/v1/jobs").json()["jobs"]] == jobs[::-1]


def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **limits: int) -> Backend:
    """Start a backend with these environment variables, whose runs take long."""
    for name, value in {"ARKOR_SCRIPTED_STEP_SECONDS": 1, **limits}.items():
        monkeypatch.setenv(name, str(value))
    return start_backend(tmp_path / "arkor-home", "--engine", "scripted")


def test_no_more_runs_wait_than_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = limited(tmp_path, monkeypatch, ARKOR_MAX_QUEUED_RUNS=5)
    body = {"name": "n", "config": {**CONFIG, "maxSteps": 1000}}
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: owner(backend).call("POST", "/v1/jobs", json=body), range(16)))
    assert sorted(answer.status_code for answer in answers) == [201] * 5 + [409] * 11
    refusal = next(answer.json() for answer in answers if answer.status_code == 409)
    assert refusal["code"] == "queue_full"
    assert "5 runs" in refusal["error"]
    assert stranger(backend).call("POST", "/v1/jobs", json=body).status_code == 201
    first = next(answer.json()["job"]["id"] for answer in answers if answer.status_code == 201)
    owner(backend).cancel(first)
    owner(backend).until(first, "cancelled")
    assert owner(backend).call("POST", "/v1/jobs", json=body).status_code == 201
    backend.process.kill()
    backend.process.wait()


def test_what_a_config_has_beyond_our_fields_is_kept_and_doubted(caller: Caller, backend_env: Backend) -> None:
    job = caller.submit(maxSteps=1, learningRat=0.1, whatIsThis={"deep": [1, None]})
    caller.until(job, "completed")
    assert caller.job(job)["config"]["learningRat"] == 0.1
    kept = json.loads(run_folder(backend_env.home, job).job.read_text())["config"]
    assert (kept["learningRat"], kept["whatIsThis"]) == (0.1, {"deep": [1, None]})
    incompatibilities = [frame.data["message"] for frame in caller.events(job) if frame.event == "training.warning"]
    assert incompatibilities == [
        "config.learningRat is not a field that this backend knows. Did you mean learningRate?",
        "config.whatIsThis is not a field that this backend knows. It is ignored.",
    ]


def test_a_field_of_the_data_source_that_nobody_knows_is_kept_and_warned_of(caller: Caller) -> None:
    source = {"type": "huggingface", "name": "a/b", "revision": "main", "slit": "train"}
    job = caller.submit(datasetSource=source)
    assert caller.call("GET", f"/v1/jobs/{job}").json()["job"]["config"]["datasetSource"] == source
    assert [frame.data["message"] for frame in caller.events(job) if frame.event == "training.warning"] == [
        "config.datasetSource.revision is not a field that this backend knows. It is ignored.",
        "config.datasetSource.slit is not a field that this backend knows. Did you mean split?",
    ]


@pytest.mark.parametrize("name", ["tokem", "authToken", "apiKey", "headers", "password"])
def test_what_may_be_a_secret_is_not_kept_under_another_name(caller: Caller, name: str) -> None:
    source = {"type": "blob", "url": "http://127.0.0.1:9/rows.jsonl", name: "hunter2-hunter2"}
    answer = caller.call("POST", "/v1/jobs", json={"name": "n", "config": {**CONFIG, "datasetSource": source}})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"config.datasetSource.{name}: is not a field of a blob data set")
    assert "hunter2" not in answer.text


def test_there_is_an_end_to_doubts(caller: Caller) -> None:
    job = caller.submit(maxSteps=1, **{f"x{number}": 1 for number in range(500)})
    caller.until(job, "completed")
    incompatibilities = [frame.data["message"] for frame in caller.events(job) if frame.event == "training.warning"]
    assert len(incompatibilities) == 11
    assert "490 other fields" in incompatibilities[-1]


def test_a_whole_number_is_one_however_it_is_written(caller: Caller) -> None:
    body = '{"name": "n", "config": {"model": "m", "datasetSource": {"type": "huggingface", "name": "n"}, "maxSteps": 2.0}}'
    answer = caller.call("POST", "/v1/jobs", data=body)
    assert (answer.status_code, answer.json()["job"]["config"]["maxSteps"]) == (201, 2)


def test_a_number_that_no_float_holds_is_refused(caller: Caller) -> None:
    assert refuse(caller, {"name": "n", "config": {**CONFIG, "learningRate": 10**400}}).startswith(
        "config.learningRate"
    )


# The stream


@pytest.mark.parametrize("path", ["events/stream", "export"])
def test_who_asks_for_the_head_alone_waits_for_no_body(caller: Caller, path: str) -> None:
    job = caller.submit(maxSteps=1)
    caller.until(job, "completed")
    payload, whole = (caller.call(method, f"/v1/jobs/{job}/{path}") for method in ("HEAD", "GET"))
    assert (payload.status_code, payload.content) == (200, b"")
    assert payload.headers["content-type"] == whole.headers["content-type"]


def test_a_user_has_so_many_streams_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = limited(tmp_path, monkeypatch, ARKOR_MAX_STREAMS=3)
    caller, other = owner(backend), stranger(backend)
    job, path = caller.submit(maxSteps=1000), "/v1/jobs/{}/events/stream"
    streams = [caller.call("GET", path.format(job), stream=True) for _ in range(3)]
    refusal = caller.call("GET", path.format(job))
    assert (refusal.status_code, refusal.json()["code"], refusal.headers["retry-after"]) == (
        429,
        "too_many_streams",
        "5",
    )
    assert other.call("GET", path.format(other.submit()), stream=True).status_code == 200
    streams[0].close()
    deadline = time.monotonic() + 30
    while caller.call("GET", path.format(job), stream=True).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    backend.process.kill()
    backend.process.wait()


def test_the_stream_is_the_log(caller: Caller, backend_env: Backend) -> None:
    job = caller.submit(maxSteps=3)
    *frames, end = caller.events(job)
    assert (end.id, end.event, end.data) == (None, "end", {})
    assert [frame.event for frame in frames] == [frame.data["type"] for frame in frames]
    lines = run_folder(backend_env.home, job).events.read_text().splitlines()
    assert [frame.data for frame in frames] == [json.loads(line) for line in lines]
    assert frames[-1].event == "training.completed"


def test_a_stream_goes_on_behind_any_of_its_ids(caller: Caller) -> None:
    job = caller.submit(maxSteps=3)
    frames = list(caller.events(job))
    for number, frame in enumerate(frames[:-1]):
        assert list(caller.events(job, frame.id)) == frames[number + 1 :]


@pytest.mark.parametrize("odd", ["abc", "-5", "0", "1.5", "9" * 30])
def test_an_id_that_is_none_of_ours_replays_everything(caller: Caller, odd: str) -> None:
    job = caller.submit(maxSteps=1)
    frames = list(caller.events(job))
    assert list(caller.events(job, odd)) == frames


def test_an_id_beyond_the_end_of_a_finished_run_just_ends(caller: Caller) -> None:
    job = caller.submit(maxSteps=1)
    caller.until(job, "completed")
    assert [frame.event for frame in caller.events(job, "99999999")] == ["end"]


def test_many_watchers_see_the_same(caller: Caller) -> None:
    job = caller.submit(maxSteps=50)
    with ThreadPoolExecutor(8) as threads:
        seen = list(threads.map(lambda _: list(Caller(caller.url, caller.token).events(job)), range(8)))
    assert all(frames == seen[0] for frames in seen)


def test_a_long_history_comes_in_large_chunks(caller: Caller, backend_env: Backend) -> None:
    job = caller.submit(maxSteps=1)
    caller.until(job, "completed")
    log = run_folder(backend_env.home, job).events
    log.unlink()
    with LogWriter(log) as writer:
        for step in range(50_000):
            writer.append(TrainingLog(job, "2026-01-01T00:00:00.000Z", step, 1.5, None, 1e-3, 0.5))
        writer.append(TrainingCompleted(job, "2026-01-01T00:00:01.000Z"))
    with caller.call("GET", f"/v1/jobs/{job}/events/stream", stream=True) as answer:
        chunks = list(iter(answer.raw.read1, b""))
    assert b"".join(chunks).count(b"event: training.log\n") == 50_000
    assert len(chunks) < 5_000  # about 130 if the reader keeps up


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Backend, str]]:
    """A backend, and a job that stays queued for longer than the test takes."""
    monkeypatch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "0.2")
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    caller = owner(backend)
    caller.until(caller.submit(maxSteps=1000), "running")  # so that its worker.pid exists, for `stop_backend`
    yield backend, caller.submit()
    backend.process.kill()
    backend.process.wait()


def test_each_event_arrives_before_the_next_is_written(waiting: tuple[Backend, str]) -> None:
    """The notification wakes the stream: the server's own poll, once a second, would take `count` seconds."""
    backend, job = waiting
    count, began = 120, time.monotonic()
    frames = (frame for frame in owner(backend).events(job) if frame.event == "training.log")
    with LogWriter(run_folder(backend.home, job).events) as log:
        for step in range(count):
            log.append(TrainingLog(job, now(), step, 1.5, None, 1e-3, 0.5))
            notify(notifier_file(backend.home))
            assert next(frames).data["step"] == step
    assert time.monotonic() - began < count / 2


def test_a_watcher_that_goes_away_is_let_go(waiting: tuple[Backend, str]) -> None:
    backend, job = waiting
    process = psutil.Process(backend.process.pid)
    until_open(process, 1)  # its listening socket
    streams = [owner(backend).call("GET", f"/v1/jobs/{job}/events/stream", stream=True) for _ in range(20)]
    until_open(process, 21)
    for stream in streams:
        stream.close()
    until_open(process, 1)


def until_open(process: psutil.Process, count: int) -> None:
    """Return once the process has `count` sockets."""
    deadline = time.monotonic() + 30
    while len(process.net_connections()) != count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_quiet_stream_pings(waiting: tuple[Backend, str]) -> None:
    backend, job = waiting
    began = time.monotonic()
    frame = next(owner(backend).events(job))
    assert (frame.id, frame.event, frame.data) == (None, "ping", {})
    assert 14 < time.monotonic() - began < 30


def test_a_stream_ends_with_the_server(waiting: tuple[Backend, str]) -> None:
    backend, job = waiting
    seen: list[Any] = []
    watching = threading.Thread(target=lambda: seen.extend(owner(backend).events(job)))
    watching.start()
    time.sleep(0.3)
    backend.process.terminate()
    assert backend.process.wait(timeout=10) == 0
    watching.join(30)
    assert not watching.is_alive()
    assert seen == []
