"""A chat request as code to paste: Python, curl, OpenAI's package, JavaScript.

Values are quoted as each language requires. The code never contains a backend's token, and the key
of an endpoint only directly after it was created; otherwise it has a placeholder.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from arkor.client.api import CloudApiClient
from arkor.protocol.chat import InferenceRequest
from arkor.protocol.codec import to_wire
from arkor.settings import arkor_home

#: The placeholder for the key of an endpoint.
KEY = "YOUR_KEY"

_WIDTH = 100


@frozen
class Snippet:
    """Code, and the label of its language."""

    label: str
    code: str = field(repr=False)


def backend_snippets(client: CloudApiClient, request: InferenceRequest) -> list[Snippet]:
    """Return the request to the backend as a Python script and as a command."""
    scope = client.scope
    query = f"?orgSlug={scope.org_slug}&projectSlug={scope.project_slug}" if scope else ""
    url, body = f"{client.base_url}/v1/inference/chat{query}", {**to_wire(request), "stream": False}
    curl = _curl(url, '"Authorization: Bearer $TOKEN"', body)
    return [Snippet("Python", _arkor(request)), Snippet("curl", f"{_token_command(client)}\n{curl}")]


def _arkor(request: InferenceRequest) -> str:
    if adapter := request.adapter:
        step = "" if adapter.step is None else f", {adapter.step}"
        model = f"    adapter=Adapter({adapter.kind!r}, {adapter.job_id!r}{step}),\n"
    else:
        model = _arguments(base_model=request.base_model)
    return f"""from arkor import {"Adapter, " if adapter else ""}InferenceRequest, connect

request = InferenceRequest(
{_arguments(messages=request.messages)}{model}{_arguments(**_settings(request))})
for text in connect().chat(request):
    print(text, end="", flush=True)
print()
"""


def _token_command(client: CloudApiClient) -> str:
    """Return the shell command that sets TOKEN without showing the token."""
    if client.http.auth.source != "embedded":
        return "TOKEN=$ARKOR_TOKEN    # the token of your sign-in"
    file = shlex.quote(str(arkor_home() / "backend.json"))
    return f"""TOKEN=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["token"])' {file})"""


def endpoint_snippets(
    address: str, slug: str, request: InferenceRequest | None = None, *, key: str | None = KEY
) -> list[Snippet]:
    """Return the request, or an example, to an endpoint; `key` is None for an open one."""
    request = request or InferenceRequest([{"role": "user", "content": "Hello!"}], base_model=slug)
    settings = _openai_settings(request)
    url, body = f"{address}/chat/completions", {"model": slug, "messages": to_wire(request.messages), **settings}
    header = None if key is None else shlex.quote(f"Authorization: Bearer {key}")
    return [
        Snippet("Python", _openai(address, slug, request, settings, key)),
        Snippet("curl", _curl(url, header, body)),
        Snippet("JavaScript", _javascript(url, key, body)),
    ]


def _openai_settings(request: InferenceRequest) -> dict[str, Any]:
    """Return the settings by OpenAI's names; a JSON schema becomes a `response_format`."""
    settings = _settings(request)
    constraint = settings.get("structured_outputs") or {}
    if isinstance(schema := constraint.get("json"), Mapping) and len(constraint) == 1:
        del settings["structured_outputs"]
        json_schema = {"name": "answer", "schema": schema}
        settings["response_format"] = {"type": "json_schema", "json_schema": json_schema}
    return settings


def _openai(address: str, slug: str, request: InferenceRequest, settings: Mapping[str, Any], key: str | None) -> str:
    named = {"model": slug, "messages": request.messages, **settings}
    if "structured_outputs" in named:  # not a parameter of OpenAI's package
        named["extra_body"] = {"structured_outputs": named.pop("structured_outputs")}
    return f"""from openai import OpenAI

client = OpenAI(
{_arguments(base_url=address, api_key=key or "none")})
answer = client.chat.completions.create(
{_arguments(**named)})
print(answer.choices[0].message.content)
"""


def _curl(url: str, header: str | None, body: Mapping[str, Any]) -> str:
    """Return the command; `header` is quoted for the shell already."""
    lines = [f"curl -sS {shlex.quote(url)}"]
    if header is not None:
        lines.append(f"-H {header}")
    lines += ['-H "Content-Type: application/json"', f"-d {shlex.quote(_json(body))}"]
    return " \\\n  ".join(lines) + "\n"


def _javascript(url: str, key: str | None, body: Mapping[str, Any]) -> str:
    authorization = "" if key is None else f"\n    Authorization: {_json(f'Bearer {key}')},"
    indented_body = _json(body, indent=2).replace("\n", "\n  ")
    return f"""const response = await fetch({_json(url)}, {{
  method: "POST",
  headers: {{
    "Content-Type": "application/json",{authorization}
  }},
  body: JSON.stringify({indented_body}),
}});
const answer = await response.json();
console.log(response.ok ? answer.choices[0].message.content : answer.error.message);
"""


def _settings(request: InferenceRequest) -> dict[str, Any]:
    """Return the settings that the request has; the others are the backend's defaults."""
    names = ("temperature", "top_p", "max_tokens", "stop", "seed", "response_format", "structured_outputs")
    return {name: value for name in names if (value := getattr(request, name)) is not None}


def _arguments(**values: Any) -> str:
    """Return keyword arguments, one per line."""
    return "".join(f"    {name}={_python(value, 4)},\n" for name, value in values.items())


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(to_wire(value), ensure_ascii=False, indent=indent)


def _python(value: Any, indent: int = 0) -> str:
    """Return a Python literal: on one line if it is short, else with one item per line."""
    short = repr(value)
    if len(short) + indent <= _WIDTH or not isinstance(value, (Mapping, list, tuple)) or not value:
        return short
    inner = indent + 4
    if isinstance(value, Mapping):
        items = [f"{key!r}: {_python(item, inner)}" for key, item in value.items()]
    else:
        items = [_python(item, inner) for item in value]
    opening, closing = "{}" if isinstance(value, Mapping) else "[]"
    lines = "".join(f"{' ' * inner}{item},\n" for item in items)
    return f"{opening}\n{lines}{' ' * indent}{closing}"
