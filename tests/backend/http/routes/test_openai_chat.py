"""The OpenAI-compatible routes, called without a client library: keys, requests, responses, conversations."""

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
class PublicDeployment:
    """A deployment and a key for it."""

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


def deploy(
    caller: Caller, *, model: str = "any/model", auth_mode: str = "fixed_api_key", **more: Any
) -> PublicDeployment:
    slug = f"bot-{uuid4().hex[:12]}"
    body = {"slug": slug, "target": {"kind": "base_model", "baseModel": model}, "authMode": auth_mode, **more}
    made = caller.call("POST", "/v1/endpoints", json=body)
    assert made.status_code == 201, made.text
    made_id = made.json()["deployment"]["id"]
    key = caller.call("POST", f"/v1/endpoints/{made_id}/keys", json={"label": "test"}).json()["key"]["plaintext"]
    return PublicDeployment(caller, made_id, slug, key)


@pytest.fixture(scope="module")
def openai_deployment(backend_env: Backend) -> PublicDeployment:
    """A deployment with a key, for tests that do not change it."""
    return deploy(owner(backend_env))


def refused(answer: requests.Response, status: int) -> dict[str, Any]:
    """Return the error, which must have OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["message"].endswith(".") or error["param"]
    return error


def chunks(answer: requests.Response) -> list[Any]:
    """Return the data of every frame; the last one must be `[DONE]`."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *frames, rest = answer.content.decode().split("\n\n")
    assert rest == ""
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def kept(home: Path, deployment: PublicDeployment, count: int = 1) -> list[dict[str, Any]]:
    """Return the stored conversations once there are `count`: each is written after its response."""
    deadline = time.monotonic() + 20
    while True:
        files = sorted((home / "conversations" / deployment.id).glob("*.jsonl"))
        lines = [line for file in files for line in file.read_bytes().splitlines(keepends=True)]
        if len(lines) >= count and all(line.endswith(b"\n") for line in lines):
            return [json.loads(line) for line in lines]
        assert time.monotonic() < deadline, f"{len(lines)} of {count} conversations"
        time.sleep(0.02)


# Keys


def test_the_key_comes_in_either_header(openai_deployment: PublicDeployment) -> None:
    for headers in (
        {"Authorization": f"Bearer {openai_deployment.key}"},
        {"Authorization": f"bearer   {openai_deployment.key}  "},
        {"x-api-key": f"{openai_deployment.key}"},
        {"X-API-Key": f"{openai_deployment.key}", "Authorization": f"Bearer {openai_deployment.key}"},
        {"x-api-key": f"{openai_deployment.key}", "Authorization": "Bearer "},
    ):
        answer = openai_deployment.ask(headers=headers)
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
def test_without_the_right_key_nobody_does(openai_deployment: PublicDeployment, headers: dict[str, Any]) -> None:
    sent = {
        name: value.replace("KEY", str(openai_deployment.key)) if isinstance(value, str) else value
        for name, value in headers.items()
    }
    for answer in (
        openai_deployment.ask(headers=sent),
        openai_deployment.ask({}, headers=sent),
        openai_deployment.call("GET", "/models", headers=sent),
    ):
        assert refused(answer, 401)["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
        assert str(openai_deployment.key) not in answer.text


def test_the_owners_token_is_no_key(backend_env: Backend, openai_deployment: PublicDeployment) -> None:
    refused(openai_deployment.ask(headers={"Authorization": f"Bearer {backend_env.token}"}), 401)


def test_a_deployment_may_need_no_key(backend_env: Backend) -> None:
    deployment = evolve(deploy(owner(backend_env), auth_mode="none"), key=None)
    assert deployment.ask().status_code == 200
    assert deployment.ask(headers={"Authorization": "Bearer sk-anything"}).status_code == 200
    deployment.change(authMode="fixed_api_key")
    refused(deployment.ask(), 401)


def test_a_revoked_key_opens_nothing_from_then_on(backend_env: Backend) -> None:
    deployment = deploy(owner(backend_env))
    assert deployment.ask().status_code == 200
    (key,) = deployment.keys()
    assert key["lastUsedAt"] > key["createdAt"]
    deployment.owner.call("DELETE", f"/v1/endpoints/{deployment.id}/keys/{key['id']}")
    for body in (ASKED, {**ASKED, "stream": True}):
        assert "revoked" in refused(deployment.ask(body), 401)["message"]


def test_nobody_can_tell_a_disabled_one_from_none(backend_env: Backend) -> None:
    deployment = deploy(owner(backend_env))
    deployment.change(enabled=False)
    nowhere = evolve(deployment, slug="bot-nowhere")
    for headers in ({}, {"Authorization": f"Bearer {deployment.key}"}, {"Authorization": "Bearer wrong"}):
        for method, path in (("POST", "/chat/completions"), ("GET", "/models"), ("GET", f"/models/{deployment.slug}")):
            one, other = (each.call(method, path, headers=headers, json=ASKED) for each in (deployment, nowhere))
            assert (one.status_code, one.content) == (other.status_code, other.content)
            assert refused(one, 404)["code"] == "deployment_not_found"
    deployment.change(enabled=True)
    assert deployment.ask().status_code == 200


@pytest.mark.parametrize(
    "slug", ["..", "%2e%2e", "%2e%2e%2f%2e%2e", "%00", "x" * 3000, "%ff", "a%0d%0ab", "' OR 1=1 --"]
)
def test_a_hostile_slug_leads_nowhere(openai_deployment: PublicDeployment, slug: str) -> None:
    answer = evolve(openai_deployment, slug=slug).ask()
    assert answer.status_code == (400 if slug == "%00" else 404)
    assert "x-injected" not in answer.headers


def raw(deployment: PublicDeployment, head: str, body: bytes = b"") -> bytes:
    """Send raw bytes and return everything until the server closes the connection."""
    url = urlsplit(deployment.url)
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
def test_smuggled_headers_get_nowhere(openai_deployment: PublicDeployment, head: str, status: bytes) -> None:
    body = json.dumps(ASKED).encode() + (b"\r\n" if "chunked" in head else b"")
    smuggled = raw(
        openai_deployment, head.replace("KEY", str(openai_deployment.key)).replace("LEN", str(len(body))), body
    )
    assert smuggled.split(b" ", 2)[1].startswith(status), smuggled
    assert ANSWER.encode() not in smuggled
    assert smuggled.count(b"HTTP/1.1 ") == 1
    assert openai_deployment.ask().status_code == 200


# Requests


def test_everything_that_openai_knows_and_nothing_hangs_on_is_taken(openai_deployment: PublicDeployment) -> None:
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
    assert openai_deployment.ask({**ASKED, **harmless}).json()["choices"][0]["message"]["content"] == ANSWER
    assert openai_deployment.ask({"messages": QUESTION}).status_code == 200


def test_messages_as_openais_clients_send_them(openai_deployment: PublicDeployment) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "a", "name": "kim"},
        {"role": "assistant", "content": "b", "refusal": None, "annotations": [], "audio": None, "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "c d"}]},
    ]
    answer = openai_deployment.ask({"messages": messages}).json()
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
    ("n", {"n": 5}),
    ("n", {"n": 0}),
    ("n", {"n": 1.5}),
    ("logprobs", {"logprobs": 2}),
    ("top_logprobs", {"top_logprobs": 5}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    ("logit_bias", {"logit_bias": {"50256": -101}}),
    ("logit_bias", {"logit_bias": {"the": 1}}),
    ("logit_bias", {"logit_bias": [1]}),
    ("presence_penalty", {"presence_penalty": 2.5}),
    ("frequency_penalty", {"frequency_penalty": "high"}),
    ("enable_thinking", {"enable_thinking": "yes"}),
    ("chat_template_kwargs", {"chat_template_kwargs": {"date": "today"}}),
    ("modalities", {"modalities": ["text", "audio"]}),
    ("functions", {"functions": [{"name": "f"}]}),
    ("function_call", {"function_call": {"name": "f"}}),
    ("guided_json", {"guided_json": {}}),
    ("top_k", {"top_k": 40}),
    ("reasoning_effort", {"reasoning_effort": "huge"}),
    ("maxTokens", {"maxTokens": 5}),
    ("temprature", {"temprature": 1}),
    ("response_format.type", {"response_format": {"type": "xml"}}),
    ("tool_choice", {"tool_choice": "required"}),
    ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "../x\r\n"}}]}),
    ("structured_outputs", {"structured_outputs": {"choice": ["a"], "regex": "b"}}),
    ("stop", {"stop": ["a"] * 17}),
    ("seed", {"seed": 2**80}),
]


@pytest.mark.parametrize(("param", "change"), WRONG, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_named_in_openais_words(
    openai_deployment: PublicDeployment, param: str, change: dict[str, Any]
) -> None:
    error = refused(openai_deployment.ask({**ASKED, **change}), 400)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert not {"maxTokens", "topP", "toolChoice", "responseFormat"} - change.keys() & set(error["message"].split())


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b'{"messages": NaN}', b"[" * 100_000, b'{"a": "\\ud800"}']
)
def test_a_body_that_is_none(openai_deployment: PublicDeployment, body: bytes) -> None:
    answer = openai_deployment.call("POST", "/chat/completions", data=body)
    refused(answer, 400)


def test_what_is_too_large_is_refused_before_it_is_read(openai_deployment: PublicDeployment) -> None:
    for size in (5_000_000, 10_000_000, 40_000_000):
        began = time.monotonic()
        error = refused(openai_deployment.ask({"messages": [{"role": "user", "content": "x" * size}]}), 413)
        assert time.monotonic() - began < 10
        assert "larger" in error["message"]
    assert openai_deployment.ask().status_code == 200


def test_other_methods_and_other_paths(openai_deployment: PublicDeployment) -> None:
    for method, path in (
        ("GET", "/chat/completions"),
        ("PUT", "/completions"),
        ("DELETE", f"/models/{openai_deployment.slug}"),
    ):
        answer = openai_deployment.call(method, path)
        assert refused(answer, 405)["code"] == "method_not_allowed"
        assert "does not support the method" in answer.json()["error"]["message"]
        assert answer.headers["allow"]
    for path in ("/embeddings", "/audio/speech", "/chat/completions/", "/../../chat/completions"):
        error = refused(openai_deployment.call("POST", path, json={}), 404)
        assert error["code"] == "not_found"
        assert "/v1/responses" in error["message"]
    without_v1 = requests.post(openai_deployment.url.removesuffix("/v1") + "/chat/completions", json=ASKED, timeout=30)
    assert "ends with /v1" in refused(without_v1, 404)["message"]


def test_what_the_server_rejects_has_openais_shape_too(openai_deployment: PublicDeployment) -> None:
    key = {"Authorization": f"Bearer {openai_deployment.key}"}
    refused(openai_deployment.ask(headers={**key, "X-Long": "x" * 70_000}), 431)
    refused(openai_deployment.ask(headers={**key, "Host": "evil.example"}), 403)
    refused(openai_deployment.ask(headers={**key, "Origin": "https://evil.example"}), 403)
    refused(openai_deployment.ask(headers={**key, "Content-Encoding": "gzip"}), 415)


def test_a_page_of_another_site_gets_no_answer(openai_deployment: PublicDeployment) -> None:
    headers = {"Authorization": f"Bearer {openai_deployment.key}", "Origin": "https://evil.example"}
    answer = openai_deployment.ask(headers=headers)
    assert "access-control-allow-origin" not in answer.headers
    preflight = openai_deployment.call(
        "OPTIONS", "/chat/completions", headers={**headers, "Access-Control-Request-Method": "POST"}
    )
    assert not {name for name in preflight.headers if name.lower().startswith("access-control")}


# Responses


def test_the_model_goes_by_the_slug(openai_deployment: PublicDeployment) -> None:
    listed = openai_deployment.call("GET", "/models").json()
    (model,) = listed.pop("data")
    assert listed == {"object": "list"}
    assert abs(model.pop("created") - time.time()) < 600
    assert model == {"id": openai_deployment.slug, "object": "model", "owned_by": "arkor"}
    assert openai_deployment.call("GET", f"/models/{openai_deployment.slug}").json()["id"] == openai_deployment.slug
    assert refused(openai_deployment.call("GET", "/models/gpt-9"), 404)["code"] == "model_not_found"
    assert openai_deployment.ask().json()["model"] == openai_deployment.slug


def test_a_stream(openai_deployment: PublicDeployment) -> None:
    first, *middle, last = chunks(openai_deployment.ask({**ASKED, "stream": True}))
    assert first["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == ANSWER
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    for chunk in (first, *middle, last):
        assert chunk["object"] == "chat.completion.chunk"
        assert (chunk["model"], chunk["id"]) == (openai_deployment.slug, first["id"])
        assert "usage" not in chunk


def test_a_stream_with_usage_ends_with_a_chunk_of_nothing_else(openai_deployment: PublicDeployment) -> None:
    *output, last = chunks(openai_deployment.ask({**ASKED, "stream": True, "stream_options": {"include_usage": True}}))
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in output)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}


def test_several_answers(openai_deployment: PublicDeployment, backend_env: Backend) -> None:
    answer = openai_deployment.ask({**ASKED, "n": 3}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {ANSWER}
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 15, "total_tokens": 19}
    texts = ["", "", ""]
    reasons: list[str] = []
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *parts, last = chunks(openai_deployment.ask({**ASKED, "n": 3, **options}))
    for part in parts:
        (choice,) = part["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
        reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert (texts, reasons) == ([ANSWER] * 3, ["stop"] * 3)
    assert last["usage"] == answer["usage"]


def test_every_answer_is_stored(backend_env: Backend) -> None:
    deployment = deploy(owner(backend_env))
    assert deployment.ask({**ASKED, "n": 2}).status_code == 200
    (entry,) = kept(backend_env.home, deployment)
    assert entry["answer"]["message"]["content"] == ANSWER
    assert [choice["message"]["content"] for choice in entry["answer"]["choices"]] == [ANSWER] * 2


def test_logprobs(openai_deployment: PublicDeployment) -> None:
    asked = {**ASKED, "logprobs": True, "top_logprobs": 2}
    content = openai_deployment.ask(asked).json()["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in content) == ANSWER
    first = {"token": "scripted: ", "logprob": 0.0, "bytes": list(b"scripted: ")}
    assert content[0] == {**first, "top_logprobs": [first]}
    parts = [chunk["choices"][0].get("logprobs") for chunk in chunks(openai_deployment.ask({**asked, "stream": True}))]
    assert [token for part in parts if part for token in part["content"]] == content
    assert "logprobs" not in openai_deployment.ask().json()["choices"][0]


def test_what_a_model_has_no_use_for_is_noted(openai_deployment: PublicDeployment) -> None:
    for field, value in (
        ("enable_thinking", False),
        ("reasoning_effort", "high"),
        ("chat_template_kwargs", {"enable_thinking": False}),
    ):
        name = "enable_thinking" if field == "chat_template_kwargs" else field
        notes = f"{name} has no effect: the scripted engine ignores it."
        assert openai_deployment.ask({**ASKED, field: value}).json()["metadata"] == {"notes": notes}
        last = chunks(openai_deployment.ask({**ASKED, field: value, "stream": True}))[-1]
        assert last["metadata"] == {"notes": notes}
    assert "metadata" not in openai_deployment.ask().json()


def test_sixteen_stop_strings(openai_deployment: PublicDeployment) -> None:
    stop = [f"<{number}>" for number in range(15)] + ["du"]
    choice = openai_deployment.ask({**ASKED, "stop": stop}).json()["choices"][0]
    assert choice["message"]["content"] == "scripted: Wie heißt "


def test_failures_before_and_within_a_stream(backend_env: Backend) -> None:
    caller = owner(backend_env)
    for stream in (True, False):
        answer = deploy(caller, model="scripted/fail").ask({**ASKED, "stream": stream})
        assert "as it was asked to" in refused(answer, 503)["message"]
    deployment = deploy(caller, model="scripted/break")
    *_, last = chunks(deployment.ask({**ASKED, "stream": True}))
    assert "as it was asked to" in last["error"]["message"]
    (entry,) = kept(backend_env.home, deployment)
    assert entry["answer"]["error"]["code"] == "scripted"
    assert entry["answer"]["message"]["content"] == "scripted: Wie "


# Conversations


def test_a_conversation_is_kept_word_for_word(backend_env: Backend) -> None:
    deployment = deploy(owner(backend_env), runRetentionMode="unlimited")
    whole = deployment.ask({**ASKED, "user": "u-1"}).json()
    output = chunks(deployment.ask({**ASKED, "stream": True}))
    first, second = kept(backend_env.home, deployment, 2)
    assert first["request"] == {**ASKED, "user": "u-1"}
    assert (first["answer"].pop("id"), second["answer"].pop("id")) == (whole["id"], output[0]["id"])
    assert first["answer"] == second["answer"]
    assert first["answer"]["message"] == whole["choices"][0]["message"]
    assert first["answer"]["usage"] == whole["usage"]
    assert first["keyId"] == deployment.keys()[0]["id"]
    assert deployment.key is not None
    assert deployment.key not in json.dumps([first, second])
    deployment.change(runRetentionMode="days", runRetentionDays=1)
    assert len(kept(backend_env.home, deployment, 2)) == 2
    deployment.change(runRetentionMode="disabled")
    assert not (backend_env.home / "conversations" / deployment.id).exists()


def test_tool_calls_are_kept_as_a_client_would_put_them_together(backend_env: Backend) -> None:
    deployment = deploy(owner(backend_env))
    function = {"name": "look_up", "parameters": {"type": "object", "properties": {"city": {"enum": ["Bern"]}}}}
    payload = {**ASKED, "tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    whole = deployment.ask(payload).json()["choices"][0]
    assert whole["finish_reason"] == "tool_calls"
    chunks(deployment.ask({**payload, "stream": True}))
    first, second = (entry["answer"] for entry in kept(backend_env.home, deployment, 2))
    assert first["message"] == {**whole["message"], "content": ""}
    for answer in (first, second):
        (call,) = answer["message"]["tool_calls"]
        assert call.keys() == {"id", "type", "function"}
        assert call["function"].keys() == {"name", "arguments"}
        assert call["function"] == whole["message"]["tool_calls"][0]["function"]
        assert answer["finish_reason"] == "tool_calls"


def test_conversations_go_with_their_deployment(backend_env: Backend) -> None:
    deployment = deploy(owner(backend_env))
    deployment.ask()
    assert len(kept(backend_env.home, deployment)) == 1
    deployment.owner.call("DELETE", f"/v1/endpoints/{deployment.id}")
    assert not (backend_env.home / "conversations" / deployment.id).exists()


def test_an_answer_is_given_where_there_is_no_room_to_keep_it(tmp_path: Path) -> None:
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    with backend.process:
        (backend.home / "conversations").write_text("something in the way")
        deployment = deploy(owner(backend))
        assert deployment.ask().json()["choices"][0]["message"]["content"] == ANSWER
        assert chunks(deployment.ask({**ASKED, "stream": True}))
        warning, deadline = f"A conversation of {deployment.slug} could not be kept", time.monotonic() + 20
        while (log := (backend.home / "test-backend.log").read_text()).count(warning) < 2:
            assert time.monotonic() < deadline, log
            time.sleep(0.02)
        assert "Traceback" not in log
        backend.process.kill()


CANARY = "xylophone-kumquat-7351"


def test_who_keeps_nothing_leaves_no_word_of_it_anywhere(tmp_path: Path) -> None:
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    with backend.process:
        payload = {"messages": [{"role": "user", "content": f"{CANARY} " * 3}]}
        for model in ("any/model", "scripted/fail", "scripted/break", "scripted/crash"):
            deployment = deploy(owner(backend), model=model, runRetentionMode="disabled")
            for body in (payload, {**payload, "stream": True}, {**payload, "n": CANARY}, {**payload, "max_tokens": -1}):
                deployment.ask(body)
            deployment.call("POST", "/chat/completions", data=f'{{"messages": "{CANARY}')
            deployment.ask({"messages": [{"role": CANARY, "content": CANARY}], CANARY: CANARY})
            deployment.call("GET", f"/models/{CANARY}")
        backend.process.terminate()
        backend.process.wait()
    written = [file for file in backend.home.rglob("*") if file.is_file()]
    assert len(written) > 3
    assert [file for file in written if CANARY.encode() in file.read_bytes()] == []


@pytest.fixture
def slow_deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Backend, PublicDeployment]]:
    """A deployment of a scripted model that takes 20 ms a word."""
    monkeypatch.setenv("ARKOR_SCRIPTED_TOKEN_SECONDS", "0.02")
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    with backend.process:
        yield backend, deploy(owner(backend))
        backend.process.kill()


LONG = {"messages": [{"role": "user", "content": "word " * 400}], "stream": True}


def test_what_was_said_until_a_client_left_is_kept(slow_deployment: tuple[Backend, PublicDeployment]) -> None:
    backend, deployment = slow_deployment
    with deployment.ask(LONG, stream=True) as answer:
        received = 0
        while received < 10:
            received += answer.raw.read1().count(b"data: ")
    (entry,) = kept(backend.home, deployment)
    output = len(entry["answer"]["message"]["content"].split())
    assert 8 < output < 400  # the first chunk is the role, and a word takes 20 ms
    assert entry["answer"]["finish_reason"] is None


def test_a_stream_that_is_turned_off_in_between_is_not_kept(slow_deployment: tuple[Backend, PublicDeployment]) -> None:
    backend, deployment = slow_deployment
    with deployment.ask({**LONG, "max_tokens": 30}, stream=True) as answer:
        assert answer.raw.read1()
        deployment.change(runRetentionMode="disabled")
        assert b"[DONE]" in answer.raw.read()
    time.sleep(0.2)
    assert kept(backend.home, deployment, 0) == []


# Restarts


def test_a_deployment_and_its_keys_survive_a_restart(tmp_path: Path) -> None:
    home = tmp_path / "arkor-home"
    first = start_backend(home, "--engine", "scripted")
    deployment = deploy(owner(first))
    assert deployment.ask().status_code == 200
    first.process.kill()
    first.process.wait()
    second = start_backend(home, "--engine", "scripted")
    with second.process:
        deployment = evolve(deployment, owner=owner(second))
        assert deployment.keys()[0]["lastUsedAt"]
        assert deployment.ask().status_code == 200
        second.process.kill()


def test_what_is_too_old_goes_when_the_server_starts(tmp_path: Path) -> None:
    home = tmp_path / "arkor-home"
    first = start_backend(home, "--engine", "scripted")
    deployment = deploy(owner(first))
    deployment.ask()
    (entry,) = kept(home, deployment)
    first.process.kill()
    first.process.wait()
    folder = home / "conversations" / deployment.id
    old = json.dumps({**entry, "createdAt": "2020-01-01T00:00:00.000Z"})
    (folder / "2020-01-01.jsonl").write_text(old + "\n")
    second = start_backend(home, "--engine", "scripted")
    with second.process:
        deadline = time.monotonic() + 30
        while (folder / "2020-01-01.jsonl").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert kept(home, deployment) == [entry]
        second.process.kill()


def test_a_deployment_whose_run_is_gone_says_so(tmp_path: Path) -> None:
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    with backend.process:
        caller = owner(backend)
        job = caller.submit()
        caller.until(job, "completed")
        deployment = deploy(caller)
        deployment.change(target={"kind": "adapter", "adapter": {"kind": "final", "jobId": job}})
        assert deployment.ask().status_code == 200
        shutil.rmtree(backend.home / "runs" / job)
        error = refused(deployment.ask(), 404)
        assert error["code"] == "model_not_found"
        assert job not in error["message"]
        assert job in (backend.home / "test-backend.log").read_text()
        assert deployment.call("GET", "/models").status_code == 200
        deployment.change(target={"kind": "base_model", "baseModel": "any/model"})
        assert deployment.ask().status_code == 200
        backend.process.kill()
