"""Talking to a model: the messages, which weights answer, the request.

`messages`, `tools`, `tool_choice` and `response_format` are OpenAI's shapes, inner keys in snake_case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from arkor.wire import from_wire


@frozen
class Adapter:
    """Which weights of a run answer: `kind` is `"final"`, or `"checkpoint"` with its `step`."""

    kind: str
    job_id: str
    step: int | None = None


def _adapter(value: Any) -> Any:
    return from_wire(Adapter, value) if isinstance(value, Mapping) else value


@frozen
class InferenceRequest:
    """One chat completion from an adapter, or from `base_model` alone when `adapter` is None.

    `temperature` 0 is greedy; `max_tokens` counts the answer; None leaves a choice to the backend.
    """

    messages: Sequence[Mapping[str, Any]]
    adapter: Adapter | None = field(default=None, converter=_adapter)
    base_model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stream: bool = True
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: Any = None
    response_format: Mapping[str, Any] | None = None
    structured_outputs: Mapping[str, Any] | None = None
