"""Notifications: message formats, delivery, failures that must not affect a run, and secrecy of the URL."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import attrs
import pytest

from arkor import InvalidConfig, Trainer
from arkor.callbacks import Notify
from arkor.callbacks.notify.delivery_queue import IDLE_SECONDS, DeliveryQueue
from arkor.callbacks.notify.message_formats import MESSAGE_FORMATS, Notification, detect_kind
from arkor.formatting import seconds_between
from arkor.protocol.codec import from_wire
from arkor.protocol.jobs import TrainingJob
from tests.conftest import Backend
from tests.fakes.http_server import Answer, HttpServer, Request
from tests.fakes.run_server import JOB

HUB = {"type": "huggingface", "name": "some/rows"}
SECRET = "T00SECRET/B00SECRET"
RAN = {"startedAt": "2026-01-01T00:00:00.000Z", "completedAt": "2026-01-01T00:03:12.400Z"}


def make(**settings: Any) -> Trainer:
    return Trainer(**{"name": "a run", "model": "some-model", "dataset": HUB, "progress": False, **settings})


# Message contents


def notification(event: str, **changes: Any) -> Notification:
    job: TrainingJob = from_wire(TrainingJob, {**JOB, **RAN, "status": event, **changes})
    return Notification(event, job, 60, 0.04743, seconds_between(job.started_at, job.completed_at))


def test_a_message_names_run_status_loss_and_duration() -> None:
    assert notification("completed").text == "a run completed\nRun: j\nStep: 60\nLast loss: 0.04743\nDuration: 3:12"
    failed = notification("failed", error="the data cannot be read")
    assert failed.title == "a run failed"
    assert failed.details["Error"] == "the data cannot be read"
    assert notification("cancelled").title == "a run was cancelled"
    assert (
        Notification("checkpoint", failed.job, 20, 1.5).text
        == "a run has a checkpoint at step 20\nRun: j\nLast loss: 1.5"
    )


def test_missing_facts_are_left_out() -> None:
    job: TrainingJob = from_wire(TrainingJob, {**JOB, "startedAt": "yesterday", "completedAt": None})
    assert seconds_between(job.started_at, job.completed_at) is None
    assert Notification("completed", job).text == "a run completed\nRun: j"
    assert seconds_between(True, 5) is None


def test_the_name_of_a_run_cannot_mention_anyone_on_slack() -> None:
    body = MESSAGE_FORMATS["slack"](notification("failed", name="<!channel> & co", error="x" * 5000))
    assert body["text"].startswith("&lt;!channel&gt; &amp; co failed\n")
    assert len(body["text"]) < 1200


def test_discord_takes_two_thousand_characters() -> None:
    body = MESSAGE_FORMATS["discord"](notification("failed", name="n" * 3000, error="x" * 5000))
    assert len(body["content"]) == 2000
    assert body["allowed_mentions"] == {"parse": []}


def test_teams_gets_a_card() -> None:
    workflow = MESSAGE_FORMATS["teams"](notification("completed"))
    card = workflow["attachments"][0]["content"]
    assert (workflow["type"], card["type"]) == ("message", "AdaptiveCard")
    assert card["body"][1]["facts"][-1] == {"title": "Duration", "value": "3:12"}
    assert card["body"][0]["text"] == "a run completed"
    assert card["body"][1]["facts"][0] == {"title": "Run", "value": "j"}


def test_a_plain_webhook_gets_fields() -> None:
    body = MESSAGE_FORMATS["plain"](attrs.evolve(notification("completed"), loss=float("nan")))
    assert json.loads(json.dumps(body, allow_nan=False)) == {
        "event": "completed",
        "text": "a run completed\nRun: j\nStep: 60\nLast loss: nan\nDuration: 3:12",
        "jobId": "j",
        "name": "a run",
        "status": "completed",
        "step": 60,
        "loss": "nan",
        "seconds": 192.4,
        "error": None,
    }


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://hooks.slack.com/services/T/B/x", "slack"),
        ("https://discord.com/api/webhooks/1/x", "discord"),
        ("https://canary.discord.com/api/webhooks/1/x", "discord"),
        ("https://discord.com/api/webhooks/1/x/slack", "slack"),
        ("https://contoso.webhook.office.com/webhookb2/x", "teams"),
        ("https://prod-1.westeurope.logic.azure.com:443/workflows/x?sig=s", "teams"),
        ("https://default1.2.environment.api.powerplatform.com:443/x", "teams"),
        ("http://127.0.0.1:9/hook", "plain"),
        ("https://hooks.slack.com.evil.example/x", "plain"),
        ("https://notdiscord.com/slack", "plain"),
        ("https://HOOKS.SLACK.COM/services/T/B/x", "slack"),
    ],
)
def test_the_host_determines_the_format(url: str, kind: str) -> None:
    assert detect_kind(url) == kind
    assert repr(Notify(url)) == f"Notify(<{kind}>, on=('completed', 'failed'))"


@pytest.mark.parametrize("url", [None, "", "hooks.slack.com/s3cret", "ftp://h/s3cret", "http://[s3cret", "http://h:x/s3cret",
                                 "https://h/s3cret with blanks", "https:///s3cret", "https://h/s3cret\r\nX: y", 7])  # fmt: skip
def test_an_invalid_url_is_rejected_without_showing_it(url: Any) -> None:
    with pytest.raises(InvalidConfig) as wrong:
        Notify(url)
    assert wrong.value.field == "Notify.url"
    assert "s3cret" not in str(wrong.value) + repr(wrong.value)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"on": "done"}, "on"),
        ({"on": 5}, "on"),
        ({"on": ("completed", "crashed")}, "on"),
        ({"kind": "pager"}, "kind"),
        ({"kind": ["slack"]}, "kind"),
        ({"timeout": 0}, "timeout"),
        ({"flush_timeout": float("nan")}, "flush_timeout"),
        ({"attempts": 0}, "attempts"),
    ],
)
def test_wrong_values_are_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidConfig) as wrong:
        Notify("http://127.0.0.1/", **settings)
    assert wrong.value.field == f"Notify.{name}"


# A real run, a real server


def events(requests: list[Request]) -> list[str]:
    return [request.json()["event"] for request in requests]


def test_every_event_can_be_sent(backend_env: Backend) -> None:
    with HttpServer(Answer(204)) as server:
        every = Notify(server.url, on=("started", "checkpoint", "completed", "failed", "cancelled"))
        make(max_steps=4, save_steps=2, callbacks=[every]).wait()
        make(model="scripted/fail", callbacks=[every]).wait()
        assert events(server.requests) == ["started", "checkpoint", "checkpoint", "completed", "failed"]
        completed, failed = (request.json() for request in server.requests[-2:])
    assert (completed["status"], completed["step"]) == ("completed", 4)
    assert completed["loss"] == pytest.approx(2 * 0.9**4)
    assert completed["seconds"] >= 0
    assert "fails by design" in failed["error"]
    assert failed["loss"] is None


def test_a_cancelled_run_is_not_sent_by_default(slow_backend: Backend) -> None:
    with HttpServer(Answer(200)) as server:
        cancelled, default = Notify(server.url, on="cancelled"), Notify(server.url)
        make(max_steps=1000, callbacks=[cancelled, default, {"on_log": lambda ctx: ctx.cancel()}]).wait()
        assert events(server.requests) == ["cancelled"]


WATCH = """
import sys
from arkor import Trainer
from arkor.callbacks import Notify
Trainer.attach(sys.argv[1], callbacks=Notify(sys.argv[2], attempts=1), progress=False).wait()
"""


def test_a_second_process_can_notify(slow_backend: Backend) -> None:
    with HttpServer(Answer(200)) as server:
        job_id = make(max_steps=5).start().job_id
        subprocess.run([sys.executable, "-c", WATCH, job_id, server.url], check=True, timeout=60)
        assert events(server.requests) == ["completed"]


LEAVE = """
import sys, threading
from arkor import Trainer, TrainerAborted
from arkor.callbacks import Notify
leave = threading.Event()
notify = Notify(sys.argv[2], on="started", timeout=3)
callbacks = [notify, {"on_started": lambda ctx: leave.set()}]
try:
    Trainer.attach(sys.argv[1], callbacks=callbacks, progress=False, abort_signal=leave).wait()
except TrainerAborted:
    print("left")
"""


def test_pending_messages_are_sent_at_exit(slow_backend: Backend) -> None:
    def slowly(request: Request) -> Answer:
        time.sleep(0.5)
        return Answer(200)

    with HttpServer(slowly) as server:
        job_id = make(max_steps=1000).start().job_id
        left = subprocess.run([sys.executable, "-c", LEAVE, job_id, server.url], check=True, capture_output=True)
        assert left.stdout == b"left\n"
        assert events(server.requests) == ["started"]
        assert not left.stderr


# Slow, broken and hanging servers


def deliver(url: str, *, attempts: int = 4, timeout: float = 5.0, within: float = 20.0) -> bool:
    queue = DeliveryQueue(url, "Notify (plain)", timeout=timeout, attempts=attempts)
    queue.send("completed", {"event": "completed"})
    return queue.flush(within)


@pytest.mark.parametrize("fault", [Answer(500), Answer(429, headers={"Retry-After": "0.3"}), Answer(None), Answer(408)])
def test_transient_failures_are_retried(fault: Answer, caplog: pytest.LogCaptureFixture) -> None:
    with HttpServer(fault, Answer(200)) as server:
        began = time.monotonic()
        assert deliver(server.url)
        assert len(server.requests) == 2
        assert time.monotonic() - began > 0.25
    assert not caplog.records


def test_the_attempts_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    with HttpServer(Answer(503)) as server:
        assert deliver(server.url, attempts=2)
        assert len(server.requests) == 2
    assert "'completed' was not delivered: the server answered with status 503" in caplog.text


@pytest.mark.parametrize("status", [400, 401, 404, 410, 301, 307])
def test_permanent_failures_are_not_retried(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with HttpServer(Answer(status, headers={"Location": "http://127.0.0.1:9/"})) as server:
        assert deliver(server.url)
        assert len(server.requests) == 1
    assert f"the server answered with status {status}" in caplog.text


def test_a_hanging_server_delays_wait_by_flush_timeout_at_most(
    backend_env: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    woken = threading.Event()

    def hang(request: Request) -> Answer:
        woken.wait(30)
        return Answer(None)

    with HttpServer(hang) as server:
        notify = Notify(server.url, on=("started", "checkpoint", "completed"), flush_timeout=0.7)
        logs: list[float] = []
        trainer = make(max_steps=5, callbacks=[notify, {"on_log": lambda ctx: logs.append(time.monotonic())}])
        began = time.monotonic()
        assert trainer.wait().job.status == "completed"
        assert time.monotonic() - logs[-1] < 15
        assert len(logs) == 5
        assert time.monotonic() - began < 25
        woken.set()
    assert "not everything was delivered in 0.7 s" in caplog.text


def test_a_server_that_sends_its_head_byte_by_byte_cannot_hold_the_wait(backend_env: Backend) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, suppress(ConnectionError):
            for letter in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 400:
                connection.sendall(bytes([letter]))
                if over.wait(0.05):
                    break

    thread = threading.Thread(target=drip)
    thread.start()
    began = time.monotonic()
    assert not deliver(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=1, attempts=1, within=0.5)
    assert time.monotonic() - began < 10
    over.set()
    thread.join()
    listener.close()


def test_an_unreachable_server_is_a_warning(backend_env: Backend, caplog: pytest.LogCaptureFixture) -> None:
    result = make(max_steps=1, callbacks=Notify(f"http://127.0.0.1:9/{SECRET}", attempts=1)).wait()
    assert result.job.status == "completed"
    assert "Notify (plain): the message 'completed' was not delivered: cannot connect to the server" in caplog.text


@pytest.mark.slow
def test_a_thread_with_nothing_to_do_goes_and_another_one_comes() -> None:
    others = set(threading.enumerate())
    with HttpServer(Answer(200)) as server:
        queue = DeliveryQueue(server.url, "Notify (plain)", timeout=5, attempts=1)
        for count in (1, 2):
            queue.send("completed", {"event": "completed"})
            assert queue.flush(10)
            assert len(server.requests) == count
            deadline = time.monotonic() + IDLE_SECONDS + 10
            while any(thread.name == "arkor-notify" for thread in set(threading.enumerate()) - others):
                assert time.monotonic() < deadline
                time.sleep(0.1)


# Secrecy of the URL


def test_the_url_is_in_no_log_at_any_level(backend_env: Backend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with HttpServer(Answer(500), Answer(404), Answer(200)) as server:
        notify = Notify(f"{server.url}/{SECRET}", on=("started", "completed"))
        make(max_steps=1, callbacks=[notify]).wait()
        assert [request.path for request in server.requests] == [f"/{SECRET}"] * 3
    deliver(f"http://127.0.0.1:9/{SECRET}", attempts=1)
    deliver(f"http://nobody.invalid/{SECRET}", attempts=1)
    assert any("connectionpool" in record.name for record in caplog.records)  # records of the backend remain
    assert "SECRET" not in caplog.text
    assert "SECRET" not in repr(notify) + repr(vars(notify))
