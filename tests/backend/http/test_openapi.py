"""The OpenAPI document, and whether the backend conforms to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests

from arkor.backend.http.app import create_app
from arkor.backend.http.openapi import DescribedRoute, describe
from arkor.backend.store.store import Store
from tests.backend.caller import Caller, owner
from tests.conftest import Backend

HOOKS = "tests.backend.http.schemathesis_hooks"


@pytest.fixture
def document(backend_env: Backend) -> Any:
    return requests.get(f"{backend_env.url}/openapi.json", timeout=10).json()


def test_every_route_is_described(tmp_path: Path) -> None:
    store = Store(tmp_path / "arkor.db")
    app = create_app(tmp_path, store, "scripted")
    assert [route for route in app.routes if not isinstance(route, DescribedRoute)] == []
    described = {(path, method) for path, entry in describe(app.routes)["paths"].items() for method in entry}
    assert len(described) == len(app.routes)
    store.close()


def test_its_references_lead_somewhere_and_its_schemas_are_schemas(document: Any) -> None:
    assert document["openapi"].startswith("3.1.")
    schemas = document["components"]["schemas"]
    references, ids = set(), []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            references.update([value["$ref"]] if "$ref" in value else [])
            ids.extend([value["operationId"]] if "responses" in value else [])
            if isinstance(value.get("schema"), dict):
                jsonschema.Draft202012Validator.check_schema(value["schema"])
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(document)
    assert references == {f"#/components/schemas/{name}" for name in schemas}
    assert len(ids) == len(set(ids))
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_bounds_are_those_of_the_checks(document: Any) -> None:
    properties = document["components"]["schemas"]["JobConfig"]["properties"]
    assert properties["maxSteps"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 2**31 - 1}
    assert properties["learningRate"]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0}
    assert document["components"]["schemas"]["BlobDataset"]["properties"]["type"] == {"const": "blob"}


def test_it_says_which_calls_need_no_token(document: Any) -> None:
    free = {path for path, entry in document["paths"].items() for one in entry.values() if not one["security"]}
    assert {path for path in free if not path.startswith("/e/")} == {
        "/healthz",
        "/openapi.json",
        "/v1/auth/anonymous",
        "/v1/auth/cli/config",
    }
    for path in free - {"/v1/auth/anonymous"}:
        assert path.startswith("/e/") or set(document["paths"][path]) == {"get"}


def test_a_job_is_what_its_schema_says(caller: Caller, document: Any) -> None:
    job = caller.submit(maxSteps=2)
    schema = {"$ref": "#/components/schemas/TrainingJob", "components": document["components"]}
    jsonschema.validate(caller.until(job, "completed"), schema)


#: Operations with rules beyond a schema: fields that depend on each other, or a body that must be a run's zip.
BEYOND_A_SCHEMA = (
    "POST /v1/endpoints",
    "PATCH /v1/endpoints/{id}",
    "POST /v1/inference/chat",
    "POST /e/{slug}/v1/chat/completions",
    "POST /e/{slug}/v1/completions",
    "POST /e/{slug}/v1/responses",
    "POST /v1/jobs/import",
)


def configuration(caller: Caller, examples: int) -> str:
    """Return the configuration of Schemathesis: the scope, and ids of a finished run and a deployment."""
    job = caller.submit(maxSteps=2)
    caller.until(job, "completed")
    target = {"kind": "adapter", "adapter": {"kind": "final", "jobId": job}}
    body = {"slug": "open-door", "target": target, "authMode": "none"}
    endpoint = caller.call("POST", "/v1/endpoints", json=body).json()["deployment"]["id"]
    there = {
        "GET /v1/jobs/{id}/events/stream": f'id = "{job}"',
        "GET /v1/jobs/{id}/export": f'id = "{job}"',
        "GET /v1/endpoints/{id}": f'id = "{endpoint}"',
        "PATCH /v1/endpoints/{id}": f'id = "{endpoint}"',
        "GET /v1/endpoints/{id}/keys": f'id = "{endpoint}"',
        "POST /v1/endpoints/{id}/keys": f'id = "{endpoint}"',
        "GET /e/{slug}/v1/models": 'slug = "open-door"',
        "POST /e/{slug}/v1/chat/completions": 'slug = "open-door"',
        "POST /e/{slug}/v1/completions": 'slug = "open-door"',
        "POST /e/{slug}/v1/responses": 'slug = "open-door"',
    }
    lines = []
    for name in {*there, *BEYOND_A_SCHEMA}:
        lines += ["[[operations]]", f'include-name = "{name}"', f"parameters = {{ {there.get(name, '')} }}"]
        lines += ["checks.positive_data_acceptance.enabled = false"] if name in BEYOND_A_SCHEMA else []
        # an earlier call may have deleted the object of the id above
        lines += ["checks.ensure_resource_availability.enabled = false"] if name in there else []
    return f"""
hooks = "{HOOKS}"
[generation]
deterministic = true
max-examples = {examples}
allow-x00 = false # the backend refuses NUL in every text, see test_texts.py
database = "none"
[parameters]
orgSlug = "local"
projectSlug = "default"
[auth.openapi.token]
bearer = "{caller.token}"
{chr(10).join(lines)}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)  # some 3,000 calls
def test_nothing_is_answered_that_is_not_described(
    slow_backend: Backend, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Schemathesis calls every route with valid and invalid data, and in sequences along the links.

    `--calls N` has it play N examples of each; by default it plays a few, always the same. The steps of the runs take
    time, as some of the submitted configurations have a billion of them.
    """
    caller = owner(slow_backend)
    examples = request.config.getoption("--calls")
    file = tmp_path / "schemathesis.toml"
    file.write_text(configuration(caller, examples), "utf-8")
    found = caller.call("POST", "/v1/datasets", params={**caller.scope, "filename": "x"}, data=b"{}").json()
    environment = {**os.environ, "UPLOADED": found["dataset"]["url"], "PYTHONPATH": str(Path.cwd())}
    command = [Path(sys.executable).with_name("st"), "--config-file", file, "run", "--no-color"]
    command += [f"{slow_backend.url}/openapi.json", "--request-timeout", "20"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-20_000:] + result.stderr[-2_000:]
    assert requests.get(f"{slow_backend.url}/healthz", timeout=10).status_code == 200
    assert "Traceback" not in (slow_backend.home / "test-backend.log").read_text()
