"""pydantic-ai: plain and structured output, tools, with chat completions and with responses."""

from __future__ import annotations

from typing import Literal

from calls import MODEL, SYSTEM, TICKET, call, triage
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel


class Ticket(BaseModel):
    """The kind of a ticket."""

    category: Literal["billing", "cancellation", "delivery", "feedback", "login", "repair"]
    urgency: Literal["normal", "high"]


for kind in (OpenAIChatModel, OpenAIResponsesModel):
    name = "chat" if kind is OpenAIChatModel else "responses"
    model = kind(MODEL)

    @call(f"{name}: text")
    def _(model: object = model) -> str:
        return triage(Agent(model, system_prompt=SYSTEM).run_sync(TICKET).output)

    for output in (ToolOutput, NativeOutput, PromptedOutput):

        @call(f"{name}: {output.__name__}")
        def _(model: object = model, output: object = output) -> str:
            agent = Agent(model, output_type=output(Ticket), system_prompt=SYSTEM)
            answer = agent.run_sync(TICKET).output
            assert isinstance(answer, Ticket)
            return answer.model_dump_json()

    @call(f"{name}: a tool that it may call")
    def _(model: object = model) -> str:
        agent = Agent(model, system_prompt=SYSTEM)

        @agent.tool_plain
        def get_balance(account: str) -> str:
            """The balance of an account."""
            return f"{account}: 12 euro"

        return agent.run_sync(TICKET).output

    @call(f"{name}: streamed")
    def _(model: object = model) -> str:
        return triage(Agent(model, system_prompt=SYSTEM).run_stream_sync(TICKET).get_output())
