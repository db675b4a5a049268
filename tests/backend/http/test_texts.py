"""Every text that a request may contain: without NUL, and no longer than its column."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from arkor.backend.store.schema import datasets, deployment_keys, deployments, jobs, projects
from tests.backend.caller import Caller
from tests.conftest import Backend

Path = tuple[str | int, ...]


@pytest.fixture(scope="module")
def document(module_backend: Backend) -> Any:
    return requests.get(f"{module_backend.url}/openapi.json", timeout=10).json()


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, entry in document["paths"].items():
        for method, operation in entry.items():
            yield method.upper(), path, operation


def text_paths(schema: Any, document: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the place of every string that the schema describes or leaves open."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for part in schema.get("anyOf", ()):
        yield from text_paths(part, document, path)
    for name, part in schema.get("properties", {}).items():
        yield from text_paths(part, document, (*path, name))
    if "items" in schema:
        yield from text_paths(schema["items"], document, (*path, 0))
    if "string" in schema.get("type", ()) or {"enum", "const"} & schema.keys():
        yield path
    if not schema.keys() - {"description"} or (schema.get("type") == "object" and "properties" not in schema):
        yield (*path, "inner", 0, "text")


def body_with(path: Path, text: str) -> Any:
    """A body with this text at that place, and nothing else."""
    value: Any = text
    for part in reversed(path):
        value = [value] if isinstance(part, int) else {part: value}
    return value


def field_name(path: Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def message_of(answer: requests.Response) -> str:
    error = answer.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def test_no_text_of_a_body_may_contain_nul(backend_env: Backend, caller: Caller, document: Any) -> None:
    target = {"kind": "base_model", "baseModel": "scripted/model"}
    body = {"slug": "texts", "target": target, "authMode": "none"}
    deployment = caller.call("POST", "/v1/endpoints", json=body).json()["deployment"]["id"]
    tried = set()
    for method, path, operation in operations(document):
        schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if schema is None:
            continue
        url = path.replace("{slug}", "texts").replace("{id}", deployment)
        for place in dict.fromkeys(text_paths(schema, document)):
            answer = caller.call(method, url, json=body_with(place, "a\0b"))
            assert answer.status_code == 400, (method, path, place, answer.text)
            expected = f"{field_name(place)}: contains a NUL character (\\u0000); remove it"
            assert message_of(answer) == expected, (method, path, place)
            tried.add(f"{method} {path} {field_name(place)}")
    assert {
        "POST /v1/projects name",
        "POST /v1/jobs config.datasetSource.name",
        "POST /v1/endpoints target.adapter.jobId",
        "POST /v1/endpoints/{id}/keys label",
        "POST /e/{slug}/v1/chat/completions metadata.inner[0].text",
        "POST /v1/inference/chat messages[0].inner[0].text",
    } <= tried


def test_no_name_in_a_body_may_contain_nul(caller: Caller) -> None:
    answer = caller.call("POST", "/v1/jobs", json={"config": {"datasetFormat": {"a\0b": 1}}})
    assert answer.status_code == 400
    assert answer.json()["field"] == "config.datasetFormat"
    assert "has a key that contains a NUL character; remove it" in message_of(answer)


def test_an_escaped_backslash_is_no_nul(caller: Caller) -> None:
    answer = caller.call("POST", "/v1/projects", json={"name": "C:\\u0000", "slug": "backslash"})
    assert (answer.status_code, answer.json()["project"]["name"]) == (201, "C:\\u0000")


def test_no_parameter_may_contain_nul(caller: Caller, document: Any) -> None:
    tried = set()
    for method, path, operation in operations(document):
        for parameter in operation["parameters"]:
            name, where = parameter["name"], parameter["in"]
            if where == "header":  # the server rejects the whole request
                continue
            query = {**caller.scope, **({name: "a\0b"} if where == "query" else {})}
            url = path.replace(f"{{{name}}}", "a%00b") if where == "path" else path
            url = re.sub(r"{\w+}", "x", url)
            content = {"data": b"{}"} if method in ("POST", "PATCH") else {}
            answer = caller.call(method, url, params=query, **content)
            if answer.status_code == 404 and where == "query" and "{" in path:
                continue  # what the path names is looked up first
            assert answer.status_code == 400, (method, path, name, answer.text)
            if method != "HEAD":
                assert message_of(answer).startswith(f"{name}: contains a NUL character"), (method, path, name)
            tried.add(name)
    assert {"id", "slug", "keyId", "model", "orgSlug", "projectSlug", "before", "idPrefix", "filename"} <= tried


def test_no_text_is_longer_than_its_column(document: Any) -> None:
    def longest(method: str, path: str, name: str) -> int:
        operation = document["paths"][path][method]
        parameters = {parameter["name"]: parameter["schema"] for parameter in operation["parameters"]}
        content = operation.get("requestBody", {"content": {}})["content"].get("application/json")
        schema = {**parameters, **(content["schema"]["properties"] if content else {})}[name]
        length: int = schema.get("maxLength") or int(re.findall(r",(\d+)}\$$", schema["pattern"])[0]) + 1
        return length

    assert longest("post", "/v1/projects", "slug") <= projects.c.slug.type.length
    # A project is named after its folder. SQLite ignores the column's length (200); another database needs a migration.
    assert longest("post", "/v1/projects", "name") == 255
    assert longest("post", "/v1/jobs", "name") <= jobs.c.name.type.length
    assert longest("post", "/v1/jobs", "Idempotency-Key") <= jobs.c.idempotency_key.type.length
    assert longest("post", "/v1/datasets", "filename") <= datasets.c.filename.type.length
    assert longest("post", "/v1/endpoints", "slug") <= deployments.c.slug.type.length
    assert longest("post", "/v1/endpoints/{id}/keys", "label") <= deployment_keys.c.label.type.length


def test_white_space_does_not_make_a_key_longer(caller: Caller) -> None:
    """The server strips spaces around a header, but not every white space of Latin-1."""
    key = "k" * 255
    first = caller.submit(key=key)
    assert caller.submit(key=f"{key}\xa0") == first
