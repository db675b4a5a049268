"""dspy: the three kinds of models, and a signature."""

from __future__ import annotations

import dspy
from calls import API_KEY, BASE_URL, MESSAGES, MODEL, PROMPT, call, triage

TO = {"api_base": BASE_URL, "api_key": API_KEY, "cache": False, "num_retries": 0, "max_tokens": 60}


def text(answer: object) -> str:
    """Return the text of an answer, which some versions wrap."""
    return answer["text"] if isinstance(answer, dict) else str(answer)


@call("chat")
def _() -> str:
    return triage(text(dspy.LM(f"openai/{MODEL}", **TO)(messages=MESSAGES)[0]))


@call("text")
def _() -> str:
    return str(text(dspy.LM(f"openai/{MODEL}", model_type="text", **TO)(PROMPT)[0]))


@call("responses")
def _() -> str:
    return triage(text(dspy.LM(f"openai/{MODEL}", model_type="responses", **TO)(messages=MESSAGES)[0]))


@call("chat: logprobs")
def _() -> str:
    answer = dspy.LM(f"openai/{MODEL}", logprobs=True, **TO)(messages=MESSAGES)[0]
    return str(bool(answer["logprobs"]))


@call("a signature as JSON")
def _() -> str:
    lm = dspy.LM(f"openai/{MODEL}", **{**TO, "max_tokens": 200})
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        answer = dspy.Predict("ticket -> category: str, urgency: str")(ticket=MESSAGES[1]["content"])
    return f"{answer.category} {answer.urgency}"
