"""Projects, and malformed bodies."""

from __future__ import annotations

import pytest

from tests.backend.caller import Caller, stranger
from tests.conftest import Backend


def test_projects_are_listed(caller: Caller) -> None:
    answer = caller.call("GET", "/v1/projects").json()
    assert answer["org"] == {"slug": "local"}
    assert [(p["slug"], p["name"]) for p in answer["projects"]] == [("default", "Default")]


def test_a_project_is_made_once(backend_env: Backend) -> None:
    caller = stranger(backend_env)
    made = caller.call("POST", "/v1/projects", json={"name": " My bot ", "slug": "my-bot"})
    assert made.status_code == 201
    project = made.json()["project"]
    assert (project["name"], project["slug"]) == ("My bot", "my-bot")
    again = caller.call("POST", "/v1/projects", json={"name": "Again", "slug": "my-bot"})
    assert (again.status_code, again.json()["code"]) == (409, "slug_taken")
    assert project in caller.call("GET", "/v1/projects").json()["projects"]
    assert stranger(backend_env).call("POST", "/v1/projects", json=project | {"slug": "my-bot"}).status_code == 400


@pytest.mark.parametrize("slug", ["", "-a", "A", "a b", "a" * 41, "ä", "a\n", 5, None, ["a"]])
def test_a_slug_has_a_form(caller: Caller, slug: object) -> None:
    answer = caller.call("POST", "/v1/projects", json={"name": "n", "slug": slug})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("slug: ")


@pytest.mark.parametrize("name", ["", "  ", 5, None, "a\0b", "x" * 256])
def test_a_name_is_text(caller: Caller, name: object) -> None:
    answer = caller.call("POST", "/v1/projects", json={"name": name, "slug": "slug"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("name: ")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"name": NaN}',
        b'{"name": Infinity, "slug": "a"}',
        b'{"name": "\\ud800", "slug": "half"}',
        b"[" * 100_000,
        b'{"name": ' + b"1" * 5000 + b"}",
        b"{}{}",
        b'{"name": "a", "slug": "huge", "x": 1e999}',
        b'{"name": "a", "name": "b", "slug": "twice"}',
        b'{"name": "a", "slug": "deep", "x": {"y": 1, "y": 1}}',
        b"\xef\xbb\xbf{}",
        b'{"a":' * 100_000,
    ],
)
def test_a_body_that_is_no_json_object_is_a_400(caller: Caller, body: bytes) -> None:
    answer = caller.call("POST", "/v1/projects", data=body)
    assert answer.status_code == 400
    assert answer.json()["error"].endswith(".")


def test_a_body_may_not_be_huge(caller: Caller) -> None:
    answer = caller.call("POST", "/v1/projects", data=b'"' + b"x" * 2_000_000 + b'"')
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_field_that_does_not_exist_is_named_with_the_nearest(caller: Caller) -> None:
    answer = caller.call("POST", "/v1/projects", json={"name": "n", "slugg": "s"})
    assert answer.json()["error"] == "slugg: is not a field of this request; did you mean slug?"
