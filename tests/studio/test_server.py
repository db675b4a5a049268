"""`arkor dev` as a process: what it prints, how it opens a browser, how it ends."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from arkor.client.api import CloudApiClient
from arkor.studio.security import TOKEN_HEADER
from tests.conftest import Backend
from tests.studio.conftest import Studio, start_studio, submit, until

BROWSER = """#!{python}
import os, sys, time
open({seen!r}, "w").write(" ".join(sys.argv[1:]))
"""


def test_open_shows_the_token_to_nobody_else(
    backend: Backend, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, browser = tmp_path / "seen", tmp_path / "browser"
    browser.write_text(BROWSER.format(python=sys.executable, seen=str(seen)))
    browser.chmod(0o700)
    monkeypatch.setenv("BROWSER", str(browser))
    studio = start_studio(project, "--port", "0", "--open")
    deadline = time.monotonic() + 30
    while not seen.exists() or not seen.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    command_line = seen.read_text()
    assert studio.token not in command_line
    page = Path(command_line.removeprefix("file://"))
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert f"{studio.url}/#token={studio.token}" in page.read_text()
    studio.stop()
    assert not page.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_even_while_somebody_watches(
    slow_studio: Studio, client: CloudApiClient, number: signal.Signals
) -> None:
    job = submit(client, max_steps=100_000)
    until(client, job, "running")
    headers = {TOKEN_HEADER: slow_studio.token}
    with requests.get(f"{slow_studio.url}/streams/runs/{job}", headers=headers, stream=True, timeout=20):
        slow_studio.process.send_signal(number)
        slow_studio.process.wait(30)
    assert "Traceback" not in (slow_studio.folder / "studio.log").read_text()
    assert client.get_job(job).status == "running"
    client.cancel_job(job)


def test_where_no_backend_can_be_reached_the_pages_say_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARKOR_CLOUD_API_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("ARKOR_TOKEN", "secret-of-mine")
    studio = start_studio(project)
    for path in ("/parts/latest", "/parts/runs", "/runs/x", "/compare?run=x", "/parts/identity?long=1"):
        answer = studio.get(path)
        assert answer.status_code == 502, path
        assert "The backend cannot be reached" in answer.text
        assert "127.0.0.1:9" in answer.text
        assert "secret-of-mine" not in answer.text
    assert studio.get("/streams/runs/x").status_code == 502
    assert studio.get("/").status_code == 200
    assert "support-bot" in studio.get("/parts/trainer").text
    studio.stop()


def test_without_its_packages_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'jinja2' else find(name, *rest)\n"
        "from arkor.cli.main import main; sys.argv = ['arkor', 'dev']; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert 'Studio needs jinja2: pip install "arkor[studio]"' in ended.stderr
