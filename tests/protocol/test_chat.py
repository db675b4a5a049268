from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkor.errors import InvalidConfig
from arkor.protocol.chat import Adapter, InferenceRequest, message_text
from arkor.protocol.codec import from_wire, to_wire

HELLO = [{"role": "user", "content": "Hello"}]
FINAL = Adapter("final", "job-1")
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def request(**fields: Any) -> InferenceRequest:
    return InferenceRequest(**{"messages": HELLO, "adapter": FINAL, **fields})


GOOD: list[dict[str, Any]] = [
    {},
    {"adapter": None, "base_model": "smollm2-135m-instruct"},
    {"adapter": Adapter("checkpoint", "job-1", 0), "base_model": "smollm2-135m-instruct"},
    {"adapter": {"kind": "checkpoint", "jobId": "job-1", "step": 20}},
    {"temperature": 0}, {"temperature": 2.5}, {"top_p": 1}, {"top_p": 0.01}, {"max_tokens": 1}, {"stream": False},
    {"messages": ({"role": "system", "content": "Be brief."}, {"role": "user", "content": ""})},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]},
    {"messages": [{"role": "tool", "content": "4", "tool_call_id": "1"}]},
    {"stop": "\n"}, {"stop": ["a", "b", "c", "d"]}, {"stop": []}, {"seed": 0}, {"seed": -(2**63)},
    {"parallel_tool_calls": False},
]  # fmt: skip


@pytest.mark.parametrize("fields", GOOD)
def test_a_valid_request_passes(fields: dict[str, Any]) -> None:
    request(**fields).check()


def said(content: Any) -> dict[str, Any]:
    return {"messages": [*HELLO, {"role": "user", "content": content}]}


BAD: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": []}),
    ("messages", {"messages": "Hello"}),
    ("messages", {"messages": {"role": "user"}}),
    ("messages[0]", {"messages": ["Hello"]}),
    ("messages[0].role", {"messages": [{"content": "Hello"}]}),
    ("messages[0].role", {"messages": [{"role": "bot", "content": "Hello"}]}),
    ("messages[0].role", {"messages": [{"role": ["user"], "content": "Hello"}]}),
    ("messages[0].content", {"messages": [{"role": "assistant"}]}),
    ("messages[0].tool_calls", {"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]}),
    ("messages[0].tool_calls", {"messages": [{"role": "assistant", "tool_calls": "add"}]}),
    ("messages[0].tool_calls[0]", {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}),
    (
        "messages[0].tool_calls[0]",
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 1, "arguments": "{}"}}]}]},
    ),
    (
        "messages[0].tool_calls[0]",
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": {}}}]}]},
    ),
    ("stop", {"stop": ""}),
    ("stop", {"stop": [str(number) for number in range(17)]}),
    ("stop", {"stop": [1]}),
    ("stop", {"stop": 7}),
    ("stop", {"stop": {"a": 1}}),
    ("stop", {"stop": "x" * 1000}),
    ("stop", {"stop": ["\ud800"]}),
    ("seed", {"seed": 1.5}),
    ("seed", {"seed": True}),
    ("seed", {"seed": 2**63}),
    ("parallel_tool_calls", {"parallel_tool_calls": "no"}),
    ("messages[1].content", said(None)),
    ("messages[1].content", said(3)),
    ("messages[1].content", said("\ud800")),
    ("messages[1].content[0]", said(["a"])),
    ("messages[1].content[0]", said([{"type": "text", "text": None}])),
    ("messages[1].content[1]", said([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": "x"}])),
    ("messages[1].content[0].text", said([{"type": "text", "text": "\udfff"}])),
    ("adapter", {"adapter": None}),
    ("adapter", {"adapter": {"kind": "final"}}),
    ("adapter", {"adapter": "job-1"}),
    ("adapter.kind", {"adapter": Adapter("last", "job-1")}),
    ("adapter.kind", {"adapter": {"kind": [], "jobId": "job-1"}}),
    ("adapter.job_id", {"adapter": Adapter("final", "")}),
    ("adapter.job_id", {"adapter": {"kind": "final", "jobId": 7}}),
    ("adapter.step", {"adapter": Adapter("final", "job-1", 3)}),
    ("adapter.step", {"adapter": Adapter("checkpoint", "job-1")}),
    ("adapter.step", {"adapter": Adapter("checkpoint", "job-1", -1)}),
    ("adapter.step", {"adapter": {"kind": "checkpoint", "jobId": "job-1", "step": "../../etc"}}),
    ("adapter.step", {"adapter": {"kind": "checkpoint", "jobId": "job-1", "step": True}}),
    ("base_model", {"base_model": " "}),
    ("base_model", {"base_model": "a\0b"}),
    ("base_model", {"adapter": None, "base_model": 5}),
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": float("nan")}),
    ("temperature", {"temperature": 10**400}),
    ("temperature", {"temperature": "hot"}),
    ("temperature", {"temperature": True}),
    ("top_p", {"top_p": 0}),
    ("top_p", {"top_p": 1.1}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": -5}),
    ("max_tokens", {"max_tokens": 1.5}),
    ("max_tokens", {"max_tokens": 2**40}),
    ("stream", {"stream": "no"}),
]


@pytest.mark.parametrize(("field", "fields"), BAD)
def test_the_error_names_the_wrong_field(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        request(**fields).check()
    assert caught.value.field == field
    assert caught.value.problem


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["messages", "adapter", "baseModel", "temperature", "topP", "maxTokens", "stream"])


@given(st.dictionaries(NAMES, JSON))
def test_any_input_passes_or_is_invalid_config(body: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidConfig):
        from_wire(InferenceRequest, {"messages": HELLO, **body}).check()


def test_a_request_survives_the_wire() -> None:
    payload = request(adapter=Adapter("checkpoint", "job-1", 20), top_p=0.5, max_tokens=9)
    assert from_wire(InferenceRequest, to_wire(payload)) == payload


def test_the_text_of_a_message_joins_its_parts() -> None:
    assert message_text({"content": "a"}) == "a"
    assert message_text({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}) == "ab"
    assert message_text({"content": None}) == message_text({}) == ""
