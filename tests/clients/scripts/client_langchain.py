"""LangChain: ChatOpenAI with chat completions and with responses, OpenAI with text completions."""

from __future__ import annotations

from calls import MESSAGES, MODEL, PROMPT, call, triage
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel


class Ticket(BaseModel):
    """The kind of a ticket."""

    category: str
    urgency: str


@tool
def get_balance(account: str) -> str:
    """The balance of an account."""
    return f"{account}: 12 euro"


for responses in (False, True):
    kind = "responses" if responses else "chat"
    chat = ChatOpenAI(model=MODEL, use_responses_api=responses, max_retries=0, timeout=120)

    @call(f"{kind}: invoke")
    def _(chat: ChatOpenAI = chat) -> str:
        return triage(chat.invoke(MESSAGES).text)

    @call(f"{kind}: stream")
    def _(chat: ChatOpenAI = chat) -> str:
        return triage("".join(chunk.text for chunk in chat.stream(MESSAGES)))

    @call(f"{kind}: with_structured_output")
    def _(chat: ChatOpenAI = chat) -> str:
        return chat.with_structured_output(Ticket).invoke(MESSAGES).category

    @call(f"{kind}: bind_tools, then the result")
    def _(chat: ChatOpenAI = chat) -> str:
        forced = chat.bind_tools([get_balance], tool_choice="required")
        question = HumanMessage("Look up the balance of A-1.")
        answer = forced.invoke([question])
        called = answer.tool_calls[0]
        result = ToolMessage(get_balance.invoke(called["args"]), tool_call_id=called["id"])
        return chat.bind_tools([get_balance]).invoke([question, answer, result]).text


@call("chat: logprobs")
def _() -> str:
    chat = ChatOpenAI(model=MODEL, logprobs=True, top_logprobs=2, max_retries=0)
    content = chat.invoke(MESSAGES).response_metadata["logprobs"]["content"]
    return triage("".join(token["token"] for token in content))


@call("text: invoke")
def _() -> str:
    return triage(OpenAI(model=MODEL, max_retries=0, max_tokens=30, temperature=0).invoke(PROMPT))


@call("text: stream")
def _() -> str:
    return triage("".join(OpenAI(model=MODEL, max_retries=0, max_tokens=30, temperature=0).stream(PROMPT)))
