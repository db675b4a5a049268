"""`arkor export-run` and `arkor import`: a run that moves from one machine's home to another's."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arkor.client.connect import connect
from arkor.trainer.trainer import Trainer
from tests.cli.conftest import Run, WriteEntry
from tests.conftest import Backend, start_backend
from tests.fakes.http_server import Answer, HttpServer

pytestmark = pytest.mark.slow  # every test starts processes of its own


@pytest.fixture
def other_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Backend]]:
    """Switch to another machine: a backend with its own home, which later commands use."""
    started: list[Backend] = []

    def go() -> Backend:
        started.append(start_backend(tmp_path / "other-home", "--engine", "scripted"))
        monkeypatch.setenv("ARKOR_HOME", str(started[0].home))
        return started[0]

    yield go
    for backend in started:
        backend.process.kill()
        backend.process.wait()


def events_of(run: Run, job_id: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in run("logs", job_id, "--json").stdout.splitlines()]


def test_there_and_back(
    run: Run, run_anew: Run, finished: str, project: Path, other_home: Callable[[], Backend]
) -> None:
    before, logged = run("jobs", "--json").stdout, events_of(run, finished)
    answer = run("chat", finished, "-m", "hello").stdout
    written = run_anew("export-run", finished[:8])
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith(f"Wrote demo to {finished}.zip (")
    other = other_home()
    assert json.loads(run("jobs", "--json").stdout) == []
    for importing in (run, run_anew):  # the second import finds the run
        taken = importing("import", f"{finished}.zip")
        assert taken.returncode == 0, taken.stderr
        assert taken.stdout.splitlines()[0] == f"Imported demo: {finished}, completed."
    (there,), (here,) = json.loads(before), json.loads(run("jobs", "--json").stdout)
    apart = ("orgId", "projectId")
    assert {key: here[key] for key in here if key not in apart} == {
        key: there[key] for key in there if key not in apart
    }
    assert events_of(run, finished) == logged
    assert run("chat", finished, "-m", "hello").stdout == answer
    assert run("chat", f"{finished}@5", "-m", "hello").returncode == 0
    seen: list[int] = []
    result = Trainer.attach(finished, callbacks={"on_log": lambda log: seen.append(log.step)}).wait(30)
    assert (seen, str(result.job.status)) == ([1, 2, 3, 4, 5], "completed")
    assert {item.kind for item in result.artifacts} == {"checkpoint", "final"}
    assert all((other.home / "runs" / finished / item.path).is_dir() for item in result.artifacts)
    assert not list((other.home / "runs").glob(".*"))


def test_the_zip_holds_what_travels_and_nothing_else(
    run: Run, finished_run: str, project: Path, backend: Backend
) -> None:
    finished = finished_run
    folder = backend.home / "runs" / finished
    (folder / "secret.json").write_text('{"blobToken": "hush"}')
    (folder / "worker.pid").write_text("1")
    (folder / "checkpoints" / ".9.partial").mkdir()
    (folder / "checkpoints" / ".9.partial" / "half").write_text("x")
    run("export-run", finished, "-o", "run.zip")
    with zipfile.ZipFile(project / "run.zip") as archive:
        assert archive.testzip() is None
        names = {name.removeprefix(f"{finished}/") for name in archive.namelist()}
    assert {name.split("/")[0] for name in names} == {"job.json", "events.jsonl", "worker.log", "checkpoints", "final"}
    assert not any(".9" in name for name in names)
    again = run("export-run", finished, "-o", "run.zip")
    assert again.returncode == 2
    assert "run.zip already exists" in again.stderr


def test_a_folder_that_was_copied_while_the_run_went_on(
    write_entry_point: WriteEntry,
    project: Path,
    run: Run,
    slow_backend: Backend,
    other_home: Callable[[], Backend],
    tmp_path: Path,
) -> None:
    write_entry_point(steps=300)
    trainer = Trainer(
        "long", "scripted/model", {"type": "file", "path": str(project / "rows.jsonl")}, max_steps=300, save_steps=1
    )
    job_id = trainer.start().job_id
    checkpoints = slow_backend.home / "runs" / job_id / "checkpoints"
    while not checkpoints.is_dir() or not list(checkpoints.glob("[1-9]*")):
        time.sleep(0.05)
    refused = run("export-run", job_id)
    assert refused.returncode == 1
    assert "is still running; wait for its end, or cancel it" in refused.stderr
    assert not list(project.glob("*.zip"))
    trainer.cancel()
    copy = tmp_path / "a copy"
    shutil.copytree(checkpoints.parent, copy, ignore=shutil.ignore_patterns(".*"))
    lines = (copy / "events.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "events.jsonl").write_bytes(b"".join(line for line in lines if b'"training.failed"' not in line)[:-1])
    other_home()
    taken = run("import", str(copy))
    assert taken.returncode == 0, taken.stderr
    assert "failed" in taken.stdout.splitlines()[0]
    assert "This is a copy of a run that had not ended" in run("logs", job_id).stdout.splitlines()[-1]
    assert connect().list_jobs()[0].error


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a text", "half a zip"])
def test_what_is_no_run(kind: str, run: Run, finished: str, project: Path) -> None:
    path = project / "thing"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a text":
        path.write_text("hello")
    elif kind == "half a zip":
        run("export-run", finished, "-o", "whole.zip")
        path.write_bytes((project / "whole.zip").read_bytes()[:-30])
    refused = run("import", str(path))
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    says = {"nothing": "does not exist", "a folder": "is not the folder of a run"}
    assert says.get(kind, "This is not a complete zip") in refused.stderr


def test_a_disk_without_a_place_for_the_zip(run: Run, finished: str) -> None:
    refused = run("export-run", finished, "-o", "/nowhere/run.zip")
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    assert "/nowhere" in refused.stderr


def test_a_backend_that_knows_of_no_copies(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend without the route is explained, instead of its error code."""
    (project / "run.zip").write_bytes(b"")
    monkeypatch.setenv("ARKOR_HOME", str(project / "home"))
    refusal = Answer(405, {"error": "/v1/jobs/import does not take POST.", "code": "method_not_allowed"})
    with HttpServer(refusal) as server:
        credentials = {"mode": "anon", "token": "t", "anonymousId": "a", "arkorCloudApiUrl": server.url, "orgSlug": "o"}
        state = {"orgSlug": "o", "projectSlug": "p", "projectId": "i"}
        for file, content in ((project / "home/credentials.json", credentials), (project / ".arkor/state.json", state)):
            file.parent.mkdir()
            file.write_text(json.dumps(content))
        refused: subprocess.CompletedProcess[str] = run("import", "run.zip")
    assert refused.returncode == 2
    assert f"the backend at {server.url} does not support this" in refused.stderr
