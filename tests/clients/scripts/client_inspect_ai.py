"""inspect-ai: a task at a deployment and with the adapter folder; log-probabilities and choices."""

from __future__ import annotations

import asyncio
import os

from calls import API_KEY, BASE_URL, MESSAGES, MODEL, call, triage
from harness import run_commands
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, GenerateConfig, get_model

run_commands("inspect_ai")
os.environ |= {"ARKOR_BASE_URL": BASE_URL, "ARKOR_API_KEY": API_KEY}


@call("logprobs, choices, penalties")
def _() -> str:
    config = GenerateConfig(logprobs=True, top_logprobs=2, num_choices=2, presence_penalty=0.1, seed=1, max_tokens=30)
    model = get_model(f"openai-api/arkor/{MODEL}", config=config)
    system, user = (message["content"] for message in MESSAGES)
    output = asyncio.run(model.generate([ChatMessageSystem(content=system), ChatMessageUser(content=user)]))
    assert len(output.choices) == 2
    assert output.choices[0].logprobs.content[0].top_logprobs
    return triage(output.completion)
