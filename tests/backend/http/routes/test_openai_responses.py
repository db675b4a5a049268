"""The Responses API of a deployment, called without a client library."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from arkor.backend.http.recent_items import RecentItems
from tests.backend.caller import owner
from tests.backend.http.routes.test_openai_chat import PublicDeployment, deploy, kept, refused
from tests.conftest import Backend

pytestmark = pytest.mark.slow  # starts processes of its own

TOOL = {
    "type": "function",
    "name": "look_up",
    "parameters": {"type": "object", "properties": {"city": {"const": "Oslo"}, "days": {"const": 2}}},
}
CALL = {"type": "function_call", "call_id": "call_1", "name": "look_up", "arguments": '{"city": "Oslo"}'}


@pytest.fixture(scope="module")
def deployment(backend_env: Backend) -> PublicDeployment:
    return deploy(owner(backend_env))


def post(deployment: PublicDeployment, **body: Any) -> requests.Response:
    return deployment.call("POST", "/responses", json={"model": "any", "input": "one two", **body})


def respond(deployment: PublicDeployment, **body: Any) -> Any:
    answer = post(deployment, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(answer: requests.Response) -> list[Any]:
    """Return the events of a stream; each has its name and its number."""
    assert answer.status_code == 200, answer.text
    *frames, rest = answer.content.decode().split("\n\n")
    assert rest == ""
    found = []
    for number, frame in enumerate(frames):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        found.append(event)
    return found


def text_of(response: Any) -> str:
    (message,) = response["output"]
    (part,) = message["content"]
    assert (message["type"], message["role"], part["type"]) == ("message", "assistant", "output_text")
    return str(part["text"])


def test_a_whole_response(deployment: PublicDeployment) -> None:
    response = respond(deployment, metadata={"a": "b"}, store=True)
    assert response["id"].startswith("resp_")
    assert text_of(response) == "scripted: one two"
    expected = {
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": deployment.slug,
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "metadata": {"a": "b"},
    }
    assert {name: response[name] for name in expected} == expected
    assert response["usage"] == {
        "input_tokens": 2,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 5,
    }


def test_a_stream_has_openais_events(deployment: PublicDeployment) -> None:
    found = events(post(deployment, stream=True))
    assert [event["type"] for event in found] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event["delta"] for event in found if event["type"].endswith("text.delta")) == "scripted: one two"
    item_ids = {event["item_id"] for event in found if "item_id" in event}
    final = found[-1]["response"]
    assert item_ids == {final["output"][0]["id"]}
    assert found[0]["response"] == {**final, "status": "in_progress", "output": [], "usage": None}
    assert text_of(final) == "scripted: one two"
    assert final["usage"]["total_tokens"] == 5


def test_a_call(deployment: PublicDeployment) -> None:
    options: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "function", "name": "look_up"}}
    response = respond(deployment, **options)
    (item,) = response["output"]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "look_up", "completed")
    assert json.loads(item["arguments"]) == {"city": "Oslo", "days": 2}
    assert response["tools"][0]["name"] == "look_up"
    found = events(post(deployment, stream=True, **options))
    assert [event["type"] for event in found if not event["type"].endswith(".delta")] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = "".join(event["delta"] for event in found if event["type"].endswith("arguments.delta"))
    assert deltas == found[-1]["response"]["output"][0]["arguments"] == item["arguments"]
    assert found[2]["item"]["arguments"] == ""


def test_items_of_earlier_turns(deployment: PublicDeployment) -> None:
    """Messages in both forms, calls with results, and what reasoning models add."""
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "b", "annotations": []}],
        },
        CALL,
        {**CALL, "call_id": "call_2"},
        {"type": "function_call_output", "call_id": "call_1", "output": "c d"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "e"}]},
        {"role": "user", "content": "x y"},
    ]
    response = respond(deployment, input=items, instructions="Help.")
    assert text_of(response) == "scripted: x y"
    assert response["usage"]["input_tokens"] == 3 + 1 + 1 + 2 + 1 + 2


def test_a_reference_to_an_item(deployment: PublicDeployment) -> None:
    options: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required"}
    (item,) = respond(deployment, **options)["output"]
    result = {"type": "function_call_output", "call_id": item["call_id"], "output": "c"}
    question = {"role": "user", "content": "x"}
    reference = {"type": "item_reference", "id": item["id"]}
    assert text_of(respond(deployment, input=[question, reference, result])) == "scripted: x"
    (item,) = respond(deployment, **options, store=False)["output"]
    error = refused(post(deployment, input=[question, {**reference, "id": item["id"]}, result]), 400)
    assert error["param"] == "input[1].id"
    assert "store: false" in error["message"]


def test_items_of_another_deployment_are_not_found(backend_env: Backend, deployment: PublicDeployment) -> None:
    (item,) = respond(deployment)["output"]
    other = deploy(owner(backend_env))
    refused(post(other, input=[{"type": "item_reference", "id": item["id"]}]), 400)


def test_a_deployment_that_stores_nothing_keeps_no_items(backend_env: Backend) -> None:
    deployment = deploy(owner(backend_env), runRetentionMode="disabled")
    (item,) = respond(deployment)["output"]
    refused(post(deployment, input=[{"type": "item_reference", "id": item["id"]}]), 400)


def test_old_items_are_dropped() -> None:
    recent = RecentItems(max_characters=100)
    recent.add("d", [{"id": "a", "text": "x" * 40}])
    recent.add("d", [{"id": "b", "text": "x" * 10}])
    assert recent.find("d", "a") == {"id": "a", "text": "x" * 40}
    recent.add("d", [{"id": "c", "text": "x" * 10}])
    assert recent.find("d", "b") is None
    assert recent.find("d", "a")
    assert recent.find("other", "a") is None


def test_a_response_that_is_cut_off(deployment: PublicDeployment) -> None:
    response = respond(deployment, max_output_tokens=2)
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["output"][0]["status"] == "incomplete"
    assert events(post(deployment, max_output_tokens=2, stream=True))[-1]["type"] == "response.incomplete"


def test_structured_output(deployment: PublicDeployment) -> None:
    schema = {"type": "object", "properties": {"label": {"enum": ["bug"]}}, "required": ["label"]}
    form = {"type": "json_schema", "name": "ticket", "schema": schema, "strict": None}
    response = respond(deployment, text={"format": form, "verbosity": "low"})
    assert json.loads(text_of(response)) == {"label": "bug"}
    assert response["text"] == {"format": form, "verbosity": "low"}
    assert json.loads(text_of(respond(deployment, text={"format": {"type": "json_object"}}))) == {}


def test_logprobs(deployment: PublicDeployment) -> None:
    included = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    part = respond(deployment, **included)["output"][0]["content"][0]
    assert [token["token"] for token in part["logprobs"]] == ["scripted: ", "one ", "two"]
    assert part["logprobs"][0]["top_logprobs"][0]["token"] == "scripted: "
    found = events(post(deployment, stream=True, **included))
    streamed = [token for event in found if event["type"].endswith("text.delta") for token in event["logprobs"]]
    assert streamed == part["logprobs"]
    assert "logprobs" in respond(deployment)["output"][0]["content"][0]


def test_a_note_is_in_the_metadata(deployment: PublicDeployment) -> None:
    response = respond(deployment, reasoning={"effort": "low"}, metadata={"a": "b"})
    assert response["metadata"] == {
        "a": "b",
        "notes": "reasoning_effort has no effect: the scripted engine ignores it.",
    }


def test_failures(backend_env: Backend) -> None:
    caller = owner(backend_env)
    for stream in (True, False):
        refused(post(deploy(caller, model="scripted/fail"), stream=stream), 503)
    broken = deploy(caller, model="scripted/break")
    *_, error, last = events(post(broken, input="one two three", stream=True))
    assert (error["type"], error["code"]) == ("error", "scripted")
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert "as it was asked to" in last["response"]["error"]["message"]
    (entry,) = kept(backend_env.home, broken)
    assert entry["answer"]["message"]["content"] == "scripted: one "


def test_responses_cannot_be_retrieved(deployment: PublicDeployment) -> None:
    response = respond(deployment)
    error = refused(deployment.call("GET", f"/responses/{response['id']}"), 404)
    assert "not stored" in error["message"]
    refused(deployment.call("DELETE", f"/responses/{response['id']}"), 405)
    refused(deployment.call("POST", f"/responses/{response['id']}/cancel"), 404)


@pytest.mark.parametrize(
    ("param", "change"),
    [
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("conversation", {"conversation": "conv_1"}),
        ("prompt", {"prompt": {"id": "pmpt_1"}}),
        ("background", {"background": True}),
        ("background", {"background": 0}),
        ("input", {"input": None}),
        ("input", {"input": []}),
        ("input", {"input": 5}),
        ("input[0]", {"input": ["a"]}),
        ("input[0].type", {"input": [{"type": "web_search_call"}]}),
        ("input[0].role", {"input": [{"role": "robot", "content": "a"}]}),
        ("input[1].content", {"input": [{"role": "user", "content": "a"}, {"role": "user"}]}),
        ("input[0].content[0]", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
        ("input[0].output", {"input": [{"type": "function_call_output", "call_id": "c", "output": 5}]}),
        ("input[0].tool_calls[0]", {"input": [{**CALL, "arguments": {}}]}),
        ("input[0].id", {"input": [{"type": "item_reference", "id": "msg_none"}]}),
        ("instructions", {"instructions": 5}),
        ("max_output_tokens", {"max_output_tokens": 0}),
        ("temperature", {"temperature": -1}),
        ("top_logprobs", {"top_logprobs": 50}),
        ("tools[0].type", {"tools": [{"type": "web_search"}]}),
        ("tools[0].name", {"tools": [{"type": "function", "name": "a b"}]}),
        ("tools[0].parameters.type", {"tools": [{**TOOL, "parameters": {"type": "array"}}]}),
        ("tool_choice", {"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}),
        ("tool_choice", {"tools": [TOOL], "tool_choice": {"type": "web_search"}}),
        ("text", {"text": "json"}),
        ("text.format.type", {"text": {"format": {"type": "xml"}}}),
        ("text.format.name", {"text": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}),
        ("reasoning.effort", {"reasoning": {"effort": "huge"}}),
        ("include", {"include": "all"}),
        ("include", {"include": [1]}),
        ("metadata", {"metadata": {"a": 1}}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("n", {"n": 2}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_wrong_is_named(deployment: PublicDeployment, param: str, change: dict[str, Any]) -> None:
    error = refused(post(deployment, **change), 400)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")


def test_allowed_tools(deployment: PublicDeployment) -> None:
    other = {**TOOL, "name": "other"}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]}
    (item,) = respond(deployment, tools=[TOOL, other], tool_choice=choice)["output"]
    assert item["name"] == "other"
