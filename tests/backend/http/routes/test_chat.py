from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from tests.backend.caller import Caller, owner, stranger
from tests.conftest import Backend, start_backend

pytestmark = pytest.mark.slow  # every test starts processes of its own


QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wie heißt du, 你好?"}]
ANSWER = "scripted: Wie heißt du, 你好?"
BASE = {"messages": QUESTION, "baseModel": "any/model"}


def chat(caller: Caller, body: Any, **rest: Any) -> requests.Response:
    return caller.call("POST", "/v1/inference/chat", json=body, **rest)


def chunks(answer: requests.Response) -> list[Any]:
    """Return the data of every frame; the last one must be `[DONE]`."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *frames, rest = answer.content.decode().split("\n\n")
    assert rest == ""
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def refused(answer: requests.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"])


def serving_process(backend: Backend) -> psutil.Process | None:
    for child in psutil.Process(backend.process.pid).children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "arkor.backend.inference.process" in child.cmdline():
                return child
    return None


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A scripted backend for tests that do not change it."""
    started = start_backend(tmp_path_factory.mktemp("shared"), "--engine", "scripted")
    with started.process:
        yield started
        started.process.kill()


@pytest.fixture
def slow_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted generator takes 20 ms a word."""
    monkeypatch.setenv("ARKOR_SCRIPTED_TOKEN_SECONDS", "0.02")


@pytest.fixture
def job(shared: Backend) -> str:
    """A finished run with checkpoints of steps 2, 4, … 10."""
    caller = owner(shared)
    job_id = caller.submit()
    caller.until(job_id, "completed")
    return job_id


# Response shapes


def test_streamed_by_default(shared: Backend) -> None:
    first, *middle, last = chunks(chat(owner(shared), BASE))
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == ANSWER
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert last["usage"] == {"prompt_tokens": 6, "completion_tokens": 5, "total_tokens": 11}
    for chunk in (first, *middle, last):
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["model"] == "any/model"
        assert chunk["id"] == first["id"]
        assert abs(chunk["created"] - time.time()) < 60


def test_whole_when_asked(shared: Backend) -> None:
    answer = chat(owner(shared), {**BASE, "stream": False, "maxTokens": 3, "temperature": 0.5, "topP": 0.9}).json()
    assert answer["object"] == "chat.completion"
    message = {"role": "assistant", "content": "scripted: Wie heißt "}
    assert answer["choices"] == [{"index": 0, "message": message, "finish_reason": "length"}]
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.usefixtures("slow_tokens")
def test_every_word_comes_when_it_exists(backend: Backend) -> None:
    chat(owner(backend), BASE)
    times = []
    with chat(owner(backend), {**BASE, "messages": [{"role": "user", "content": "word " * 20}]}, stream=True) as answer:
        while answer.raw.read1():
            times.append(time.monotonic())
    assert len(times) > 5
    assert times[-1] - times[0] > 0.3


# Model targets


def test_final_and_checkpoint_of_a_job(shared: Backend, job: str) -> None:
    for adapter, label in (({"kind": "final"}, job), ({"kind": "checkpoint", "step": 4}, f"{job}@4")):
        body = {"messages": QUESTION, "adapter": {"jobId": job, **adapter}, "stream": False}
        answer = chat(owner(shared), body).json()
        assert answer["choices"][0]["message"]["content"] == ANSWER
        assert answer["model"] == label


def test_a_base_model_beside_an_adapter_must_be_its_own(shared: Backend, job: str) -> None:
    body = {"messages": QUESTION, "adapter": {"kind": "final", "jobId": job}, "stream": False}
    assert chat(owner(shared), {**body, "baseModel": "scripted/model"}).status_code == 200
    sentence = refused(chat(owner(shared), {**body, "baseModel": "other"}), 400)
    assert "'scripted/model'" in sentence
    assert "'other'" in sentence


def test_what_is_not_there_is_404_and_says_what_is(shared: Backend, job: str) -> None:
    def ask(**adapter: Any) -> str:
        return refused(chat(owner(shared), {"messages": QUESTION, "adapter": {"jobId": job, **adapter}}), 404)

    assert "step 8, 10." in ask(kind="checkpoint", step=3)
    run = shared.home / "runs" / job
    (run / "checkpoints" / "8" / "adapter_model.safetensors").unlink()
    (run / "checkpoints" / ".9.partial").mkdir()
    assert "step 10." in ask(kind="checkpoint", step=8)
    shutil.rmtree(run / "final")
    assert "no final adapter" in ask(kind="final")
    shutil.rmtree(run / "checkpoints", ignore_errors=True)  # the server may prune it at the same time
    assert "no checkpoint yet" in ask(kind="final")
    assert "no job" in ask(kind="final", jobId="0" * 32)
    assert "no job" in ask(kind="final", jobId="../../etc")


def test_another_project_sees_nothing_of_it(shared: Backend, job: str) -> None:
    body = {"messages": QUESTION, "adapter": {"kind": "final", "jobId": job}}
    refused(chat(stranger(shared), body), 404)
    refused(chat(Caller(shared.url, "wrong"), body), 401)
    refused(chat(owner(shared), body, params={"orgSlug": "local"}), 400)


@pytest.mark.usefixtures("slow_tokens")
def test_a_checkpoint_answers_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "0.05")
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    with backend.process:
        caller = owner(backend)
        job = caller.submit(maxSteps=100, saveSteps=2)
        for frame in caller.events(job):
            if frame.event == "checkpoint.saved":
                break
        adapter = {"kind": "checkpoint", "jobId": job, "step": frame.data["step"]}
        answer = chat(caller, {"messages": QUESTION, "adapter": adapter, "stream": False})
        assert answer.json()["choices"][0]["message"]["content"] == ANSWER
        assert caller.job(job)["status"] == "running"
        backend.process.kill()


# Rejected requests


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "add", **function}}


def schema_format(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": []}),
    ("messages", {"messages": None}),
    ("messages[0].role", {"messages": [{"role": "robot", "content": "a"}]}),
    ("messages[0].tool_calls", {"messages": [{"role": "assistant", "tool_calls": 1}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": 1}]}),
    ("adapter.jobId", {"adapter": {"kind": "final", "jobId": ""}}),
    ("adapter", {"baseModel": None}),
    ("baseModel", {"baseModel": ""}),
    ("temperature", {"temperature": -1}),
    ("topP", {"topP": 2}),
    ("maxTokens", {"maxTokens": -1}),
    ("stream", {"stream": 1}),
    ("max_tokens", {"max_tokens": 5}),
    ("stop", {"stop": ["a"] * 17}),
    ("n", {"n": 5}),
    ("logprobs", {"logprobs": 1}),
    ("topLogprobs", {"topLogprobs": 2}),
    ("logitBias", {"logitBias": {"a": 1}}),
    ("presencePenalty", {"presencePenalty": 3}),
    ("enableThinking", {"enableThinking": "no"}),
    ("reasoningEffort", {"reasoningEffort": "huge"}),
    ("seed", {"seed": "7"}),
    ("parallelToolCalls", {"parallelToolCalls": 1}),
    ("tools[0].function.name", {"tools": [tool(name="with space")]}),
    ("tools[0].function.parameters.type", {"tools": [tool(parameters={"type": "string"})]}),
    ("tools[0].function.parameters", {"tools": [tool(strict=True, parameters={"type": "object"})]}),
    ("tools[1].function.name", {"tools": [tool(), tool()]}),
    ("tools", {"tools": {}}),
    ("toolChoice", {"toolChoice": "required"}),
    ("toolChoice", {"tools": [tool()], "toolChoice": "maybe"}),
    ("toolChoice", {"tools": [tool()], "toolChoice": {"type": "function", "function": {"name": "other"}}}),
    ("responseFormat.type", {"responseFormat": {"type": "xml"}}),
    ("responseFormat", {"responseFormat": "json_object"}),
    ("responseFormat.json_schema", {"responseFormat": {"type": "json_schema"}}),
    ("responseFormat.json_schema.name", {"responseFormat": schema_format({}, name="a b")}),
    ("responseFormat.json_schema.strict", {"responseFormat": schema_format({}, strict="yes")}),
    ("structuredOutputs.regex", {"structuredOutputs": {"regex": "a"}, "tools": [tool()]}),
    ("structuredOutputs", {"structuredOutputs": {}}),
    ("structuredOutputs", {"structuredOutputs": {"disable_any_whitespace": True}}),
    ("structuredOutputs", {"structuredOutputs": {"choice": ["a"], "regex": "a"}}),
    ("structuredOutputs", {"structuredOutputs": {"choice": ["a"]}, "responseFormat": {"type": "json_object"}}),
    ("structuredOutputs.choices", {"structuredOutputs": {"choices": ["a"]}}),
    ("structuredOutputs.choice", {"structuredOutputs": {"choice": []}}),
    ("structuredOutputs.choice[1]", {"structuredOutputs": {"choice": ["a", 2]}}),
    ("structuredOutputs.regex", {"structuredOutputs": {"regex": 7}}),
    ("structuredOutputs.grammar", {"structuredOutputs": {"grammar": ""}}),
    ("structuredOutputs.json_object", {"structuredOutputs": {"json_object": "yes"}}),
    ("structuredOutputs.whitespace_pattern", {"structuredOutputs": {"json": {}, "whitespace_pattern": "a+"}}),
    ("structuredOutputs.whitespace_pattern", {"structuredOutputs": {"choice": ["a"], "whitespace_pattern": " "}}),
    ("structuredOutputs.regex", {"structuredOutputs": {"regex": "a+"}}),  # rejected by the scripted engine only
]


def test_a_bad_field_is_named(backend: Backend) -> None:
    for field, change in FIELDS:
        answer = chat(owner(backend), {**BASE, **change})
        assert refused(answer, 400).startswith(f"{field}:"), answer.text
        assert answer.json()["code"]


def test_what_is_plainly_wrong_is_not_worth_a_process(backend: Backend) -> None:
    for _field, change in FIELDS[:-1]:
        assert chat(owner(backend), {**BASE, **change}).status_code == 400
    assert serving_process(backend) is None


OPEN = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
CLOSED = {**OPEN, "additionalProperties": False}

SCHEMAS: list[tuple[str, Any, bool]] = [
    ("schema", OPEN, True),
    ("schema", {**CLOSED, "required": []}, True),
    ("schema.$defs.inner", {**CLOSED, "$defs": {"inner": OPEN}}, True),
    ("schema.properties.a.anyOf[1]", {**CLOSED, "properties": {"a": {"anyOf": [CLOSED, OPEN]}}}, True),
    ("schema.properties.a.items", {**CLOSED, "properties": {"a": {"type": "array", "items": OPEN}}}, True),
    ("schema.not", {"not": {"type": "string"}}, False),
    ("schema.properties.a.uniqueItems", {**OPEN, "properties": {"a": {"uniqueItems": True}}}, False),
    ("schema.requried", {"type": "object", "requried": ["a"]}, False),
    ("schema.$ref", {"$ref": "https://example.com/schema.json"}, False),
    ("schema.items.$ref", {"type": "array", "items": {"$ref": "file:///etc/passwd"}}, False),
    ("schema.minProperties", {"type": "object", "minProperties": 3}, False),
    ("schema.properties", {"properties": []}, False),
    ("schema.anyOf[0]", {"anyOf": ["string"]}, False),
    ("schema.type", {"type": "strnig"}, False),
    ("schema.items.type", {"type": "array", "items": {"type": ["string", 7]}}, False),
    ("schema", ["string"], False),
]


def test_a_schema_that_cannot_be_honoured_is_refused_by_its_path(shared: Backend) -> None:
    for path, schema, strict in SCHEMAS:
        answer = chat(owner(shared), {**BASE, "responseFormat": schema_format(schema, strict=strict)})
        assert refused(answer, 400).startswith(f"responseFormat.json_schema.{path}:"), answer.text
        assert answer.json()["code"] == "invalid_schema"


def test_a_reference_that_leads_nowhere_is_refused(shared: Backend) -> None:
    answer = chat(owner(shared), {**BASE, "responseFormat": schema_format({"$ref": "#/$defs/nowhere"})})
    assert refused(answer, 400).startswith("responseFormat")
    assert answer.json()["code"] == "invalid_schema"


def test_a_schema_that_is_too_deep_is_refused(shared: Backend) -> None:
    schema: Any = {"type": "string"}
    for _ in range(60):
        schema = {"type": "array", "items": schema}
    assert "deep" in refused(chat(owner(shared), {**BASE, "responseFormat": schema_format(schema)}), 400)


def test_a_constrained_answer_and_a_call_in_openais_shapes(shared: Backend) -> None:
    whole = {**BASE, "stream": False}
    answer = chat(owner(shared), {**whole, "responseFormat": schema_format(CLOSED, strict=True)}).json()
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"a": ""}
    call = {**whole, "tools": [tool(parameters=CLOSED)], "toolChoice": "required"}
    choice = chat(owner(shared), call).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    [called] = choice["message"]["tool_calls"]
    assert called["id"]
    assert called["function"] == {"name": "add", "arguments": '{"a": ""}'}
    _, first, *rest, last = chunks(chat(owner(shared), {**call, "stream": True}))
    [begun] = first["choices"][0]["delta"]["tool_calls"]
    assert (begun["index"], begun["type"], begun["function"]["name"]) == (0, "function", "add")
    later = [one["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] for one in rest]
    assert begun["function"]["arguments"] + "".join(later) == '{"a": ""}'
    assert last["choices"][0]["finish_reason"] == "tool_calls"


def test_a_stop_string_ends_an_answer_and_is_not_shown(shared: Backend) -> None:
    answer = chat(owner(shared), {**BASE, "stream": False, "stop": ["ißt d"]}).json()
    assert answer["choices"][0]["message"]["content"] == "scripted: Wie he"
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_what_changes_nothing_is_taken(shared: Backend) -> None:
    harmless = {"tools": [], "toolChoice": "auto", "responseFormat": {"type": "text"}, "structuredOutputs": None}
    assert chat(owner(shared), {**BASE, **harmless}).status_code == 200


def test_a_body_that_is_too_large_is_413(shared: Backend) -> None:
    refused(chat(owner(shared), {**BASE, "messages": [{"role": "user", "content": "x" * 5_000_000}]}), 413)


def test_a_failure_before_the_first_word_is_a_status(shared: Backend) -> None:
    for stream in (True, False):
        answer = chat(owner(shared), {**BASE, "baseModel": "scripted/fail", "stream": stream})
        assert "as it was asked to" in refused(answer, 503)


def test_a_failure_in_mid_stream_is_a_frame_before_the_end(shared: Backend) -> None:
    *_, last = chunks(chat(owner(shared), {**BASE, "baseModel": "scripted/break"}))
    assert last["error"]["code"] == "scripted"
    assert "as it was asked to" in last["error"]["message"]
    refused(chat(owner(shared), {**BASE, "baseModel": "scripted/break", "stream": False}), 503)


# The serving process


def test_a_crash_fails_what_is_in_progress_and_the_next_request_is_answered(shared: Backend) -> None:
    sentence = refused(chat(owner(shared), {**BASE, "baseModel": "scripted/crash"}), 503)
    assert "exit code 13" in sentence
    assert str(shared.home / "serving.log") in sentence
    assert chunks(chat(owner(shared), BASE))


@pytest.mark.usefixtures("slow_tokens")
def test_a_killed_process_ends_the_streams_with_a_sentence(backend: Backend) -> None:
    long = {**BASE, "messages": [{"role": "user", "content": "word " * 500}]}
    with chat(owner(backend), long, stream=True) as answer:
        assert answer.raw.read1()
        child = serving_process(backend)
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        rest = b"".join(iter(answer.raw.read1, b""))
    assert b"SIGKILL" in rest
    assert rest.endswith(b"data: [DONE]\n\n")
    assert chunks(chat(owner(backend), BASE))


@pytest.mark.usefixtures("slow_tokens")
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_stops_the_generation(backend: Backend, stream: bool) -> None:
    chunks(chat(owner(backend), BASE))
    child = serving_process(backend)
    assert child is not None
    body = json.dumps({**BASE, "stream": stream, "messages": [{"role": "user", "content": "word " * 3000}]})
    url = urlsplit(backend.url)
    with socket.create_connection((url.hostname, url.port)) as connection:
        head = "POST /v1/inference/chat?orgSlug=local&projectSlug=default HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Authorization: Bearer {backend.token}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        until_writing(child, True)
    until_writing(child, False)


def until_writing(process: psutil.Process, writing: bool) -> None:
    """Return once the process has written, or has not, for 0.3 s."""
    deadline = time.monotonic() + 30  # half of the time that the full response takes
    while True:
        before = process.io_counters().write_count
        time.sleep(0.3)
        if (process.io_counters().write_count > before) is writing:
            return
        assert time.monotonic() < deadline


@pytest.mark.usefixtures("slow_tokens")
def test_several_clients_are_answered_side_by_side(backend: Backend) -> None:
    """The last one receives its first word before the first one has received its last."""
    chunks(chat(owner(backend), BASE))
    begun: list[float] = []
    ended: list[float] = []

    def ask() -> None:
        body = {**BASE, "messages": [{"role": "user", "content": "word " * 60}]}
        with chat(owner(backend), body, stream=True) as answer:
            answer.raw.read1()
            begun.append(time.monotonic())
            while answer.raw.read1():
                pass
        ended.append(time.monotonic())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 8
    assert max(begun) < min(ended)


@pytest.fixture
def short_lived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A backend whose serving process exits after 0.3 s without a request."""
    monkeypatch.setenv("ARKOR_SERVING_IDLE_SECONDS", "0.3")
    started = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    with started.process:
        yield started
        started.process.kill()


def test_it_leaves_when_it_is_not_needed_and_comes_back(short_lived: Backend) -> None:
    chunks(chat(owner(short_lived), BASE))
    assert serving_process(short_lived) is not None
    deadline = time.monotonic() + 30
    while serving_process(short_lived) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    chunks(chat(owner(short_lived), BASE))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_goes_with_the_server(backend: Backend, number: signal.Signals) -> None:
    chunks(chat(owner(backend), BASE))
    child = serving_process(backend)
    assert child is not None
    backend.process.send_signal(number)
    backend.process.wait(timeout=10)
    child.wait(timeout=10)


def test_the_server_stays_light(shared: Backend) -> None:
    chunks(chat(owner(shared), BASE))
    maps = Path(f"/proc/{shared.process.pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()


# A real model


@pytest.mark.slow
def test_base_checkpoint_and_final_of_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fakes.tiny_model import make_adapter, make_base  # noqa: PLC0415 - imports torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    base = make_base(tmp_path / "base", context=128)
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    job = owner(backend).submit(model=base)
    owner(backend).until(job, "completed")
    backend.process.terminate()
    backend.process.wait()
    for seed, name in enumerate(("final", "checkpoints/8"), start=1):
        shutil.rmtree(backend.home / "runs" / job / name)
        make_adapter(backend.home / "runs" / job / name, base, seed=seed)
    backend = start_backend(tmp_path / "arkor-home", "--engine", "trl")
    with backend.process:
        caller = owner(backend)
        weights = [{"adapter": {"kind": "final", "jobId": job}}, {"baseModel": base}]
        weights.append({"adapter": {"kind": "checkpoint", "jobId": job, "step": 8}})
        output = []
        for one in (*weights, *weights):
            parts = chunks(chat(caller, {"messages": QUESTION, "maxTokens": 12, **one}))
            output.append("".join(part["choices"][0]["delta"].get("content", "") for part in parts))
        assert output[:3] == output[3:]
        assert len(set(output[:3])) == 3
        long = {"messages": [{"role": "user", "content": "x" * 200}], "baseModel": base}
        assert "takes 128" in refused(chat(caller, long), 400)
        assert "does not exist" in refused(chat(caller, {"messages": QUESTION, "baseModel": "/nowhere"}), 400)
        backend.process.kill()
