"""inspect-ai: a task over held-out tickets, with chat completions and with responses; logprobs."""

from __future__ import annotations

import json
import os
from pathlib import Path

from calls import API_KEY, BASE_URL, MODEL, call
from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig, get_model
from inspect_ai.scorer import exact
from inspect_ai.solver import generate

os.environ |= {"ARKOR_BASE_URL": BASE_URL, "ARKOR_API_KEY": API_KEY, "INSPECT_DISPLAY": "none"}
ROWS = [json.loads(row)["messages"] for row in Path(os.environ["HELD_OUT"]).read_text("utf-8").splitlines()[:8]]
TASK = Task(
    dataset=MemoryDataset(
        [
            Sample(
                [ChatMessageSystem(content=system["content"]), ChatMessageUser(content=user["content"])],
                target=answer["content"],
            )
            for system, user, answer in ROWS
        ]
    ),
    solver=generate(),
    scorer=exact(),
)


def accuracy(model: str, **options: object) -> str:
    """Evaluate, and return the share of right answers, which must be most."""
    [log] = evaluate(TASK, model=model, log_dir="logs", **options)
    assert log.status == "success", log.error
    value = log.results.scores[0].metrics["accuracy"].value
    assert value >= 0.5, value
    return f"accuracy {value}"


@call("openai-api: eval")
def _() -> str:
    return accuracy(f"openai-api/arkor/{MODEL}")


@call("openai: eval with responses")
def _() -> str:
    return accuracy(f"openai/{MODEL}", model_args={"responses_api": True})


@call("openai-api: logprobs, n, penalties")
def _() -> str:
    import asyncio  # noqa: PLC0415

    config = GenerateConfig(logprobs=True, top_logprobs=2, num_choices=2, presence_penalty=0.1, seed=1, max_tokens=30)
    model = get_model(f"openai-api/arkor/{MODEL}", config=config)
    output = asyncio.run(model.generate(TASK.dataset[0].input))
    assert len(output.choices) == 2
    assert output.choices[0].logprobs
    return output.completion
