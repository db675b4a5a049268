"""Rules for every command: JSON output, colours only in terminals, no tracebacks."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import ARKOR, Run, WriteEntry
from tests.conftest import Backend

pytestmark = pytest.mark.slow  # every test starts processes of its own


def test_start_for_a_program(backend_env: Backend, run: Run, write_entry_point: WriteEntry) -> None:
    write_entry_point(before="print('imported')\n", arguments=", callbacks={'on_log': lambda log: print('a step')}")
    done = run("start", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["job"]["status"] == "completed"
    assert [artifact["kind"] for artifact in report["artifacts"]][-1] == "final"
    assert "imported" in done.stderr
    assert "a step" in done.stderr


def test_a_failed_run_for_a_program(backend_env: Backend, run: Run, write_entry_point: WriteEntry) -> None:
    write_entry_point(model="scripted/fail")
    done = run("start", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["job"]["status"]) == (1, "failed")
    assert report["job"]["error"]


def test_a_copy_for_a_program(run: Run, finished: str, project: Path) -> None:
    report = json.loads(run("export-run", finished, "-o", "run.zip", "--json").stdout)
    assert report == {"id": finished, "file": "run.zip", "bytes": (project / "run.zip").stat().st_size}
    assert json.loads(run("import", "run.zip", "--json").stdout)["id"] == finished


ALL = [
    ["jobs", "--json"],
    ["logs", "RUN", "--json"],
    ["cancel", "RUN", "--json"],
    ["whoami", "--json"],
    ["endpoints", "list", "--json"],
    ["endpoints", "keys", "list", "nobody", "--json"],
    ["endpoints", "create", "www", "--base-model", "m", "--json"],
    ["import", ".", "--json"],
]


def test_an_error_for_a_program_is_one_sentence_on_stderr(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", "http://127.0.0.1:1")
    for command in ALL[:6]:
        if command[0] != "whoami":  # which does not need the backend without a sign-in
            done = run(*command)
            *waiting, last = done.stderr.splitlines()
            assert (done.returncode, done.stdout) == (2, ""), command
            assert last.startswith("http://127.0.0.1:1 cannot be reached")
            assert all("trying again in" in line for line in waiting)


@pytest.mark.parametrize("command", ALL)
def test_json_is_the_same_on_a_terminal_that_knows_ascii_alone(
    run: Run, run_anew: Run, finished: str, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [finished if word == "RUN" else word for word in command]
    plain = run(*command)
    for name, value in {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}.items():
        monkeypatch.setenv(name, value)
    narrow = run_anew(*command)
    assert narrow.returncode == plain.returncode
    assert [json.loads(line) for line in narrow.stdout.splitlines()] if command[0] == "logs" else True
    if plain.stdout and command[0] != "logs":
        assert json.loads(narrow.stdout) == json.loads(plain.stdout)
    assert "Traceback" not in plain.stderr + narrow.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["logs", b"\xff\xfe"],
        ["cancel", b"\xff"],
        ["chat", b"\xff", "-m", "x"],
        ["endpoints", "delete", b"\xff"],
        ["endpoints", "create", "abc", "--base-model", b"\xff"],
        ["endpoints", "create", "abc", "--run", b"\xff@1"],
        ["start", b"\xff.py"],
        ["import", b"\xff.zip"],
        ["login", "--anonymous", "--url", b"http://\xff"],
        ["login", "--anonymous", "--url", "http://a..b"],
        ["login", "--anonymous", "--url", "http://x y"],
        ["jobs", "-n", "0"],
        ["no-such-command"],
    ],
)
def test_whatever_is_typed_there_is_no_traceback(
    backend_env: Backend, project: Path, command: list[str | bytes]
) -> None:
    done = subprocess.run([*ARKOR, *command], cwd=project, capture_output=True, timeout=60, check=False)
    output = done.stderr.decode("utf-8", "replace")
    assert (done.returncode, "Traceback" in output) == (2, False), output
    assert output.strip()


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "</dev/null", "<&-"])
def test_streams_that_are_closed(backend_env: Backend, project: Path, redirection: str) -> None:
    command = f"{' '.join(ARKOR)} whoami {redirection}"
    done = subprocess.run(["/bin/sh", "-c", command], cwd=project, capture_output=True, timeout=60, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr


def test_a_full_disk_is_a_sentence(finished: str, project: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*ARKOR, "jobs"], cwd=project, stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 2
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours(finished: str, project: Path, environment: dict[str, str], coloured: bool) -> None:
    keyboard, terminal = pty.openpty()
    surroundings = {**os.environ, "TERM": "xterm", **environment}
    surroundings = {name: value for name, value in surroundings.items() if name != "NO_COLOR" or name in environment}
    try:
        done = subprocess.run([*ARKOR, "jobs"], cwd=project, stdout=terminal, env=surroundings, timeout=60, check=False)
        shown = os.read(keyboard, 100_000)
    finally:
        os.close(terminal)
        os.close(keyboard)
    assert done.returncode == 0
    assert finished.encode() in shown
    assert (b"\x1b[" in shown) == coloured
