"""litellm: completion, text_completion and responses."""

from __future__ import annotations

from typing import Any

import litellm
from calls import API_KEY, BASE_URL, MESSAGES, MODEL, PROMPT, SYSTEM, TICKET, call, triage

TO: dict[str, Any] = {"api_base": BASE_URL, "api_key": API_KEY}


@call("completion")
def _() -> str:
    return triage(litellm.completion(f"openai/{MODEL}", messages=MESSAGES, **TO).choices[0].message.content)


@call("completion, streamed, logprobs")
def _() -> str:
    stream = litellm.completion(f"openai/{MODEL}", messages=MESSAGES, stream=True, logprobs=True, **TO)
    return triage("".join(chunk.choices[0].delta.content or "" for chunk in stream))


@call("text_completion")
def _() -> str:
    answer = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt=PROMPT, max_tokens=30, **TO)
    return triage(answer.choices[0].text)


@call("text_completion, streamed")
def _() -> str:
    model = f"text-completion-openai/{MODEL}"
    stream = litellm.text_completion(model=model, prompt=PROMPT, max_tokens=30, stream=True, **TO)
    return triage("".join(chunk.choices[0].text or "" for chunk in stream))


@call("responses")
def _() -> str:
    answer = litellm.responses(model=f"openai/{MODEL}", instructions=SYSTEM, input=TICKET, **TO)
    return triage(answer.output[0].content[0].text)


@call("responses, streamed")
def _() -> str:
    stream = litellm.responses(model=f"openai/{MODEL}", instructions=SYSTEM, input=TICKET, stream=True, **TO)
    return triage("".join(event.delta for event in stream if event.type == "response.output_text.delta"))
