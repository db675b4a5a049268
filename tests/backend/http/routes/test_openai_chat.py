"""A deployment's address, called as plainly as can be: who gets in, what is understood, what is kept."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import requests
from attrs import evolve, frozen

from tests.backend.caller import Caller, owner
from tests.conftest import Backend, start_backend

pytestmark = pytest.mark.slow  # starts processes of its own

QUESTION = [{"role": "user", "content": "Wie heißt du, 你好?"}]
ANSWER = "scripted: Wie heißt du, 你好?"
ASKED = {"model": "whatever", "messages": QUESTION}


@frozen
class Door:
    """A deployment's address, and a key that opens it."""

    owner: Caller
    id: str
    slug: str
    key: str | None

    @property
    def url(self) -> str:
        return f"{self.owner.url}/e/{self.slug}/v1"

    def call(self, method: str, path: str, **rest: Any) -> requests.Response:
        headers = rest.pop("headers", {"Authorization": f"Bearer {self.key}"} if self.key else {})
        return requests.request(method, self.url + path, headers=headers, timeout=30, **rest)

    def ask(self, body: Any = None, **rest: Any) -> requests.Response:
        return self.call("POST", "/chat/completions", json=ASKED if body is None else body, **rest)

    def change(self, **change: Any) -> None:
        answer = self.owner.call("PATCH", f"/v1/endpoints/{self.id}", json=change)
        assert answer.status_code == 200, answer.text

    def keys(self) -> list[dict[str, Any]]:
        keys: list[dict[str, Any]] = self.owner.call("GET", f"/v1/endpoints/{self.id}/keys").json()["keys"]
        return keys


def open_door(caller: Caller, *, model: str = "any/model", auth_mode: str = "fixed_api_key", **more: Any) -> Door:
    slug = f"bot-{uuid4().hex[:12]}"
    body = {"slug": slug, "target": {"kind": "base_model", "baseModel": model}, "authMode": auth_mode, **more}
    made = caller.call("POST", "/v1/endpoints", json=body)
    assert made.status_code == 201, made.text
    made_id = made.json()["deployment"]["id"]
    key = caller.call("POST", f"/v1/endpoints/{made_id}/keys", json={"label": "test"}).json()["key"]["plaintext"]
    return Door(caller, made_id, slug, key)


@pytest.fixture(scope="module")
def door(shared_backend: Backend) -> Door:
    """A deployment with a key; tests leave it as it was."""
    return open_door(owner(shared_backend))


def refused(answer: requests.Response, status: int) -> dict[str, Any]:
    """The error, in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["message"].endswith(".") or error["param"]
    return error


def chunks(answer: requests.Response) -> list[Any]:
    """The data of every frame; the last one must be `[DONE]`."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *frames, rest = answer.content.decode().split("\n\n")
    assert rest == ""
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def kept(home: Path, door: Door) -> list[dict[str, Any]]:
    """The stored conversations of a deployment; they are written just behind the end of the answer."""
    time.sleep(0.2)
    files = sorted((home / "conversations" / door.id).glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


# Who gets in


def test_the_key_comes_in_either_header(door: Door) -> None:
    for headers in (
        {"Authorization": f"Bearer {door.key}"},
        {"Authorization": f"bearer   {door.key}  "},
        {"x-api-key": f"{door.key}"},
        {"X-API-Key": f"{door.key}", "Authorization": f"Bearer {door.key}"},
        {"x-api-key": f"{door.key}", "Authorization": "Bearer "},
    ):
        answer = door.ask(headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"] == {"role": "assistant", "content": ANSWER}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer ark_live_"},
        {"Authorization": "Bearer " + "x" * 6000},
        {"Authorization": "Basic dXNlcjpwYXNz"},
        {"Authorization": "KEY"},
        {"x-api-key": "KEY2"},
        {"Authorization": "Bearer KEY", "x-api-key": "another"},
        {"Authorization": "Bearer another", "x-api-key": "KEY"},
        {"Authorization": "Bearer KEY, Bearer KEY"},
        {"Authorization": b"Bearer \xff\xfe"},
    ],
    ids=lambda headers: str(headers)[:50],
)
def test_without_the_right_key_nobody_does(door: Door, headers: dict[str, Any]) -> None:
    sent = {
        name: value.replace("KEY", str(door.key)) if isinstance(value, str) else value
        for name, value in headers.items()
    }
    for answer in (door.ask(headers=sent), door.ask({}, headers=sent), door.call("GET", "/models", headers=sent)):
        assert refused(answer, 401)["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert str(door.key) not in answer.text


def test_the_owners_token_is_no_key(shared_backend: Backend, door: Door) -> None:
    refused(door.ask(headers={"Authorization": f"Bearer {shared_backend.token}"}), 401)


def test_a_deployment_may_need_no_key(shared_backend: Backend) -> None:
    door = evolve(open_door(owner(shared_backend), auth_mode="none"), key=None)
    assert door.ask().status_code == 200
    assert door.ask(headers={"Authorization": "Bearer sk-anything"}).status_code == 200
    door.change(authMode="fixed_api_key")
    refused(door.ask(), 401)


def test_a_revoked_key_opens_nothing_from_then_on(shared_backend: Backend) -> None:
    door = open_door(owner(shared_backend))
    assert door.ask().status_code == 200
    (key,) = door.keys()
    assert key["lastUsedAt"] > key["createdAt"]
    door.owner.call("DELETE", f"/v1/endpoints/{door.id}/keys/{key['id']}")
    for body in (ASKED, {**ASKED, "stream": True}):
        assert "revoked" in refused(door.ask(body), 401)["message"]


def test_nobody_can_tell_a_disabled_one_from_none(shared_backend: Backend) -> None:
    door = open_door(owner(shared_backend))
    door.change(enabled=False)
    nowhere = evolve(door, slug="bot-nowhere")
    for headers in ({}, {"Authorization": f"Bearer {door.key}"}, {"Authorization": "Bearer wrong"}):
        for method, path in (("POST", "/chat/completions"), ("GET", "/models"), ("GET", f"/models/{door.slug}")):
            one, other = (each.call(method, path, headers=headers, json=ASKED) for each in (door, nowhere))
            assert (one.status_code, one.content) == (other.status_code, other.content)
            assert refused(one, 404)["code"] == "deployment_not_found"
    door.change(enabled=True)
    assert door.ask().status_code == 200


@pytest.mark.parametrize(
    "slug", ["..", "%2e%2e", "%2e%2e%2f%2e%2e", "%00", "x" * 3000, "%ff", "a%0d%0ab", "' OR 1=1 --"]
)
def test_a_hostile_slug_leads_nowhere(door: Door, slug: str) -> None:
    answer = evolve(door, slug=slug).ask()
    assert answer.status_code == 404
    assert "x-injected" not in answer.headers


def raw(door: Door, head: str, body: bytes = b"") -> bytes:
    """What comes back for these very bytes, until the other side closes."""
    url = urlsplit(door.url)
    request = f"POST {url.path}/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}\r\n".encode(
        "latin-1"
    )
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(request + body)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("Authorization: Bearer KEY\r\nAuthorization: Bearer other\r\nContent-Length: LEN\r\n", b"401"),
        ("Authorization: Bearer other\r\nAuthorization: Bearer KEY\r\nContent-Length: LEN\r\n", b"401"),
        ("Authorization: Bearer KEY\rX-Other: 1\r\nContent-Length: LEN\r\n", b"400"),
        ("Authorization: Bearer KEY\0\r\nContent-Length: LEN\r\n", b"400"),
        ("Authorization : Bearer KEY\r\nContent-Length: LEN\r\n", b"400"),
        ("Authorization: Bearer KEY\r\nContent-Length: LEN\r\nContent-Length: 3\r\n", b"400"),
        ("Authorization: Bearer KEY\r\nContent-Length: LEN\r\nTransfer-Encoding: chunked\r\n", b"400"),
        ("Authorization: Bearer KEY\r\nContent-Length: -5\r\n", b"400"),
        ("Authorization: Bearer KEY\r\nTransfer-Encoding: gzip\r\nContent-Length: LEN\r\n", b"4"),
    ],
)
def test_smuggled_headers_get_nowhere(door: Door, head: str, status: bytes) -> None:
    body = json.dumps(ASKED).encode() + (b"\r\n" if "chunked" in head else b"")
    smuggled = raw(door, head.replace("KEY", str(door.key)).replace("LEN", str(len(body))), body)
    assert smuggled.split(b" ", 2)[1].startswith(status), smuggled
    assert ANSWER.encode() not in smuggled
    assert smuggled.count(b"HTTP/1.1 ") == 1
    assert door.ask().status_code == 200


# What is understood


def test_everything_that_openai_knows_and_nothing_hangs_on_is_taken(door: Door) -> None:
    harmless = {
        "user": "u",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "n": 1,
        "logprobs": False,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "modalities": ["text"],
        "tools": None,
        "stop": None,
        "response_format": {"type": "text"},
        "temperature": 0,
        "top_p": 1,
        "max_completion_tokens": 50,
        "stream": False,
        "stream_options": None,
    }
    assert door.ask({**ASKED, **harmless}).json()["choices"][0]["message"]["content"] == ANSWER
    assert door.ask({"messages": QUESTION}).status_code == 200


def test_messages_as_openais_clients_send_them(door: Door) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "a", "name": "kim"},
        {"role": "assistant", "content": "b", "refusal": None, "annotations": [], "audio": None, "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "c d"}]},
    ]
    answer = door.ask({"messages": messages}).json()
    assert answer["choices"][0]["message"]["content"] == "scripted: c d"
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 3, "total_tokens": 9}


#: The parameter that the error names, the change.
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": None}),
    ("messages", {"messages": []}),
    ("messages", {"messages": "hello"}),
    ("messages", {"messages": [{"role": "user", "content": "a"}] * 60_000}),
    ("messages[0]", {"messages": ["hello"]}),
    ("messages[0].role", {"messages": [{"role": "robot", "content": "a"}]}),
    ("messages[0].content", {"messages": [{"role": "user"}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": 5}]}),
    ("messages[0].content[0]", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
    ("messages[0].audio", {"messages": [{"role": "assistant", "content": "a", "audio": {"id": "x"}}]}),
    (
        "messages[0].function_call",
        {"messages": [{"role": "assistant", "content": "a", "function_call": {"name": "f"}}]},
    ),
    ("max_tokens", {"max_tokens": -1}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": 10**400}),
    ("max_tokens", {"max_tokens": True}),
    ("max_tokens", {"max_tokens": 5, "max_completion_tokens": 6}),
    ("max_completion_tokens", {"max_completion_tokens": -1}),
    ("max_completion_tokens", {"max_completion_tokens": "5"}),
    ("temperature", {"temperature": -1}),
    ("temperature", {"temperature": "hot"}),
    ("top_p", {"top_p": 0}),
    ("top_p", {"top_p": 1.5}),
    ("stream", {"stream": "yes"}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("stream_options", {"stream": True, "stream_options": [1]}),
    ("stream_options", {"stream": True, "stream_options": {"include_usage": 1}}),
    ("stream_options.usage", {"stream": True, "stream_options": {"usage": True}}),
    ("n", {"n": 2}),
    ("n", {"n": 0}),
    ("logprobs", {"logprobs": True}),
    ("top_logprobs", {"top_logprobs": 5}),
    ("logit_bias", {"logit_bias": {"50256": -100}}),
    ("presence_penalty", {"presence_penalty": 0.5}),
    ("frequency_penalty", {"frequency_penalty": -2}),
    ("modalities", {"modalities": ["text", "audio"]}),
    ("functions", {"functions": [{"name": "f"}]}),
    ("function_call", {"function_call": {"name": "f"}}),
    ("guided_json", {"guided_json": {}}),
    ("top_k", {"top_k": 40}),
    ("reasoning_effort", {"reasoning_effort": "high"}),
    ("maxTokens", {"maxTokens": 5}),
    ("temprature", {"temprature": 1}),
    ("response_format.type", {"response_format": {"type": "xml"}}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "../x\r\n"}}]}),
    ("structured_outputs", {"structured_outputs": {"choice": ["a"], "regex": "b"}}),
    ("stop", {"stop": ["a"] * 9}),
    ("seed", {"seed": 2**80}),
]


@pytest.mark.parametrize(("param", "change"), WRONG, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_named_in_openais_words(door: Door, param: str, change: dict[str, Any]) -> None:
    error = refused(door.ask({**ASKED, **change}), 400)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert not {"maxTokens", "topP", "toolChoice", "responseFormat"} - change.keys() & set(error["message"].split())


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b'{"messages": NaN}', b"[" * 100_000, b'{"a": "\\ud800"}']
)
def test_a_body_that_is_none(door: Door, body: bytes) -> None:
    answer = door.call("POST", "/chat/completions", data=body)
    refused(answer, 400)


def test_what_is_too_large_is_refused_before_it_is_read(door: Door) -> None:
    for size in (5_000_000, 10_000_000, 40_000_000):
        began = time.monotonic()
        error = refused(door.ask({"messages": [{"role": "user", "content": "x" * size}]}), 413)
        assert time.monotonic() - began < 10
        assert "larger" in error["message"]
    assert door.ask().status_code == 200


def test_other_methods_and_other_paths(door: Door) -> None:
    assert door.call("GET", "/chat/completions").status_code == 405
    assert door.call("POST", "/embeddings", json={}).status_code == 404
    assert door.call("DELETE", f"/models/{door.slug}").status_code == 405


def test_a_page_of_another_site_gets_no_answer(door: Door) -> None:
    headers = {"Authorization": f"Bearer {door.key}", "Origin": "https://evil.example"}
    answer = door.ask(headers=headers)
    assert "access-control-allow-origin" not in answer.headers
    preflight = door.call("OPTIONS", "/chat/completions", headers={**headers, "Access-Control-Request-Method": "POST"})
    assert not {name for name in preflight.headers if name.lower().startswith("access-control")}


# What is answered


def test_the_model_goes_by_the_slug(door: Door) -> None:
    listed = door.call("GET", "/models").json()
    (model,) = listed.pop("data")
    assert listed == {"object": "list"}
    assert abs(model.pop("created") - time.time()) < 600
    assert model == {"id": door.slug, "object": "model", "owned_by": "arkor"}
    assert door.call("GET", f"/models/{door.slug}").json()["id"] == door.slug
    assert refused(door.call("GET", "/models/gpt-9"), 404)["code"] == "model_not_found"
    assert door.ask().json()["model"] == door.slug


def test_a_stream(door: Door) -> None:
    first, *middle, last = chunks(door.ask({**ASKED, "stream": True}))
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == ANSWER
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    for chunk in (first, *middle, last):
        assert chunk["object"] == "chat.completion.chunk"
        assert (chunk["model"], chunk["id"]) == (door.slug, first["id"])
        assert "usage" not in chunk


def test_a_stream_with_usage_ends_with_a_chunk_of_nothing_else(door: Door) -> None:
    *told, last = chunks(door.ask({**ASKED, "stream": True, "stream_options": {"include_usage": True}}))
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in told)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}


def test_failures_before_and_within_a_stream(shared_backend: Backend) -> None:
    caller = owner(shared_backend)
    for stream in (True, False):
        answer = open_door(caller, model="scripted/fail").ask({**ASKED, "stream": stream})
        assert "as it was asked to" in refused(answer, 503)["message"]
    door = open_door(caller, model="scripted/break")
    *_, last = chunks(door.ask({**ASKED, "stream": True}))
    assert "as it was asked to" in last["error"]["message"]
    (entry,) = kept(shared_backend.home, door)
    assert entry["answer"]["error"]["code"] == "scripted"
    assert entry["answer"]["message"]["content"] == "scripted: Wie "


# What is kept


def test_a_conversation_is_kept_word_for_word(shared_backend: Backend) -> None:
    door = open_door(owner(shared_backend), runRetentionMode="unlimited")
    whole = door.ask({**ASKED, "user": "u-1"}).json()
    told = chunks(door.ask({**ASKED, "stream": True}))
    first, second = kept(shared_backend.home, door)
    assert first["request"] == {**ASKED, "user": "u-1"}
    assert (first["answer"].pop("id"), second["answer"].pop("id")) == (whole["id"], told[0]["id"])
    assert first["answer"] == second["answer"]
    assert first["answer"]["message"] == whole["choices"][0]["message"]
    assert first["answer"]["usage"] == whole["usage"]
    assert first["keyId"] == door.keys()[0]["id"]
    assert door.key is not None
    assert door.key not in json.dumps([first, second])
    door.change(runRetentionMode="days", runRetentionDays=1)
    assert len(kept(shared_backend.home, door)) == 2
    door.change(runRetentionMode="disabled")
    assert not (shared_backend.home / "conversations" / door.id).exists()


def test_tool_calls_are_kept_as_a_client_would_put_them_together(shared_backend: Backend) -> None:
    door = open_door(owner(shared_backend))
    function = {"name": "look_up", "parameters": {"type": "object", "properties": {"city": {"enum": ["Bern"]}}}}
    asked = {**ASKED, "tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    whole = door.ask(asked).json()["choices"][0]
    assert whole["finish_reason"] == "tool_calls"
    chunks(door.ask({**asked, "stream": True}))
    first, second = (entry["answer"] for entry in kept(shared_backend.home, door))
    assert first["message"] == {**whole["message"], "content": ""}
    for answer in (first, second):
        (call,) = answer["message"]["tool_calls"]
        assert call.keys() == {"id", "type", "function"}
        assert call["function"].keys() == {"name", "arguments"}
        assert call["function"] == whole["message"]["tool_calls"][0]["function"]
        assert answer["finish_reason"] == "tool_calls"


def test_conversations_go_with_their_deployment(shared_backend: Backend) -> None:
    door = open_door(owner(shared_backend))
    door.ask()
    assert len(kept(shared_backend.home, door)) == 1
    door.owner.call("DELETE", f"/v1/endpoints/{door.id}")
    assert not (shared_backend.home / "conversations" / door.id).exists()


def test_an_answer_is_given_where_there_is_no_room_to_keep_it(tmp_path: Path) -> None:
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    with backend.process:
        (backend.home / "conversations").write_text("something in the way")
        door = open_door(owner(backend))
        assert door.ask().json()["choices"][0]["message"]["content"] == ANSWER
        assert chunks(door.ask({**ASKED, "stream": True}))
        time.sleep(0.2)
        log = (backend.home / "test-backend.log").read_text()
        assert log.count(f"A conversation of {door.slug} could not be kept") == 2
        assert "Traceback" not in log
        backend.process.kill()


CANARY = "xylophone-kumquat-7351"


def test_who_keeps_nothing_leaves_no_word_of_it_anywhere(tmp_path: Path) -> None:
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    with backend.process:
        asked = {"messages": [{"role": "user", "content": f"{CANARY} " * 3}]}
        for model in ("any/model", "scripted/fail", "scripted/break", "scripted/crash"):
            door = open_door(owner(backend), model=model, runRetentionMode="disabled")
            for body in (asked, {**asked, "stream": True}, {**asked, "n": CANARY}, {**asked, "max_tokens": -1}):
                door.ask(body)
            door.call("POST", "/chat/completions", data=f'{{"messages": "{CANARY}')
            door.ask({"messages": [{"role": CANARY, "content": CANARY}], CANARY: CANARY})
            door.call("GET", f"/models/{CANARY}")
        backend.process.terminate()
        backend.process.wait()
    written = [file for file in backend.home.rglob("*") if file.is_file()]
    assert len(written) > 3
    assert [file for file in written if CANARY.encode() in file.read_bytes()] == []


@pytest.fixture
def slow_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Backend, Door]]:
    """A deployment of a scripted model that takes 20 ms a word."""
    monkeypatch.setenv("ARKOR_SCRIPTED_TOKEN_SECONDS", "0.02")
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    with backend.process:
        yield backend, open_door(owner(backend))
        backend.process.kill()


LONG = {"messages": [{"role": "user", "content": "word " * 400}], "stream": True}


def test_what_was_said_until_a_client_left_is_kept(slow_door: tuple[Backend, Door]) -> None:
    backend, door = slow_door
    with door.ask(LONG, stream=True) as answer:
        assert answer.raw.read1()
        time.sleep(0.3)
    time.sleep(0.3)
    (entry,) = kept(backend.home, door)
    said = len(entry["answer"]["message"]["content"].split())
    assert 5 < said < 60
    assert entry["answer"]["finish_reason"] is None


def test_a_stream_that_is_turned_off_in_between_is_not_kept(slow_door: tuple[Backend, Door]) -> None:
    backend, door = slow_door
    with door.ask({**LONG, "max_tokens": 30}, stream=True) as answer:
        assert answer.raw.read1()
        door.change(runRetentionMode="disabled")
        assert b"[DONE]" in answer.raw.read()
    assert kept(backend.home, door) == []


# What survives


def test_a_deployment_and_its_keys_survive_a_restart(tmp_path: Path) -> None:
    home = tmp_path / "arkor-home"
    first = start_backend(home, "--engine", "scripted")
    door = open_door(owner(first))
    assert door.ask().status_code == 200
    first.process.kill()
    first.process.wait()
    second = start_backend(home, "--engine", "scripted")
    with second.process:
        door = evolve(door, owner=owner(second))
        assert door.keys()[0]["lastUsedAt"]
        assert door.ask().status_code == 200
        second.process.kill()


def test_what_is_too_old_goes_when_the_server_starts(tmp_path: Path) -> None:
    home = tmp_path / "arkor-home"
    first = start_backend(home, "--engine", "scripted")
    door = open_door(owner(first))
    door.ask()
    (entry,) = kept(home, door)
    first.process.kill()
    first.process.wait()
    folder = home / "conversations" / door.id
    old = json.dumps({**entry, "createdAt": "2020-01-01T00:00:00.000Z"})
    (folder / "2020-01-01.jsonl").write_text(old + "\n")
    second = start_backend(home, "--engine", "scripted")
    with second.process:
        deadline = time.monotonic() + 30
        while (folder / "2020-01-01.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert kept(home, door) == [entry]
        second.process.kill()


def test_a_deployment_whose_run_is_gone_says_so(tmp_path: Path) -> None:
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    with backend.process:
        caller = owner(backend)
        job = caller.submit()
        caller.until(job, "completed")
        door = open_door(caller)
        door.change(target={"kind": "adapter", "adapter": {"kind": "final", "jobId": job}})
        assert door.ask().status_code == 200
        shutil.rmtree(backend.home / "runs" / job)
        error = refused(door.ask(), 404)
        assert error["code"] == "model_not_found"
        assert job not in error["message"]
        assert job in (backend.home / "test-backend.log").read_text()
        assert door.call("GET", "/models").status_code == 200
        door.change(target={"kind": "base_model", "baseModel": "any/model"})
        assert door.ask().status_code == 200
        backend.process.kill()
