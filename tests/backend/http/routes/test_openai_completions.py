"""Text completions of a deployment, called without a client library."""

from __future__ import annotations

from typing import Any

import pytest

from tests.backend.caller import owner
from tests.backend.http.routes.test_openai_chat import PublicDeployment, chunks, deploy, kept, refused
from tests.conftest import Backend

pytestmark = pytest.mark.slow  # starts processes of its own


@pytest.fixture(scope="module")
def deployment(backend_env: Backend) -> PublicDeployment:
    return deploy(owner(backend_env))


def complete(deployment: PublicDeployment, **body: Any) -> Any:
    answer = deployment.call("POST", "/completions", json={"model": "any", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_prompt(deployment: PublicDeployment) -> None:
    answer = complete(deployment, prompt="one two")
    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", deployment.slug)
    assert answer["choices"] == [{"index": 0, "text": "scripted: one two", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_the_default_length_is_openais(deployment: PublicDeployment) -> None:
    choice = complete(deployment, prompt="word " * 40)["choices"][0]
    assert (len(choice["text"].split()), choice["finish_reason"]) == (16, "length")


@pytest.mark.parametrize("prompt", [["a", "b"], [[5, 6], [7, 8, 9]]])
def test_several_prompts(deployment: PublicDeployment, prompt: Any) -> None:
    texts = [one if isinstance(one, str) else " ".join(map(str, one)) for one in prompt]
    answer = complete(deployment, prompt=prompt, n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == [f"scripted: {text}" for text in texts for _ in range(2)]
    assert answer["usage"]["prompt_tokens"] == sum(len(text.split()) for text in texts)


def test_a_list_of_numbers_is_one_prompt(deployment: PublicDeployment) -> None:
    answer = complete(deployment, prompt=[5, 6, 7])
    assert [choice["text"] for choice in answer["choices"]] == ["scripted: 5 6 7"]


def test_echo_and_logprobs(deployment: PublicDeployment) -> None:
    choice = complete(deployment, prompt="one two ", max_tokens=1, echo=True, logprobs=1)["choices"][0]
    assert choice["text"] == "one two scripted: "
    assert choice["logprobs"] == {
        "tokens": ["one ", "two ", "scripted: "],
        "token_logprobs": [0.0, 0.0, 0.0],
        "top_logprobs": [{"one ": 0.0}, {"two ": 0.0}, {"scripted: ": 0.0}],
        "text_offset": [0, 4, 8],
    }
    choice = complete(deployment, prompt="one", max_tokens=0, echo=True)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("one", "length")


def test_a_stream(deployment: PublicDeployment) -> None:
    body = {"prompt": ["a", "b"], "stream": True, "echo": True, "logprobs": 0}
    options = {"stream_options": {"include_usage": True}}
    *parts, last = chunks(deployment.call("POST", "/completions", json={**body, **options}))
    texts = ["", ""]
    offsets: list[list[int]] = [[], []]
    for part in parts:
        (choice,) = part["choices"]
        assert part["usage"] is None
        texts[choice["index"]] += choice["text"]
        offsets[choice["index"]] += (choice["logprobs"] or {}).get("text_offset", [])
    assert texts == ["ascripted: a", "bscripted: b"]
    assert offsets == [[0, 1, 11]] * 2
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 6)


def test_a_failure_within_a_stream(backend_env: Backend) -> None:
    deployment = deploy(owner(backend_env), model="scripted/break")
    answer = deployment.call("POST", "/completions", json={"prompt": "one two three", "stream": True})
    assert "as it was asked to" in chunks(answer)[-1]["error"]["message"]
    (entry,) = kept(backend_env.home, deployment)
    assert entry["request"]["prompt"] == "one two three"
    assert entry["answer"]["message"]["content"] == "scripted: one "
    assert entry["answer"]["error"]["code"] == "scripted"


@pytest.mark.parametrize(
    ("param", "change"),
    [
        ("prompt", {"prompt": None}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": {}}),
        ("prompt", {"prompt": [1.5]}),
        ("prompt", {"prompt": [-1]}),
        ("prompt", {"prompt": ["a", 5]}),
        ("prompt", {"prompt": [[]]}),
        ("prompt", {"prompt": ["a"] * 129}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": "5"}),
        ("logprobs", {"logprobs": 21}),
        ("logprobs", {"logprobs": True}),
        ("logprobs", {"logprobs": False}),
        ("temperature", {"temperature": -1}),
        ("stop", {"stop": [""]}),
        ("n", {"n": 5}),
        ("echo", {"echo": "yes"}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("best_of", {"best_of": 3}),
        ("suffix", {"suffix": "end"}),
        ("messages", {"messages": []}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_wrong_is_named(deployment: PublicDeployment, param: str, change: dict[str, Any]) -> None:
    error = refused(deployment.call("POST", "/completions", json={"prompt": "a", **change}), 400)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
