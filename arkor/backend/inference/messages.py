"""The messages between the server and a generator: completion requests, and the replies to them.

`generator.py` and `scripted_generator.py` implement `Generator`. Either runs in a child process
(`process.py`), to which the server (`service.py`) writes requests and from which it reads replies,
one JSON object a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import attrs
from attrs import frozen

from arkor.errors import Problem, StructuredError


@frozen
class Constraint:
    """A constraint on the text of an answer.

    `kind` is `"json"`, `"regex"`, `"choice"`, `"grammar"` or, for tool calls, `"lark"`; `value` is
    the schema, pattern, list of texts or grammar. `field` is the request's field that holds it.
    `whitespace` is a pattern for the whitespace between two JSON tokens; `""` allows none.
    `prompted`: the schema is from a system message.
    """

    kind: str
    value: Any
    field: str
    whitespace: str = ""
    prompted: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the caller, who may not expect the constraint."""
        return ("The answer follows the JSON schema in the system message.",) if self.prompted else ()


@frozen
class ToolChoice:
    """The tools that an answer may call, in OpenAI's format.

    `forced` requires a call: of the tool called `name`, or, if None, of any tool. `parallel`
    allows several calls.
    """

    tools: tuple[Mapping[str, Any], ...]
    forced: bool
    name: str | None
    parallel: bool

    @property
    def callable(self) -> tuple[Mapping[str, Any], ...]:
        """The functions that may be called."""
        return tuple(tool["function"] for tool in self.tools if self.name in (None, tool["function"]["name"]))


@frozen
class CompletionRequest:
    """One answer to generate.

    `model` is a Hugging Face id or a folder, `adapter` the folder of an adapter or None.
    `temperature` 0 is greedy. `max_tokens` None uses the generator's default. The answer ends
    before the first of the `stop` strings. With a `seed`, equal requests generate equal text.

    With a `prompt`, a text or tokens, it is continued instead of answering `messages`; `echo` also
    returns the prompt. `logit_bias` pairs tokens with numbers. `logprobs` is the number of likely
    tokens that are returned with the probability of each token; None returns neither.
    `enable_thinking` and `reasoning_effort` go to the chat template, if it uses them.
    """

    id: str
    model: str
    adapter: str | None
    messages: tuple[Mapping[str, Any], ...]
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    constraint: Constraint | None = None
    tool_choice: ToolChoice | None = None
    prompt: str | tuple[int, ...] | None = None
    echo: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None


@frozen
class TokenLogprob:
    """A token as its bytes, the natural logarithm of its probability, and the likely tokens.

    The probability is the model's own, before temperature, penalties, biases and constraints. The
    first token of a prompt has none.
    """

    data: tuple[int, ...]
    logprob: float | None
    top: tuple[tuple[tuple[int, ...], float], ...] = ()

    @property
    def text(self) -> str:
        """The token as text; `bytes:\\xe2\\x82` if it is a part of a character."""
        return token_text(self.data)


def token_text(data: Sequence[int]) -> str:
    """Return the text of a token, as OpenAI's API writes it."""
    try:
        return bytes(data).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


@frozen
class Delta:
    """The next text of an answer, and its tokens if the request asks for `logprobs`."""

    id: str
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@frozen
class CallDelta:
    """The next part of a tool call: first `call_id` and `name`, then JSON of the arguments."""

    id: str
    index: int
    arguments: str
    call_id: str | None = None
    name: str | None = None


@frozen
class Done:
    """An answer is complete; `finish_reason` is `"stop"`, `"length"` or `"tool_calls"`.

    `notes` are sentences on parameters that have no effect on this model; `engine` is the engine
    that computed the answer.
    """

    id: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    notes: tuple[str, ...] = ()
    engine: str | None = None


@frozen
class Failed:
    """An answer failed; with the fields of `GenerationError`."""

    id: str
    status: int
    code: str
    problem: str
    remedy: str | None = None
    field: str | None = None

    @property
    def sentence(self) -> str:
        """The whole message, for the operator."""
        return str(Problem(self.problem, self.field, self.remedy))


Reply = Delta | CallDelta | Done | Failed


class GenerationError(StructuredError):
    """A completion that cannot be generated, with the HTTP `status` for it.

    `problem` is safe for callers of a deployment: it contains no path and no model name. `remedy`
    is for the operator and may contain both.
    """

    status: int
    code: str

    def __init__(
        self, status: int, code: str, problem: str, *, remedy: str | None = None, field: str | None = None
    ) -> None:
        super().__init__(problem, field=field, remedy=remedy, code=code)
        self.status = status

    @property
    def sentence(self) -> str:
        """The whole message, for the operator."""
        return str(self)

    def reply(self, completion_id: str) -> Failed:
        """Return the error as the reply to that completion."""
        return Failed(completion_id, self.status, self.code, self.problem, self.remedy, self.field)


class Generator(Protocol):
    """Generates several answers concurrently."""

    def submit(self, completion: CompletionRequest) -> None:
        """Queue a completion. Errors are returned by `step()`."""

    def cancel(self, completion_id: str) -> None:
        """Drop a completion without a further reply; unknown ids are ignored."""

    def step(self) -> list[Reply]:
        """Advance every answer by about one token. Return soon, even if all of them are waiting."""

    @property
    def busy(self) -> bool:
        """Whether any answer is queued or in progress."""


# JSON lines

_REPLY_TYPES: dict[str, type[Any]] = {"delta": Delta, "call": CallDelta, "done": Done, "error": Failed}
_TYPE_NAMES = {cls: kind for kind, cls in _REPLY_TYPES.items()}


def reply_to_json(reply: Reply) -> dict[str, Any]:
    """Return `{"id": …, "delta" | "call" | "done" | "error": {…}}`, without empty fields."""
    fields = {name: value for name, value in attrs.asdict(reply).items() if value not in (None, [])}
    return {"id": fields.pop("id"), _TYPE_NAMES[type(reply)]: fields}


def reply_from_json(data: Mapping[str, Any]) -> Reply:
    """Decode the output of `reply_to_json`."""
    kind = next(kind for kind in _REPLY_TYPES if kind in data)
    fields = dict(data[kind])
    if "logprobs" in fields:
        fields["logprobs"] = tuple(_logprob_from_json(item) for item in fields["logprobs"])
    if "notes" in fields:
        fields["notes"] = tuple(fields["notes"])
    reply: Reply = _REPLY_TYPES[kind](data["id"], **fields)
    return reply


def _logprob_from_json(data: Mapping[str, Any]) -> TokenLogprob:
    top = tuple((tuple(token), logprob) for token, logprob in data["top"])
    return TokenLogprob(tuple(data["data"]), data["logprob"], top)


def completion_from_json(data: Mapping[str, Any]) -> CompletionRequest:
    """Decode a JSON object that was encoded with `attrs.asdict`."""
    tool_choice, constraint, prompt = data.get("tool_choice"), data.get("constraint"), data.get("prompt")
    decoded = {
        "messages": tuple(data["messages"]),
        "stop": tuple(data.get("stop", ())),
        "prompt": tuple(prompt) if isinstance(prompt, list) else prompt,
        "logit_bias": tuple((token, bias) for token, bias in data.get("logit_bias", ())),
        "constraint": Constraint(**constraint) if constraint else None,
        "tool_choice": ToolChoice(**{**tool_choice, "tools": tuple(tool_choice["tools"])}) if tool_choice else None,
    }
    return CompletionRequest(**{**data, **decoded})
