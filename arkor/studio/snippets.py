"""A request for an answer as code that works when it is pasted: Python, curl, OpenAI's package, JavaScript.

Whatever is put into it is quoted as the language has it. A backend's token is in none of it; the key of an endpoint is
where it was made a moment ago, and else a word in its place.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from arkor.client.api import CloudApiClient
from arkor.protocol.chat import Adapter, InferenceRequest
from arkor.protocol.codec import to_wire
from arkor.settings import arkor_home

#: What stands where the key of an endpoint belongs.
KEY = "YOUR_KEY"

_WIDTH = 100


@frozen
class Snippet:
    """Code, and which language it is in."""

    label: str
    code: str = field(repr=False)


# Of the backend itself


def backend_snippets(client: CloudApiClient, request: InferenceRequest) -> list[Snippet]:
    """The request as a script of arkor, and as a command."""
    return [Snippet("Python", _arkor(request)), Snippet("curl", _curl_of_backend(client, request))]


def _arkor(request: InferenceRequest) -> str:
    weights = _adapter(request.adapter) if request.adapter else None
    named = {"messages": request.messages, **_chosen(request)}
    lines = [f"    {name}={_python(value, 4)}," for name, value in named.items()]
    lines.insert(1, f"    adapter={weights}," if weights else f"    base_model={_python(request.base_model)},")
    return "\n".join(
        (
            f"from arkor.protocol.chat import {'Adapter, ' if weights else ''}InferenceRequest",
            "from arkor.client.connect import connect",
            "",
            "request = InferenceRequest(",
            *lines,
            ")",
            "for text in connect().chat(request):",
            '    print(text, end="", flush=True)',
            "print()",
            "",
        )
    )


def _adapter(adapter: Adapter) -> str:
    step = "" if adapter.step is None else f", {adapter.step}"
    return f"Adapter({_python(adapter.kind)}, {_python(adapter.job_id)}{step})"


def _curl_of_backend(client: CloudApiClient, request: InferenceRequest) -> str:
    scope = client.scope
    query = f"?orgSlug={scope.org_slug}&projectSlug={scope.project_slug}" if scope else ""
    body = {**to_wire(request), "stream": False}
    command = _curl(f"{client.base_url}/v1/inference/chat{query}", '"Authorization: Bearer $TOKEN"', body)
    return f"{_token(client)}\n{command}"


def _token(client: CloudApiClient) -> str:
    """How a shell comes by the token, without anybody seeing it."""
    if client.http.auth.source != "embedded":
        return "TOKEN=$ARKOR_TOKEN    # the token of your sign-in"
    listing = shlex.quote(str(arkor_home() / "backend.json"))
    return f"""TOKEN=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["token"])' {listing})"""


# Of an endpoint


def endpoint_snippets(
    address: str, slug: str, request: InferenceRequest | None = None, *, key: str | None = KEY
) -> list[Snippet]:
    """The request (or a first one) to the endpoint at `address`, which asks for `key`, or for none."""
    example = request or InferenceRequest([{"role": "user", "content": "Hello!"}], base_model=slug)
    settings = _as_openai(example)
    body = {"model": slug, "messages": to_wire(example.messages), **settings}
    header = None if key is None else shlex.quote(f"Authorization: Bearer {key}")
    return [
        Snippet("Python", _openai(address, slug, example, settings, key)),
        Snippet("curl", _curl(f"{address}/chat/completions", header, body)),
        Snippet("JavaScript", _javascript(f"{address}/chat/completions", key, body)),
    ]


def _as_openai(request: InferenceRequest) -> dict[str, Any]:
    """What is chosen, by OpenAI's names: a JSON schema is what every client of theirs can say."""
    settings = _chosen(request)
    constraint = settings.get("structured_outputs") or {}
    if isinstance(schema := constraint.get("json"), Mapping) and len(constraint) == 1:
        del settings["structured_outputs"]
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        settings["response_format"] = form
    return settings


def _openai(address: str, slug: str, request: InferenceRequest, settings: Mapping[str, Any], key: str | None) -> str:
    named = {"model": slug, "messages": request.messages, **settings}
    if "structured_outputs" in named:  # which OpenAI's package does not know by name
        named["extra_body"] = {"structured_outputs": named.pop("structured_outputs")}
    return "\n".join(
        (
            "from openai import OpenAI",
            "",
            "client = OpenAI(",
            f"    base_url={_python(address)},",
            f"    api_key={_python(key or 'none')},",
            ")",
            "answer = client.chat.completions.create(",
            *(f"    {name}={_python(value, 4)}," for name, value in named.items()),
            ")",
            "print(answer.choices[0].message.content)",
            "",
        )
    )


def _curl(url: str, header: str | None, body: Mapping[str, Any]) -> str:
    """`header` is as the shell is to read it."""
    lines = [f"curl -sS {shlex.quote(url)}"]
    if header is not None:
        lines.append(f"-H {header}")
    lines += ['-H "Content-Type: application/json"', f"-d {shlex.quote(_json(body))}"]
    return " \\\n  ".join(lines) + "\n"


def _javascript(url: str, key: str | None, body: Mapping[str, Any]) -> str:
    authorization = [f"    Authorization: {_json(f'Bearer {key}')},"] if key is not None else []
    return "\n".join(
        (
            f"const response = await fetch({_json(url)}, {{",
            '  method: "POST",',
            "  headers: {",
            '    "Content-Type": "application/json",',
            *authorization,
            "  },",
            f"  body: JSON.stringify({_indented(_json(body, indent=2), 2)}),",
            "});",
            "const answer = await response.json();",
            "console.log(response.ok ? answer.choices[0].message.content : answer.error.message);",
            "",
        )
    )


# Values


def _chosen(request: InferenceRequest) -> dict[str, Any]:
    """The settings that are not left to the backend."""
    names = ("temperature", "top_p", "max_tokens", "stop", "seed", "response_format", "structured_outputs")
    return {name: value for name in names if (value := getattr(request, name)) is not None}


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(to_wire(value), ensure_ascii=False, indent=indent)


def _indented(text: str, spaces: int) -> str:
    return text.replace("\n", "\n" + " " * spaces)


def _python(value: Any, indent: int = 0) -> str:
    """A literal: on one line where that is short, else an item a line."""
    short = _literal(value)
    if len(short) + indent <= _WIDTH or not isinstance(value, (Mapping, list, tuple)) or not value:
        return short
    inner = indent + 4
    if isinstance(value, Mapping):
        items = [f"{_literal(key)}: {_python(item, inner)}" for key, item in value.items()]
    else:
        items = [_python(item, inner) for item in value]
    opening, closing = "{}" if isinstance(value, Mapping) else "[]"
    lines = "".join(f"{' ' * inner}{item},\n" for item in items)
    return f"{opening}\n{lines}{' ' * indent}{closing}"


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return _escape_invisible(json.dumps(value, ensure_ascii=False))  # whose escapes are Python's, too
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return repr(value)


def _escape_invisible(text: str) -> str:
    """Without what a reader would not see: it is written as an escape of Python's."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
