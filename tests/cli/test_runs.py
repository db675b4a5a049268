"""`arkor jobs`, `logs` and `cancel` on real runs of a real backend."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from arkor.client.auth.credentials import AnonymousCredentials, write_credentials
from arkor.client.connect import connect
from tests.backend.http.routes.test_job_list import fill
from tests.cli.conftest import ARKOR, Run, WriteEntry
from tests.conftest import Backend, start_backend
from tests.fakes.http_server import Answer, HttpServer, Request
from tests.fakes.run_server import JOB, PROJECT
from tests.fakes.screen import Screen

pytestmark = pytest.mark.slow  # every test starts processes of its own


def test_no_runs_yet(backend: Backend, run: Run) -> None:
    assert run("jobs").stdout.startswith("No runs yet.")
    assert json.loads(run("jobs", "--json").stdout) == []


def test_jobs_in_a_table_and_as_json(run: Run, run_anew: Run, finished: str) -> None:
    head, row = run_anew("jobs").stdout.splitlines()
    assert head.split() == ["ID", "NAME", "STATUS", "SUBMITTED", "TOOK", "MODEL"]
    assert re.fullmatch(rf"{finished} +demo +completed +\d{{4}}-\d\d-\d\d \d\d:\d\d +0:\d\d +scripted/model", row)
    (job,) = json.loads(run("jobs", "--json").stdout)
    assert (job["id"], job["status"], job["config"]["maxSteps"]) == (finished, "completed", 5)


def test_the_log_of_a_run_that_has_ended(run: Run, run_anew: Run, finished: str) -> None:
    lines = run_anew("logs", finished).stdout.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d  ", line) for line in lines)
    output = [line[10:] for line in lines]
    assert "training, 5 steps" in output
    assert any(re.match(r"step 1 +loss 1\.8000  learning rate ", line) for line in output)
    assert "checkpoint 5 saved" in output
    assert output[-1] == "completed"
    assert run("logs", finished, "--follow").stdout.splitlines() == lines


def test_the_log_as_json(run: Run, finished: str) -> None:
    events = [json.loads(line) for line in run("logs", finished, "--json").stdout.splitlines()]
    assert [event["step"] for event in events if event["type"] == "training.log"] == [1, 2, 3, 4, 5]
    assert events[-1]["type"] == "training.completed"
    assert {event["jobId"] for event in events} == {finished}


def test_the_losses_as_a_plot(run: Run, finished: str, project: Path) -> None:
    plot = run("logs", finished, "--plot").stdout.splitlines()
    assert plot[0] == f"demo ({finished})"
    assert "loss 1" in plot[1]
    assert "\x1b" not in "".join(plot)
    assert max(map(len, plot)) <= 80
    assert any("⠀" < letter <= "⣿" for line in plot[2:] for letter in line)
    assert run("logs", finished, "--plot", "--follow").stdout.splitlines() == plot
    refused = run("logs", finished, "--plot", "--json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--plot and --json cannot be used together" in refused.stderr


@pytest.mark.parametrize(("columns", "setting"), [(40, ""), (120, ""), (100, "1")])
def test_a_plot_fills_the_terminal(run: Run, finished: str, columns: int, setting: str) -> None:
    command = (
        f"import sys; sys.argv = ['arkor', 'logs', {finished!r}, '--plot']; from arkor.cli.main import main; main()"
    )
    screen = Screen(command, columns=columns, rows=20, **({"NO_COLOR": setting} if setting else {}))
    lines = screen.lines()
    assert lines[0] == f"demo ({finished})"[:columns]
    assert columns - 2 <= max(map(len, lines)) <= columns
    assert ("\x1b[34m" in screen.written) is not bool(setting)


def test_a_job_may_be_named_by_the_beginning_of_its_id(run: Run, finished: str) -> None:
    assert run("logs", finished[:6]).returncode == 0
    unknown = run("logs", "nothing-like-it")
    assert unknown.returncode == 2
    assert "no run has the id 'nothing-like-it'; `arkor jobs` lists the runs" in unknown.stderr


def test_two_runs_of_the_same_beginning(run: Run, finished_run: str) -> None:
    run("start")
    ambiguous = run("cancel", "")
    assert ambiguous.returncode == 2
    both = [line.split()[0] for line in run("jobs").stdout.splitlines()[1:]]
    shared = next((first[:1] for first, second in [both] if first[0] == second[0]), None)
    if shared:
        assert "the ids of 2 runs start with" in run("logs", shared).stderr


def test_ten_thousand_runs(tmp_path: Path, run: Run) -> None:
    """Listing runs costs little processor time, and any run is found by the beginning of its id."""
    home = tmp_path / "arkor-home"
    fill(home, 10_000)
    backend = start_backend(home, "--engine", "scripted")
    newest, last = run("jobs").stdout.splitlines()[1], run("jobs").stderr
    assert newest.split()[1:3] == ["run", "9999"]
    assert last == "Showing the newest 50; `arkor jobs --all` lists every run.\n"
    assert len(run("jobs", "--limit", "3").stdout.splitlines()) == 4
    every = json.loads(run("jobs", "--all", "--json").stdout)
    assert len(every) == 10_000
    assert run("logs", every[-1]["id"][:12]).returncode == 0
    client = connect()
    client.me()
    server = psutil.Process(backend.process.pid)
    before = time.process_time() + sum(server.cpu_times()[:2])
    for _ in range(3):
        assert len(client.list_jobs(limit=51)) == 51
    assert time.process_time() + sum(server.cpu_times()[:2]) - before < 9
    backend.process.kill()
    backend.process.wait()


def test_a_reader_that_has_enough(run: Run, finished: str, project: Path) -> None:
    """`arkor logs X | head -1` prints no error about the closed pipe."""
    logs = subprocess.Popen([*ARKOR, "logs", finished], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=project)
    head = subprocess.run(["head", "-1"], stdin=logs.stdout, capture_output=True, check=True)
    assert logs.stdout is not None
    assert logs.stderr is not None
    logs.stdout.close()
    complaint = logs.stderr.read()
    logs.stderr.close()
    assert (logs.wait(20), complaint) == (0, b"")
    assert len(head.stdout.splitlines()) == 1


def test_a_reader_that_is_gone_before_the_first_word(finished: str, project: Path) -> None:
    code = "import os, sys; os.execv(sys.executable, [sys.executable, '-m', 'arkor', 'jobs'])"
    jobs = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=project)
    assert jobs.stdout is not None
    jobs.stdout.close()
    assert jobs.stderr is not None
    assert jobs.stderr.read() == b""
    jobs.stderr.close()
    assert jobs.wait(20) == 0


@pytest.fixture
def running(
    project: Path, write_entry_point: WriteEntry, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> str:
    """The id of a slow run, which was submitted and is not watched."""
    monkeypatch.setenv("ARKOR_SCRIPTED_STEP_SECONDS", "0.2")
    request.getfixturevalue("backend")
    file = write_entry_point(steps=200)
    code = f"import runpy; print(runpy.run_path({str(file)!r})['trainer'].start().job_id)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def until_it_logs(run: Run, job_id: str) -> list[str]:
    for _ in range(50):
        if "step" in (output := run("logs", job_id).stdout):
            return output.splitlines()
        time.sleep(0.1)
    raise AssertionError("the run has logged nothing")


def test_the_log_of_a_run_in_progress_ends_with_now(run: Run, running: str) -> None:
    lines = until_it_logs(run, running)
    assert "completed" not in lines[-1]
    assert run("jobs").stdout.splitlines()[1].split()[2] == "running"


def test_cancel(run: Run, run_anew: Run, running: str) -> None:
    until_it_logs(run, running)
    done = run_anew("cancel", running)
    assert done.returncode == 0
    assert running in done.stdout
    followed = run("logs", running, "--follow").stdout.splitlines()
    assert followed[-1].endswith("cancelled")
    again = run("cancel", running)
    assert again.returncode == 1
    assert "has already ended: cancelled" in again.stderr


@pytest.mark.parametrize("accepted", [Answer(200, {"job": JOB}), Answer(202), Answer(204, b"")])
def test_a_cancel_that_the_cloud_accepts_after_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, accepted: Answer
) -> None:
    ended = {**JOB, "status": "completed"}
    bodies = {"/v1/projects": {"projects": [PROJECT], "project": PROJECT}, "/v1/jobs": {"jobs": [ended]}}

    def answer(request: Request) -> Answer:
        return accepted if request.path.endswith("/cancel") else Answer(200, bodies.get(request.path, {"job": ended}))

    with HttpServer(answer) as server:
        monkeypatch.setenv("ARKOR_CLOUD_API_URL", server.url)
        write_credentials(AnonymousCredentials("t", "a", server.url, "o"))
        done = run("cancel", "j")
    assert done.returncode == 1
    assert "j has already ended: completed." in done.stderr
    assert "is being cancelled" not in done.stdout
    assert [request.path for request in server.requests if request.path.endswith("/cancel")] == ["/v1/jobs/j/cancel"]
