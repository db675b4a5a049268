"""The request of a chat completion, in the form of OpenAI's API, and its validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from attrs import field, frozen

from arkor.errors import InvalidConfig
from arkor.formatting import quote
from arkor.protocol.chat_types import Constraint, Format, Messages, Tools
from arkor.protocol.codec import from_wire
from arkor.protocol.model_target import Adapter as Adapter  # noqa: PLC0414 - re-exported
from arkor.protocol.validation import Integer, encodable, is_encodable, is_finite, text

CHAT_ROLES = ("system", "user", "assistant", "tool")

#: The number of stop strings in a request, and the length of one in characters.
MAX_STOP_STRINGS, MAX_STOP_LENGTH = 16, 200

#: The number of answers to one request, of likely tokens for each token, and of biased tokens.
MAX_ANSWERS, MAX_TOP_LOGPROBS, MAX_BIASES = 4, 20, 1024

REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def _adapter(value: Any) -> Any:
    """Decode an adapter; keep anything else for `check()` to reject."""
    complete = isinstance(value, Mapping) and "kind" in value and "jobId" in value
    return from_wire(Adapter, value) if complete else value


@frozen
class InferenceRequest:
    """One chat completion, by an adapter or, without one, by `base_model`.

    `temperature` 0 or None (without `top_p`) is greedy, so that the answers of two checkpoints
    differ by their training only. `max_tokens` limits the answer; the backend chooses for None.
    `stop` is a string, or up to 16; the answer ends before the first of them. The same request
    with the same `seed` gives the same text. `parallel_tool_calls` False allows one call at most.

    `presence_penalty` and `frequency_penalty` (-2 to 2) make tokens that the answer has already
    less likely, once or each time; `logit_bias` changes the logits of tokens by id (-100 to 100).
    `n` is the number of answers, up to four. `logprobs` returns the log-probability of each token,
    `top_logprobs` (0 to 20) also those of the likeliest tokens at each position.
    `enable_thinking` and `reasoning_effort` have an effect on models whose chat template has a
    thinking mode; for others, the `metadata` of the response has a note.
    """

    messages: Messages
    adapter: Adapter | None = field(default=None, converter=_adapter)
    base_model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: str | Sequence[str] | None = None
    seed: int | None = None
    stream: bool = True
    tools: Tools | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: Format | type | None = None
    structured_outputs: Constraint | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[str, float] | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None

    def check(self) -> None:
        """Raise `InvalidConfig` for the first field of the wrong type or out of range."""
        if not _is_list(self.messages) or not self.messages:
            raise InvalidConfig("messages", "must be a list of at least one message")
        for index, message in enumerate(self.messages):
            _check_message(f"messages[{index}]", message)
        _check_weights(self.adapter, self.base_model)
        check_sampling(self)
        for name in ("stream", "parallel_tool_calls", "logprobs", "enable_thinking"):
            value = getattr(self, name)
            if not isinstance(value, bool) and not (name != "stream" and value is None):
                raise InvalidConfig(name, f"must be true or false, not {quote(value)}")
        if self.top_logprobs is not None:
            Integer(0, MAX_TOP_LOGPROBS)("top_logprobs", self.top_logprobs)
            if self.top_logprobs and not self.logprobs:
                raise InvalidConfig("top_logprobs", "requires logprobs: true")
        if self.reasoning_effort not in (None, *REASONING_EFFORTS):
            efforts = ", ".join(REASONING_EFFORTS)
            raise InvalidConfig("reasoning_effort", f"must be one of {efforts}, not {quote(self.reasoning_effort)}")


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return a checked `stop` as a tuple."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def message_text(message: Mapping[str, Any]) -> str:
    """Return the text of a checked message, with its parts joined."""
    content = message.get("content")
    return content if isinstance(content, str) else "".join(part["text"] for part in content or ())


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _check_message(name: str, message: Any) -> None:
    if not isinstance(message, Mapping):
        raise InvalidConfig(name, 'must be an object like {"role": "user", "content": "Hello"}')
    if message.get("role") not in CHAT_ROLES:
        raise InvalidConfig(f"{name}.role", f"must be one of {', '.join(CHAT_ROLES)}, not {quote(message.get('role'))}")
    if message.get("tool_calls") is not None:
        _check_tool_calls(f"{name}.tool_calls", message)
    elif message.get("content") is None:
        raise InvalidConfig(f"{name}.content", "is missing")
    _check_content(f"{name}.content", message.get("content") or "")


def _check_tool_calls(name: str, message: Mapping[str, Any]) -> None:
    calls = message["tool_calls"]
    if message["role"] != "assistant":
        raise InvalidConfig(name, "belong in messages of the assistant only")
    if not _is_list(calls) or not all(isinstance(call, Mapping) for call in calls):
        raise InvalidConfig(name, "must be a list of objects")
    for index, call in enumerate(calls):
        function = call.get("function")
        if not isinstance(function, Mapping) or not all(_is_text(function.get(k)) for k in ("name", "arguments")):
            shape = '{"id": …, "type": "function", "function": {"name": …, "arguments": "{…}"}}'
            raise InvalidConfig(f"{name}[{index}]", f"must be {shape}, the arguments as JSON in a string")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_encodable(value)


def _check_content(name: str, content: Any) -> None:
    if isinstance(content, str):
        encodable(name, content)
        return
    if not _is_list(content):
        raise InvalidConfig(name, f"must be a string or a list of text parts, not {type(content).__name__}")
    for index, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidConfig(
                f"{name}[{index}]", 'must be {"type": "text", "text": "…"}; other parts are not supported'
            )
        encodable(f"{name}[{index}].text", part["text"])


def _check_weights(adapter: Any, base_model: Any) -> None:
    if adapter is None and base_model is None:
        raise InvalidConfig("adapter", "is missing", "name the adapter of a run, or a base_model")
    if base_model is not None:
        text("base_model", base_model)
    if isinstance(adapter, Adapter):
        adapter.check()
    elif adapter is not None:
        shapes = '{"kind": "final", "jobId": …} or {"kind": "checkpoint", "jobId": …, "step": …}'
        raise InvalidConfig("adapter", f"must be {shapes}, not {quote(adapter)}")


class Sampling(Protocol):
    """The fields with which chat and text completions choose the next token."""

    @property
    def temperature(self) -> Any: ...

    @property
    def top_p(self) -> Any: ...

    @property
    def max_tokens(self) -> Any: ...

    @property
    def stop(self) -> Any: ...

    @property
    def seed(self) -> Any: ...

    @property
    def presence_penalty(self) -> Any: ...

    @property
    def frequency_penalty(self) -> Any: ...

    @property
    def logit_bias(self) -> Any: ...

    @property
    def n(self) -> Any: ...


def check_sampling(request: Sampling) -> None:
    """Raise `InvalidConfig` for the first field of the wrong type or out of range."""
    temperature, top_p, seed = request.temperature, request.top_p, request.seed
    if temperature is not None and not (is_finite(temperature) and temperature >= 0):
        raise InvalidConfig("temperature", f"must be a number of at least 0 (0 is greedy), not {temperature!r}")
    if top_p is not None and not (is_finite(top_p) and 0 < top_p <= 1):
        raise InvalidConfig("top_p", f"must be a number above 0 and at most 1, not {top_p!r}")
    if request.max_tokens is not None:
        Integer(1)("max_tokens", request.max_tokens)
    _check_stop(request.stop)
    if seed is not None and not (type(seed) is int and -(2**63) <= seed < 2**63):
        raise InvalidConfig("seed", f"must be a whole number of at most 64 bits, not {quote(seed)}")
    for name in ("presence_penalty", "frequency_penalty"):
        penalty = getattr(request, name)
        if penalty is not None and not (is_finite(penalty) and -2 <= penalty <= 2):
            raise InvalidConfig(name, f"must be a number from -2 to 2, not {penalty!r}")
    _check_logit_bias(request.logit_bias)
    if request.n is not None:
        Integer(1, MAX_ANSWERS)("n", request.n)


def _check_logit_bias(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping) or len(value) > MAX_BIASES:
        shape = f'an object of at most {MAX_BIASES} token ids, like {{"50256": -100}}'
        raise InvalidConfig("logit_bias", f"must be {shape}")
    for token, bias in value.items():
        if not (str(token).isascii() and str(token).isdigit() and len(str(token)) <= 9):
            raise InvalidConfig("logit_bias", f"must have token ids as keys, not {quote(token)}")
        if not (is_finite(bias) and -100 <= bias <= 100):
            raise InvalidConfig("logit_bias", f"must have numbers from -100 to 100 as values, not {bias!r}")


def _check_stop(stop: Any) -> None:
    strings = [stop] if isinstance(stop, str) else () if stop is None else stop
    if not _is_list(strings) or len(strings) > MAX_STOP_STRINGS:
        raise InvalidConfig("stop", f"must be a string, or a list of at most {MAX_STOP_STRINGS}")
    for string in strings:
        if not _is_text(string) or not 0 < len(string) <= MAX_STOP_LENGTH:
            raise InvalidConfig("stop", f"must be of strings of 1 to {MAX_STOP_LENGTH} characters, not {quote(string)}")
