"""The types of the public API, checked by mypy and never run.

A line that has to be refused carries a `type: ignore` for the very reason; strict mypy complains of one that is not.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from typing_extensions import assert_type

from arkor import (
    ChatMessage,
    ChatResponse,
    CheckpointContext,
    CloudApiClient,
    FileDataset,
    InferenceRequest,
    LoraConfig,
    ResponseFormat,
    StartedJob,
    StructuredOutputs,
    Tool,
    ToolCall,
    Trainer,
    TrainerCallbacks,
    TrainingLogContext,
    TrainingResult,
    create_trainer,
    run_trainer,
)
from arkor.callbacks import EarlyStopping, Evaluate


class Answer:
    label: str


ROWS = {"type": "file", "path": "rows.jsonl"}


def on_log(log: TrainingLogContext) -> None:
    assert_type(log.loss, float | None)
    assert_type(log.cancel(), bool)


call: ToolCall = {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}}
messages: list[ChatMessage] = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "tool_calls": [call]},
    {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "found"}]},
]
tools: list[Tool] = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
named: ResponseFormat = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}}
choice: StructuredOutputs = {"choice": ["yes", "no"]}
wrong_role: ChatMessage = {"role": "robot", "content": "Hello"}  # type: ignore[typeddict-item]
wrong_key: ChatMessage = {"role": "user", "contents": "Hello"}  # type: ignore[typeddict-unknown-key]


def on_typed(checkpoint: CheckpointContext) -> None:
    assert_type(checkpoint.infer(messages, tools=tools, response_format=named), ChatResponse)
    checkpoint.infer(messages, structured_outputs=choice)
    assert_type(trainer.chat(messages, tools=tools, response_format=named, structured_outputs=choice), ChatResponse)
    request = InferenceRequest(
        messages, checkpoint.adapter, tools=tools, response_format=named, structured_outputs=choice
    )
    assert_type(CloudApiClient("https://backend.example").chat(request), ChatResponse)
    trainer.chat(messages, max_token=8)  # type: ignore[call-arg]
    trainer.chat(messages, temperature="0")  # type: ignore[arg-type]
    checkpoint.infer(messages, tools="find")  # type: ignore[arg-type]
    checkpoint.infer([1, 2])  # type: ignore[arg-type]


def on_plain(
    checkpoint: CheckpointContext, role: str, history: list[dict[str, Any]], texts: list[dict[str, str]]
) -> None:
    """Dicts without these types are accepted everywhere, as literals and as variables."""
    answer = checkpoint.infer(history, tools=history, response_format=history[0], structured_outputs=history[0])
    history.append(answer.message)
    checkpoint.infer(texts)
    checkpoint.infer([*texts, {"role": role, "content": "Hello"}], stop=["x"])
    checkpoint.infer([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}, *history])
    trainer.chat(history, adapter="base", tools=history, response_format={"type": "json_object"})
    trainer.chat([{"role": role, "content": "Hello"}], structured_outputs={"choice": ["yes", "no"]})
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    found = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    checkpoint.infer("Hello", response_format=schema, tools=[found], tool_choice=found)
    checkpoint.infer("Hello", tools=[{"type": "function", "function": {"name": "find"}}], response_format=Answer)
    InferenceRequest(history, base_model="m", tools=history, response_format=schema)
    InferenceRequest([{"role": role, "content": "Hello"}], base_model="m", structured_outputs={"regex": "a+"})


def on_checkpoint(checkpoint: CheckpointContext) -> str:
    assert_type(checkpoint.infer("Hello", max_tokens=8), ChatResponse)
    checkpoint.infer("Hello", max_token=8)  # type: ignore[call-arg]
    return checkpoint.infer([{"role": "user", "content": "Hello"}], temperature=0).text()


callbacks = [TrainerCallbacks(on_log=on_log), EarlyStopping(patience=3), Evaluate(["Hello"]), {"on_log": on_log}]
trainer = Trainer(
    "a run",
    "a model",
    FileDataset(Path("rows.jsonl")),
    lora=LoraConfig(r=16, alpha=16.0),
    max_steps=60,
    callbacks=callbacks,
    abort_signal=threading.Event(),
    project_dir=Path(),
)
assert_type(trainer.start(), StartedJob)
assert_type(trainer.job_id, str | None)
assert_type(trainer.wait(timeout=1.5), TrainingResult)
assert_type(trainer.wait().raise_for_status().history.loss, list[float | None])
assert_type(trainer.chat("Hello", adapter=20).text(), str)
assert_type(Trainer.attach("id", since=trainer.last_event_id), Trainer)
assert_type(create_trainer("a run", "a model", ROWS, max_steps=3), Trainer)
assert_type(run_trainer(Path("train.py")), TrainingResult)

Trainer("a run", "a model")  # type: ignore[call-arg]
Trainer("a run", "a model", ROWS, max_step=3)  # type: ignore[call-arg]
Trainer("a run", "a model", ROWS, max_steps="3")  # type: ignore[arg-type]
Trainer("a run", "a model", ROWS, callback_errors="ignore")  # type: ignore[arg-type]
Trainer.attach("id", sinc="now")  # type: ignore[call-arg]
create_trainer("a run", "a model", ROWS, maxSteps=3)  # type: ignore[call-arg]
trainer.chat("Hello", adapter="finall")  # type: ignore[arg-type]
TrainerCallbacks(on_logs=on_log)  # type: ignore[call-arg]
TrainerCallbacks(on_log=on_checkpoint)  # type: ignore[arg-type]
LoraConfig(16)  # type: ignore[call-arg]
FileDataset(3)  # type: ignore[arg-type]
