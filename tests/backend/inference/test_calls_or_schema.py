"""Answers that are either a tool call or JSON of a schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arkor.backend.inference.constraints import WHITESPACE
from arkor.backend.inference.generator import ModelGenerator
from arkor.backend.inference.messages import CompletionRequest, Constraint, Delta, Done, Failed, ToolChoice
from tests.backend.inference.test_generator import run
from tests.backend.inference.test_tool_calls import BOTH, QUESTION, TEMPLATES
from tests.fakes.tiny_model import make_base

pytestmark = pytest.mark.slow  # torch alone takes seconds to import


def templated_base(folder: Path, name: str) -> str:
    base = make_base(folder / "base", context=2048)
    (folder / "base" / "chat_template.jinja").write_text(TEMPLATES[name])
    return base


VERDICT = {
    "type": "object",
    "properties": {"label": {"enum": ["<tool>", "bug"]}, "sure": {"type": "boolean"}},
    "required": ["label", "sure"],
    "additionalProperties": False,
}


def test_an_answer_is_a_call_or_fits_the_schema(tmp_path: Path) -> None:
    """As agents with an output type send it: tools that may be called, and a schema for the answer."""
    base = templated_base(tmp_path, "tags")
    generator = ModelGenerator(tmp_path)
    choice = ToolChoice(BOTH, forced=False, name=None, parallel=False)
    answer = Constraint("json", VERDICT, "response_format.json_schema.schema", WHITESPACE)
    for number in range(16):
        generator.submit(
            CompletionRequest(
                str(number), base, None, QUESTION, 20.0, max_tokens=300, tool_choice=choice, constraint=answer
            )
        )
    kinds = set()
    for replies in run(generator).values():
        done = replies[-1]
        assert isinstance(done, Done), done
        text = "".join(reply.text for reply in replies if isinstance(reply, Delta))
        if done.finish_reason == "stop":
            assert json.loads(text).keys() == {"label", "sure"}
        elif done.finish_reason == "tool_calls":
            assert text.strip() == ""
        kinds.add(done.finish_reason)
    assert {"stop", "tool_calls"} <= kinds


def test_a_call_that_is_bare_json_cannot_be_combined(tmp_path: Path) -> None:
    base = templated_base(tmp_path, "bare")
    generator = ModelGenerator(tmp_path)
    choice = ToolChoice(BOTH, forced=False, name=None, parallel=False)
    for schema, field in ((VERDICT, "response_format"), ({"type": "strange"}, "response_format")):
        answer = Constraint("json", schema, "response_format", WHITESPACE)
        generator.submit(CompletionRequest("q", base, None, QUESTION, tool_choice=choice, constraint=answer))
        [failed] = run(generator)["q"]
        assert isinstance(failed, Failed)
        assert (failed.status, failed.field) == (400, field)
