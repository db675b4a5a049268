"""LlamaIndex: OpenAILike, whose default is text completions."""

from __future__ import annotations

from calls import API_KEY, BASE_URL, MESSAGES, MODEL, PROMPT, call, triage
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

TO = {
    "model": MODEL,
    "api_base": BASE_URL,
    "api_key": API_KEY,
    "max_retries": 0,
    "context_window": 2048,
    "temperature": 0,
}
MESSAGES_ = [ChatMessage(role=one["role"], content=one["content"]) for one in MESSAGES]


def get_balance(account: str) -> str:
    """The balance of an account."""
    return f"{account}: 12 euro"


@call("default: complete")
def _() -> str:
    return triage(OpenAILike(**TO, max_tokens=30).complete(PROMPT).text)


@call("default: stream_complete")
def _() -> str:
    return triage("".join(part.delta for part in OpenAILike(**TO, max_tokens=30).stream_complete(PROMPT)))


@call("default: chat")
def _() -> str:
    return str(OpenAILike(**TO, max_tokens=30).chat(MESSAGES_))


@call("chat model: chat")
def _() -> str:
    return triage(OpenAILike(**TO, is_chat_model=True).chat(MESSAGES_).message.content)


@call("chat model: stream_chat")
def _() -> str:
    parts = OpenAILike(**TO, is_chat_model=True).stream_chat(MESSAGES_)
    return triage("".join(part.delta for part in parts))


@call("chat model: tools")
def _() -> str:
    llm = OpenAILike(**TO, is_chat_model=True, is_function_calling_model=True)
    tool = FunctionTool.from_defaults(get_balance)
    answer = llm.chat_with_tools([tool], "Look up the balance of A-1.", tool_required=True)
    [called] = llm.get_tool_calls_from_response(answer)
    result = ChatMessage(role="tool", content="12 euro", additional_kwargs={"tool_call_id": called.tool_id})
    history = [ChatMessage(role="user", content="Look up the balance of A-1."), answer.message, result]
    return str(llm.chat_with_tools([tool], chat_history=history).message.content)
