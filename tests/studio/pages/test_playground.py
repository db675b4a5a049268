"""The playground: streamed answers, stopping them, error messages, code."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from arkor.client.api import CloudApiClient
from arkor.protocol.chat import Adapter, InferenceRequest
from arkor.studio import snippets
from arkor.studio.security import TOKEN_HEADER
from tests.conftest import Backend, start_backend
from tests.studio.conftest import Studio, start_studio, submit, until
from tests.studio.test_stream_proxy import connections

NAME = "<img src=x onerror=alert(1)>"
HOSTILE = 'it\'s "quoted" $HOME `id` \\ </code><b>x</b>\nnext line \U0001f642 \u202e\u2028\x07{{7*7}}'


def asked(text: str = "Hi there", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "baseModel": "org/small-model", **more}


def trained(client: CloudApiClient, name: str = "a run", **config: Any) -> str:
    job = submit(client, name, **{"max_steps": 10, **config})
    until(client, job, "completed")
    return job


def text_of(answer: requests.Response) -> str:
    frames = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"].get("content", "") for frame in frames for choice in json.loads(frame)["choices"]]
    return "".join(deltas)


def ask_endpoint(client: CloudApiClient, slug: str, key: str | None) -> requests.Response:
    """Send a request to an endpoint."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"model": slug, "messages": [{"role": "user", "content": "Hi"}]}
    return requests.post(f"{client.base_url}/e/{slug}/v1/chat/completions", json=body, headers=headers, timeout=20)


# Answers


def test_an_answer_comes_as_the_backend_gives_it(studio_env: Studio, client: CloudApiClient) -> None:
    job = trained(client)
    for weights in ({"kind": "final", "jobId": job}, {"kind": "checkpoint", "jobId": job, "step": 4}):
        answer = studio_env.post("/streams/answers", json={**asked(), "baseModel": None, "adapter": weights})
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert text_of(answer) == "scripted: Hi there"
        assert '"usage":{"prompt_tokens":2,"completion_tokens":3' in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "request: must be a JSON object with `messages`"),
        (b"[]", 400, "request: must be a JSON object with `messages`"),
        (b"{}", 400, "request: must be a JSON object with `messages`"),
        (b"[" * 100_000, 400, "request: must be a JSON object with `messages`"),
        (asked(messages=[]), 400, "messages: must be a list of at least one message"),
        (asked(temperature="hot"), 400, "Temperature: must be a number of at least 0 (0 is greedy), not 'hot'"),
        (asked(adapter={"kind": "final", "jobId": "nothing"}, baseModel=None), 404, "has no job 'nothing'"),
        (asked(structuredOutputs={"json": "{"}), 400, "Output format: "),
        (asked(structuredOutputs={"regex": "a", "choice": ["b"]}), 400, "Output format: "),
        (asked(baseModel="scripted/fail"), 502, "The scripted generator fails, as it was asked to."),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_answered_is_a_sentence(studio_env: Studio, body: Any, status: int, sentence: str) -> None:
    sent = {"data": body} if isinstance(body, bytes) else {"json": body}
    answer = studio_env.post("/streams/answers", **sent)
    assert answer.status_code == status
    assert sentence in answer.text
    assert "<" not in answer.text
    assert "Traceback" not in answer.text


def test_a_fault_in_mid_answer_comes_behind_its_words(studio_env: Studio) -> None:
    answer = studio_env.post("/streams/answers", json=asked("one two three", baseModel="scripted/break"))
    assert answer.status_code == 200
    assert "The scripted generator fails" in answer.text.split('"content":"one "')[1]


def test_only_by_post_and_with_the_token(studio_env: Studio) -> None:
    for path in ("/streams/answers", "/parts/code"):
        assert studio_env.get(path).status_code == 405
        assert requests.post(studio_env.url + path, json=asked(), timeout=10).status_code == 401
        foreign = {"Origin": "http://example.com"}
        assert studio_env.post(path, json=asked(), headers=foreign).status_code == 403


# Stopping


@pytest.fixture
def slow_studio_factory(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[float], Any]]:
    """Start Studio and a backend with a delay per token, whose idle inference process ends at once."""
    monkeypatch.setenv("ARKOR_SERVING_IDLE_SECONDS", "0.2")
    started: list[Any] = []

    def make(seconds: float) -> tuple[Studio, Backend]:
        monkeypatch.setenv("ARKOR_SCRIPTED_TOKEN_SECONDS", str(seconds))
        backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
        started.extend([start_studio(project), backend])
        started[0].get("/parts/runs")  # it is connected to its backend
        return started[0], backend

    yield make
    for one in started:
        one.process.kill()
        one.process.wait()


def serving(backend: Backend) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(backend.process.pid).children()
        if "arkor.backend.inference.process" in child.cmdline()
    ]


def eventually(what: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stop_ends_what_the_backend_computes(slow_studio_factory: Callable[[float], Any]) -> None:
    studio, backend = slow_studio_factory(0.1)
    headers = {TOKEN_HEADER: studio.token}
    body = asked("word " * 3000)  # five minutes of words
    with requests.post(f"{studio.url}/streams/answers", json=body, headers=headers, stream=True, timeout=20) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert serving(backend)
        time.sleep(1)
        assert serving(backend)  # it stays while it answers
    eventually(lambda: not serving(backend))  # and ends when it has no requests


def test_a_stop_before_the_first_word_is_not_waited_for(slow_studio_factory: Callable[[float], Any]) -> None:
    studio, backend = slow_studio_factory(600)
    before = connections(backend)
    headers = {TOKEN_HEADER: studio.token}
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{studio.url}/streams/answers", json=asked("a b c"), headers=headers, timeout=(5, 1))
    eventually(lambda: connections(backend) <= before)
    assert studio.get("/parts/ready").status_code == 204


# Choices


def test_choices_are_searched_newest_first_and_escaped(studio_env: Studio, client: CloudApiClient) -> None:
    first, second = trained(client, "alpha"), trained(client, NAME)
    text = studio_env.get("/parts/choices").text
    assert text.index(second) < text.index(first)
    assert NAME not in text
    assert html.escape(NAME, quote=False) in text
    found = studio_env.get("/parts/choices?q=alpha").text
    assert first in found
    assert second not in found
    strange = studio_env.get("/parts/choices", params={"q": NAME + "?"}).text
    assert "No run matches" in strange
    assert NAME not in strange
    assert 'data-model="smollm2-135m-instruct"' in text


@pytest.mark.parametrize(
    ("query", "step"), [("", ""), ("&step=4", "4"), ("&step=base", "base"), ("&run2=RUN&step2=6", "")]
)
def test_the_address_says_who_is_asked(studio_env: Studio, client: CloudApiClient, query: str, step: str) -> None:
    job = trained(client)
    text = studio_env.get(f"/playground?run={job}{query.replace('RUN', job)}").text
    assert f'data-run="{job}" data-step="{step}"' in text
    assert ('data-step="6"' in text) is ("step2=6" in query)


def test_an_address_that_makes_no_sense(studio_env: Studio, client: CloudApiClient) -> None:
    assert studio_env.get("/playground?run=nothing").status_code == 404
    assert studio_env.get(f"/playground?run={submit(client)}&step=²").status_code == 400
    assert studio_env.get("/playground?model=org/other").status_code == 200


# Code


def run(code: str, folder: Path, *, shell: bool = False) -> str:
    command = ["bash", "-c", code] if shell else [sys.executable, "-c", code]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def shown(text: str) -> dict[str, str]:
    """Return the first snippet of each language on a page."""
    found: dict[str, str] = {}
    for label, code in re.findall(r'data-language="(\w+)">.*?<code>(.*?)</code>', text, re.DOTALL):
        found.setdefault(label, html.unescape(code))
    return found


@pytest.mark.parametrize("text", ["Hello", HOSTILE], ids=["plain", "hostile"])
def test_the_shown_code_asks_the_same(studio_env: Studio, client: CloudApiClient, text: str) -> None:
    job = trained(client)
    request = {
        "messages": [{"role": "system", "content": text}, {"role": "user", "content": text}],
        "adapter": {"kind": "checkpoint", "jobId": job, "step": 4},
        "temperature": 0.5, "topP": 0.9, "maxTokens": 40, "seed": 7, "stop": ["STOP"],
    }  # fmt: skip
    page = studio_env.post("/parts/code", json=request).text
    assert "<b>x" not in page
    code = shown(page)
    output = f"scripted: {text}"
    assert run(code["Python"], studio_env.folder) == output + "\n"
    answered = json.loads(run(code["curl"], studio_env.folder, shell=True))
    assert answered["choices"][0]["message"]["content"] == output
    assert str(client.http.auth.token) not in page


def test_code_of_an_endpoint_that_answers_with_these_weights(studio_env: Studio, client: CloudApiClient) -> None:
    pytest.importorskip("openai", reason="the code for OpenAI's package needs it")
    job = trained(client)
    request = {**asked("Hi"), "baseModel": None, "adapter": {"kind": "final", "jobId": job}}
    request["structuredOutputs"] = {"choice": ["yes", "no"]}
    before = studio_env.post("/parts/code", json=request).text
    assert f"/endpoints/new?run={job}" in html.unescape(before)
    made = client.create_deployment("of-these-weights", {"kind": "adapter", "adapter": request["adapter"]}, "none")
    after = studio_env.post("/parts/code", json=request).text
    code = shown(after.split('class="published"')[1])
    assert run(code["Python"], studio_env.folder) == "yes\n"
    assert json.loads(run(code["curl"], studio_env.folder, shell=True))["model"] == "of-these-weights"
    client.delete_deployment(made.id)


def test_literals_are_the_values_again() -> None:
    values = [HOSTILE, {"a": [True, None, 1.5, HOSTILE] * 12, "b": {}, "c": []}, [[{"x": "y" * 60}] * 3], ""]
    for value in values:
        request = InferenceRequest(
            [{"role": "user", "content": "x"}], Adapter("final", "id"), structured_outputs={"json": value}
        )
        code = snippets._arkor(request)
        names: dict[str, Any] = {}
        exec(code.split("for text in")[0], names)
        assert names["request"] == request
        assert code.startswith("from arkor import Adapter, InferenceRequest, connect\n")
        assert all(character.isprintable() or character == "\n" for character in code)
