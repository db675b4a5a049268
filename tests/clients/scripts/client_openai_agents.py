"""openai-agents: its default (responses), chat completions, tools, structured output, streams."""

from __future__ import annotations

import asyncio

from agents import Agent, ModelSettings, Runner, RunResult, function_tool, set_default_openai_api, set_tracing_disabled
from calls import MODEL, SYSTEM, TICKET, call, triage
from pydantic import BaseModel

set_tracing_disabled(True)


class Ticket(BaseModel):
    """The kind of a ticket."""

    category: str
    urgency: str


@function_tool
def get_balance(account: str) -> str:
    """The balance of an account."""
    return f"{account}: 12 euro"


LOOP = asyncio.new_event_loop()  # one for all calls: the client of the package belongs to its first loop


def run(agent: Agent) -> RunResult:
    """Run an agent on the ticket."""
    return LOOP.run_until_complete(Runner.run(agent, TICKET))


for api in ("responses", "chat_completions"):
    set_default_openai_api(api)

    @call(f"{api}: text")
    def _() -> str:
        return triage(run(Agent("a", instructions=SYSTEM, model=MODEL)).final_output)

    @call(f"{api}: streamed")
    def _() -> str:
        async def stream() -> str:
            result = Runner.run_streamed(Agent("a", instructions=SYSTEM, model=MODEL), TICKET)
            async for _event in result.stream_events():
                pass
            return result.final_output

        return triage(LOOP.run_until_complete(stream()))

    @call(f"{api}: output_type")
    def _() -> str:
        return run(Agent("a", instructions=SYSTEM, model=MODEL, output_type=Ticket)).final_output.model_dump_json()

    @call(f"{api}: required, then auto")
    def _() -> str:
        settings = ModelSettings(tool_choice="required")
        result = run(Agent("a", instructions=SYSTEM, model=MODEL, tools=[get_balance], model_settings=settings))
        kinds = [item.type for item in result.new_items]
        assert "tool_call_output_item" in kinds, kinds
        return result.final_output
