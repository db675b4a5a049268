"""OpenAI's Python package against a deployment of a backend process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import openai
import psutil
import pytest
import requests
from attrs import frozen
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from arkor.client.api import CloudApiClient
from arkor.client.connect import connect
from arkor.protocol.deployments import Deployment
from tests.conftest import Backend, start_backend, stop_backend

pytestmark = pytest.mark.slow  # starts processes of its own

QUESTION: list[ChatCompletionMessageParam] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Wie heißt du, 你好?"},
]
ANSWER = "scripted: Wie heißt du, 你好?"


@frozen
class Site:
    """A backend and its owner's client, which creates deployments."""

    backend: Backend
    owner: CloudApiClient

    def deploy(self, model: str = "any/model") -> tuple[Deployment, str]:
        """Create a deployment of a base model and a key for it."""
        made = self.owner.create_deployment(
            f"bot-{uuid4().hex[:12]}", {"kind": "base_model", "baseModel": model}, "fixed_api_key"
        )
        key = self.owner.create_deployment_key(made.id, "test").plaintext
        assert key
        return made, key

    def url(self, slug: str) -> str:
        return f"{self.backend.url}/e/{slug}/v1"

    def client(self, model: str = "any/model") -> openai.OpenAI:
        """Return OpenAI's client, without retries, for a new deployment."""
        made, key = self.deploy(model)
        return openai.OpenAI(base_url=self.url(made.slug), api_key=key, max_retries=0)


@pytest.fixture
def site(backend_env: Backend) -> Site:
    return Site(backend_env, connect())


def content(completion: Any) -> str:
    (choice,) = completion.choices
    assert choice.message.role == "assistant"
    assert isinstance(choice.message.content, str)
    return choice.message.content


# Answers


def test_plain(site: Site) -> None:
    with site.client() as client:
        completion = client.chat.completions.create(model="any", messages=QUESTION)
    assert content(completion) == ANSWER
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens == 11
    assert abs(completion.created - time.time()) < 60


def test_cut_short(site: Site) -> None:
    with site.client() as client:
        for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
            completion = client.chat.completions.create(model="any", messages=QUESTION, **limit)
            assert content(completion) == "scripted: Wie "
            assert completion.choices[0].finish_reason == "length"


def test_streamed(site: Site) -> None:
    with site.client() as client:
        chunks = list(client.chat.completions.create(model="any", messages=QUESTION, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert {chunk.usage for chunk in chunks} == {None}


def test_streamed_with_usage(site: Site) -> None:
    options = {"include_usage": True}
    with site.client() as client:
        *output, last = client.chat.completions.create(
            model="any", messages=QUESTION, stream=True, stream_options=options
        )
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in output)
    assert last.choices == []
    assert last.usage.model_dump(exclude_none=True) == {"prompt_tokens": 6, "completion_tokens": 5, "total_tokens": 11}


def test_the_streaming_helper(site: Site) -> None:
    with site.client() as client, client.chat.completions.stream(model="any", messages=QUESTION) as stream:
        events = list(stream)
        assert content(stream.get_final_completion()) == ANSWER
    assert "".join(event.delta for event in events if event.type == "content.delta") == ANSWER
    assert [event.content for event in events if event.type == "content.done"] == [ANSWER]


def test_asynchronous(site: Site) -> None:
    made, key = site.deploy()

    async def ask() -> tuple[str, list[str]]:
        async with openai.AsyncOpenAI(base_url=site.url(made.slug), api_key=key) as client:
            four = [client.chat.completions.create(model="any", messages=QUESTION) for _ in range(4)]
            whole = [content(completion) for completion in await asyncio.gather(*four)]
            stream = await client.chat.completions.create(model="any", messages=QUESTION, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream]), whole

    assert asyncio.run(ask()) == (ANSWER, [ANSWER] * 4)


def test_models(site: Site) -> None:
    made, key = site.deploy()
    with openai.OpenAI(base_url=site.url(made.slug), api_key=key) as client:
        (model,) = client.models.list().data
        assert model.id == made.slug
        assert client.models.retrieve(model.id) == model


def test_a_deployment_that_needs_no_key(site: Site) -> None:
    made, _ = site.deploy()
    site.owner.update_deployment(made.id, auth_mode="none")
    with openai.OpenAI(base_url=site.url(made.slug), api_key="not needed") as client:
        assert content(client.chat.completions.create(model="any", messages=QUESTION)) == ANSWER


# Refusals


def test_a_wrong_key(site: Site) -> None:
    made, _ = site.deploy()
    with openai.OpenAI(base_url=site.url(made.slug), api_key="ark_live_wrong") as client:
        for stream in (False, True):
            with pytest.raises(openai.AuthenticationError, match="wrong, or revoked") as refused:
                client.chat.completions.create(model="any", messages=QUESTION, stream=stream)
            assert refused.value.code == "invalid_api_key"
            assert refused.value.type == "invalid_request_error"
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_a_revoked_key(site: Site) -> None:
    made, _ = site.deploy()
    key = site.owner.create_deployment_key(made.id, "to be revoked")
    with openai.OpenAI(base_url=site.url(made.slug), api_key=key.plaintext) as client:
        assert content(client.chat.completions.create(model="any", messages=QUESTION)) == ANSWER
        site.owner.revoke_deployment_key(made.id, key.id)
        with pytest.raises(openai.AuthenticationError):
            client.chat.completions.create(model="any", messages=QUESTION, stream=True)


def test_a_disabled_endpoint(site: Site) -> None:
    made, key = site.deploy()
    site.owner.update_deployment(made.id, enabled=False)
    with openai.OpenAI(base_url=site.url(made.slug), api_key=key) as client:
        with pytest.raises(openai.NotFoundError, match="No deployment answers at this address"):
            client.chat.completions.create(model="any", messages=QUESTION)
        site.owner.update_deployment(made.id, enabled=True)
        assert content(client.chat.completions.create(model="any", messages=QUESTION)) == ANSWER
        site.owner.delete_deployment(made.id)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="any", messages=QUESTION)


def test_a_wrong_parameter_goes_by_its_name(site: Site) -> None:
    with site.client() as client:
        for change in ({"temperature": -1}, {"max_tokens": -5}, {"n": 5}, {"top_logprobs": 3}, {"top_p": 7}):
            with pytest.raises(openai.BadRequestError) as refused:
                client.chat.completions.create(model="any", messages=QUESTION, **change)
            assert [refused.value.param] == list(change)


def test_a_message_of_ten_megabytes(site: Site) -> None:
    with site.client() as client:
        began = time.monotonic()
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model="any", messages=[{"role": "user", "content": "x" * 10_000_000}])
        assert refused.value.status_code == 413
        assert time.monotonic() - began < 10
        assert content(client.chat.completions.create(model="any", messages=QUESTION)) == ANSWER


def test_failures_of_the_model(site: Site) -> None:
    with site.client("scripted/fail") as client, pytest.raises(openai.InternalServerError, match="as it was asked to"):
        client.chat.completions.create(model="any", messages=QUESTION)
    with (
        site.client("scripted/crash") as client,
        pytest.raises(openai.InternalServerError, match="exit code 13") as died,
    ):
        client.chat.completions.create(model="any", messages=QUESTION)
    assert str(site.backend.home) not in str(died.value)  # paths of the machine are not shown to callers
    output = ""
    with site.client("scripted/break") as client, pytest.raises(openai.APIError, match="as it was asked to"):
        for chunk in client.chat.completions.create(model="any", messages=QUESTION, stream=True):
            output += chunk.choices[0].delta.content or ""
    assert output == "scripted: Wie "


def test_errors_of_unknown_paths_have_their_sentence(site: Site) -> None:
    with site.client() as client:
        with pytest.raises(openai.NotFoundError, match="A deployment has /v1/chat/completions") as missing:
            client.embeddings.create(model="any", input="a")
        assert missing.value.code == "not_found"
        with pytest.raises(openai.NotFoundError, match="not stored"):
            client.responses.retrieve("resp_1")


# Responses and text completions


def test_a_response(site: Site) -> None:
    with site.client() as client:
        response = client.responses.create(model="any", input="a b", metadata={"a": "b"}, store=True)
        assert response.output_text == "scripted: a b"
        assert (response.status, response.metadata) == ("completed", {"a": "b"})
        with client.responses.stream(model="any", input="a b") as stream:
            kinds = [event.type for event in stream]
            assert stream.get_final_response().output_text == "scripted: a b"
        assert kinds.count("response.output_text.delta") == 3
        with pytest.raises(openai.BadRequestError, match="responses are not stored") as refused:
            client.responses.create(model="any", input="a", previous_response_id=response.id)
        assert refused.value.param == "previous_response_id"


def test_a_response_as_a_pydantic_model(real: openai.OpenAI) -> None:
    response = real.responses.parse(model="any", input="a", text_format=Verdict, temperature=2.0)
    assert isinstance(response.output_parsed, Verdict)
    with real.responses.stream(model="any", input="a", text_format=Verdict, temperature=2.0) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_response().output_parsed, Verdict)


def test_a_response_calls_a_tool_and_reads_its_result(real: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": Weather.model_json_schema(), "strict": False}
    asked: dict[str, Any] = {"model": "any", "temperature": 2.0, "max_output_tokens": 400}
    items: list[Any] = [{"role": "user", "content": "How warm is it in Bern?"}]
    response = real.responses.create(input=items, tools=[tool], tool_choice="required", **asked)
    (call,) = response.output
    assert call.type == "function_call"
    assert Weather.model_validate(json.loads(call.arguments))
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
    after = real.responses.create(input=[*items, call, result], **asked)
    assert after.output_text
    with real.responses.stream(input=items, tools=[tool], tool_choice="required", **asked) as stream:
        arguments = "".join(event.delta for event in stream if event.type == "response.function_call_arguments.delta")
        (call,) = stream.get_final_response().output
        assert call.type == "function_call"
        assert call.arguments == arguments


def test_a_text_completion(site: Site) -> None:
    with site.client() as client:
        answer = client.completions.create(model="any", prompt=["a b", "c"], echo=True, logprobs=1)
        assert [choice.text for choice in answer.choices] == ["a bscripted: a b", "cscripted: c"]
        assert answer.choices[0].logprobs is not None
        assert answer.choices[0].logprobs.text_offset == [0, 2, 3, 13, 15]
        parts = list(client.completions.create(model="any", prompt="a b", stream=True))
        assert "".join(part.choices[0].text for part in parts) == "scripted: a b"
        assert parts[-1].choices[0].finish_reason == "stop"


def test_logprobs_of_a_real_model(real: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "any",
        "messages": QUESTION,
        "max_tokens": 12,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = real.chat.completions.create(**asked, n=2).choices
    for choice in whole:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert len(choice.logprobs.content) == 12
        for token in choice.logprobs.content:  # the answer is greedy
            assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
            assert token.bytes
    alone = real.chat.completions.create(**asked, seed=1).choices[0].logprobs
    streamed = [chunk.choices[0].logprobs for chunk in real.chat.completions.create(**asked, seed=1, stream=True)]
    assert alone is not None
    assert [token for part in streamed if part for token in part.content or ()] == alone.content


# Disconnects


def until_writing(process: psutil.Process, writing: bool) -> None:
    """Return once the process has written, or has not, for 0.3 s."""
    deadline = time.monotonic() + 30  # half of the time that the full response takes
    while True:
        before = process.io_counters().write_count
        time.sleep(0.3)
        if (process.io_counters().write_count > before) is writing:
            return
        assert time.monotonic() < deadline


def test_who_leaves_a_stream_ends_the_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_SCRIPTED_TOKEN_SECONDS", "0.02")
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    with backend.process:
        with Site(backend, connect()).client() as client:
            messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "word " * 3000}]
            with client.chat.completions.create(model="any", messages=messages, stream=True) as stream:
                for _, _chunk in zip(range(5), stream, strict=False):
                    pass
                (child,) = psutil.Process(backend.process.pid).children()
                until_writing(child, True)
            until_writing(child, False)
            messages[0]["content"] = "short"
            assert content(client.chat.completions.create(model="any", messages=messages)) == "scripted: short"
        backend.process.kill()


# A real model


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backend, str]]:
    """A backend with the real engine, and a tiny untrained model."""
    from tests.fakes.tiny_model import ARCHITECTURES, make_tiny_model  # noqa: PLC0415 - imports torch

    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setitem(ARCHITECTURES["llama"], "max_position_embeddings", 4096)
        make_tiny_model(folder)
        started = start_backend(tmp_path_factory.mktemp("computed") / "home", "--engine", "trl")
    yield started, str(folder)
    stop_backend(started.home)
    started.process.wait()


@pytest.fixture
def real(computed: tuple[Backend, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    backend, model = computed
    monkeypatch.setenv("ARKOR_HOME", str(backend.home))
    with Site(backend, connect()).client(model) as client:
        yield client


def test_a_real_model_says_the_same_streamed_and_whole(real: openai.OpenAI) -> None:
    payload: dict[str, Any] = {"model": "any", "messages": QUESTION, "max_tokens": 24, "temperature": 1.5, "seed": 7}
    whole = content(real.chat.completions.create(**payload))
    stream = real.chat.completions.create(**payload, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage.completion_tokens <= 24
    assert whole


def test_a_real_model_stops_where_it_is_told(real: openai.OpenAI) -> None:
    payload: dict[str, Any] = {"model": "any", "messages": QUESTION, "max_tokens": 60, "temperature": 1.0, "seed": 3}
    whole = content(real.chat.completions.create(**payload))
    stop = whole[10:12]
    cut = real.chat.completions.create(**payload, stop=[stop])
    assert content(cut) == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_a_prompt_that_is_too_long_says_by_how_much(real: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="this model takes 4096 "):
        real.chat.completions.create(model="any", messages=[{"role": "user", "content": "x" * 6000}])


class Verdict(BaseModel):
    """The classification of a ticket."""

    label: Literal["account", "bug", "billing"]
    urgent: bool


def test_an_answer_as_a_pydantic_model(real: openai.OpenAI) -> None:
    for seed in range(3):
        completion = real.chat.completions.parse(
            model="any", messages=QUESTION, response_format=Verdict, temperature=2.0, seed=seed
        )
        assert isinstance(completion.choices[0].message.parsed, Verdict)
        assert completion.choices[0].finish_reason == "stop"


def test_a_streamed_answer_as_a_pydantic_model(real: openai.OpenAI) -> None:
    with real.chat.completions.stream(
        model="any", messages=QUESTION, response_format=Verdict, temperature=2.0
    ) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Verdict)


def test_constraints_as_vllm_has_them(real: openai.OpenAI) -> None:
    payload: dict[str, Any] = {"model": "any", "messages": QUESTION, "temperature": 2.0}
    choice = real.chat.completions.create(**payload, extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert content(choice) in ("yes", "no")
    digits = real.chat.completions.create(**payload, extra_body={"structured_outputs": {"regex": "[0-9]{4}-[a-f]{2}"}})
    assert len(content(digits)) == 7
    with pytest.raises(openai.BadRequestError, match="structured_outputs") as refused:
        real.chat.completions.create(**payload, extra_body={"structured_outputs": {"choice": ["a"], "regex": "b"}})
    assert refused.value.param is not None


class Weather(BaseModel):
    """The temperature of a city."""

    city: Literal["Bern", "Oslo", "Lima"]
    celsius: bool


def test_a_tool_is_called_and_its_answer_read(real: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "How warm is it in Bern?"}]
    called = real.chat.completions.parse(
        model="any",
        messages=messages,
        tools=[openai.pydantic_function_tool(Weather)],
        tool_choice={"type": "function", "function": {"name": "Weather"}},
        temperature=2.0,
    )
    choice = called.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Weather)
    messages += [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}]
    after = real.chat.completions.create(model="any", messages=messages, max_tokens=8)
    assert content(after)


def test_a_streamed_tool_call(real: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(Weather)]
    stream = real.chat.completions.create(
        model="any", messages=QUESTION, tools=tools, tool_choice="required", temperature=2.0, stream=True
    )
    name, arguments, reasons = "", "", []
    for chunk in stream:
        reasons.append(chunk.choices[0].finish_reason)
        for call in chunk.choices[0].delta.tool_calls or []:
            assert call.index == 0
            assert call.function is not None
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert name == "Weather"
    assert Weather.model_validate(json.loads(arguments))
    assert reasons[-1] == "tool_calls"


HOSTILE: dict[str, Any] = {
    "a regex that explodes": {"structured_outputs": {"regex": "(a{1,1000}){1,1000}"}},
    "a regex without an end": {"structured_outputs": {"regex": "(" * 100_000}},
    "a schema of doubling references": {
        "$ref": "#/$defs/0",
        "$defs": {
            "40": {"type": "string"},
            **{str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)},
        },
    },
    "a schema that is itself": {"$ref": "#"},
    "a schema elsewhere": {"$ref": "http://127.0.0.1:9/schema.json"},
    "a schema of patterns": {
        "type": "object",
        "properties": {str(n): {"type": "string", "pattern": "^(a|b){1,500}$"} for n in range(3000)},
    },
    "a schema of long numbers": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
}


def refusal(client: openai.OpenAI, change: dict[str, Any]) -> openai.BadRequestError | None:
    try:
        client.chat.completions.create(model="any", messages=QUESTION, max_tokens=4, **change)
    except openai.BadRequestError as refused:
        return refused
    return None


@pytest.mark.parametrize("name", HOSTILE)
def test_constraints_made_to_explode(real: openai.OpenAI, name: str) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "hostile", "schema": HOSTILE[name]}}
    free = "structured_outputs" in HOSTILE[name]
    began = time.monotonic()
    refused = refusal(real, {"extra_body": HOSTILE[name]} if free else {"response_format": schema})
    assert time.monotonic() - began < 30  # about a second on an idle machine
    if refused:
        assert refused.param
        assert 20 < len(refused.body["message"]) < 1000
    assert content(real.chat.completions.create(model="any", messages=QUESTION, max_tokens=4))


def test_a_deep_schema_is_no_trap(real: openai.OpenAI) -> None:
    depth = 20_000
    schema = '{"type":"object","properties":{"a":' * depth + "{}" + "}}" * depth
    body = (
        f'{{"messages":[],"response_format":{{"type":"json_schema","json_schema":{{"name":"x","schema":{schema}}}}}}}'
    )
    answer = requests.post(f"{real.base_url}chat/completions", body, headers=real.auth_headers, timeout=30)
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]["message"]


CANARY = "xylophone-kumquat-7351"


def test_a_real_model_that_keeps_nothing_leaves_no_word_of_it(
    computed: tuple[Backend, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, model = computed
    monkeypatch.setenv("ARKOR_HOME", str(backend.home))
    site = Site(backend, connect())
    made, key = site.deploy(model)
    site.owner.update_deployment(made.id, run_retention_mode="disabled")
    payload: dict[str, Any] = {"model": CANARY, "messages": [{"role": "user", "content": CANARY}], "max_tokens": 8}
    tool = {"type": "function", "function": {"name": CANARY, "description": CANARY}}
    choice = {"structured_outputs": {"choice": [CANARY]}}
    with openai.OpenAI(base_url=site.url(made.slug), api_key=key) as client:
        assert content(client.chat.completions.create(**payload))
        assert list(client.chat.completions.create(**payload, stream=True))
        assert content(client.chat.completions.create(**{**payload, "max_tokens": 99}, extra_body=choice)) == CANARY
        assert client.chat.completions.create(**{**payload, "max_tokens": 99}, tools=[tool], tool_choice="required")
        for change in (
            {"messages": [{"role": "user", "content": CANARY * 2000}]},
            {"extra_body": {"structured_outputs": {"regex": f"({CANARY}"}}},
            {"extra_body": {"structured_outputs": {"grammar": f"start: {CANARY}"}}},
            {"extra_body": {CANARY: CANARY}},
        ):
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(**{**payload, **change})
    files = [file for file in backend.home.rglob("*") if file.is_file()]
    assert {"serving.log", "test-backend.log", "arkor.db"} <= {file.name for file in files}
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []
