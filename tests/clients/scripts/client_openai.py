"""OpenAI's own package: chat, text completions and responses, whole and streamed."""

from __future__ import annotations

import json
from typing import Any

import openai
from calls import MESSAGES, MODEL, PROMPT, SYSTEM, TICKET, call, triage

client = openai.OpenAI()
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_balance",
        "description": "The balance of an account.",
        "parameters": {"type": "object", "properties": {"account": {"type": "string", "maxLength": 20}}},
    },
}
FLAT: Any = {"type": "function", **TOOL["function"], "strict": False}
SCHEMA: Any = {
    "type": "object",
    "properties": {"category": {"type": "string", "maxLength": 20}, "urgency": {"enum": ["normal", "high"]}},
    "required": ["category", "urgency"],
    "additionalProperties": False,
}


@call("chat")
def _() -> str:
    return triage(client.chat.completions.create(model=MODEL, messages=MESSAGES).choices[0].message.content)


@call("chat, streamed, with logprobs")
def _() -> str:
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, logprobs=True, top_logprobs=2)
    chunks = [chunk.choices[0] for chunk in stream]
    tokens = [token.token for one in chunks if one.logprobs for token in one.logprobs.content]
    text = "".join(one.delta.content or "" for one in chunks)
    assert "".join(tokens) == text
    return triage(text)


@call("chat, n=2, penalties, bias, 16 stop strings")
def _() -> str:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        n=2,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={"100": -100},
        stop=[f"<{number}>" for number in range(16)],
        reasoning_effort="low",
    )
    assert len(answer.choices) == 2
    return answer.metadata["notes"]


@call("chat, a tool result, then auto")
def _() -> str:
    first = client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[TOOL], tool_choice="required")
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12 euro"}
    second = client.chat.completions.create(model=MODEL, messages=[*MESSAGES, message, result], tools=[TOOL])
    return second.choices[0].message.content


@call("completions: echo and logprobs")
def _() -> str:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=30, echo=True, logprobs=1).choices[0]
    assert len(answer.logprobs.tokens) == len(answer.logprobs.token_logprobs) == len(answer.logprobs.text_offset)
    return triage(answer.text.removeprefix(PROMPT))


@call("completions: several prompts, streamed")
def _() -> str:
    texts = ["", ""]
    for chunk in client.completions.create(model=MODEL, prompt=[PROMPT, "Once"], max_tokens=30, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts[1]
    return triage(texts[0])


@call("responses")
def _() -> str:
    return triage(client.responses.create(model=MODEL, instructions=SYSTEM, input=TICKET).output_text)


@call("responses, streamed")
def _() -> str:
    with client.responses.stream(model=MODEL, instructions=SYSTEM, input=TICKET) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    return triage(final.output_text)


@call("responses: a call and its result")
def _() -> str:
    first = client.responses.create(model=MODEL, input=TICKET, tools=[FLAT], tool_choice="required")
    called = first.output[0]
    result: Any = {"type": "function_call_output", "call_id": called.call_id, "output": "12 euro"}
    items: Any = [{"role": "user", "content": TICKET}, *first.output, result]
    return client.responses.create(model=MODEL, input=items, tools=[FLAT]).output_text


@call("responses: text.format")
def _() -> str:
    form: Any = {"type": "json_schema", "name": "ticket", "schema": SCHEMA, "strict": True}
    answer = client.responses.create(model=MODEL, instructions=SYSTEM, input=TICKET, text={"format": form})
    assert json.loads(answer.output_text)["urgency"] in ("normal", "high")
    return triage(answer.output_text)


@call("an unknown path")
def _() -> str:
    sentence = ""
    try:
        client.embeddings.create(model=MODEL, input="a")
    except openai.NotFoundError as error:
        sentence = str(error)
    assert "/v1/responses" in sentence, sentence
    return sentence
