"""instructor: a Pydantic model by a forced tool, by a JSON schema, by JSON, and by a response."""

from __future__ import annotations

from typing import Literal

import instructor
import openai
from calls import MESSAGES, MODEL, call
from pydantic import BaseModel


class Ticket(BaseModel):
    """The kind of a ticket."""

    category: Literal["billing", "cancellation", "delivery", "feedback", "login", "repair"]
    urgency: Literal["normal", "high"]


for mode in ("TOOLS", "JSON_SCHEMA", "JSON", "RESPONSES_TOOLS"):

    @call(mode.lower())
    def _(mode: str = mode) -> str:
        client = instructor.from_openai(openai.OpenAI(), mode=instructor.Mode[mode])
        ticket = client.create(model=MODEL, messages=MESSAGES, response_model=Ticket, max_retries=1)
        assert isinstance(ticket, Ticket)
        return ticket.model_dump_json()
