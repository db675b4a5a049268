"""A real `arkor dev` with a real backend, whose runs are scripted; and a browser if one is installed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from attrs import frozen

from arkor.client.api import CloudApiClient
from arkor.client.connect import connect
from arkor.protocol.jobs import JobConfig
from arkor.studio.security import TOKEN_HEADER
from tests import browsers
from tests.conftest import Backend, start_backend, stop_backend
from tests.fakes.forkserver import ForkedProcess

ENTRY = """
from arkor import LoraConfig, Trainer

trainer = Trainer(
    name="support-bot",
    model="org/small-model",
    dataset={"type": "file", "path": "tickets.jsonl"},
    lora=LoraConfig(r=16, alpha=16),
    max_steps=12,
)
"""
ROW = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'


@frozen
class Studio:
    """A running `arkor dev`: its URL without the token, the token, the project, the process."""

    url: str
    token: str
    folder: Path
    process: ForkedProcess

    @property
    def port(self) -> str:
        return self.url.rsplit(":", 1)[1]

    def call(self, method: str, path: str, headers: dict[str, str] | None = None, **rest: Any) -> requests.Response:
        """Send a request with the token, as the page does."""
        headers = {TOKEN_HEADER: self.token, **(headers or {})}
        return requests.request(method, self.url + path, headers=headers, timeout=30, allow_redirects=False, **rest)

    def get(self, path: str, **rest: Any) -> requests.Response:
        return self.call("GET", path, **rest)

    def post(self, path: str, **rest: Any) -> requests.Response:
        return self.call("POST", path, **rest)

    def stop(self) -> None:
        """Stop it like Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(10)


def start_studio(folder: Path, *arguments: str, home: Path | None = None) -> Studio:
    """Start `arkor dev` in that folder, by default on a free port, and wait until it prints its URL."""
    output, log = folder / "studio.out", folder / "studio.log"
    for file in (output, log):
        file.write_bytes(b"")
    environment = {**os.environ, **({"ARKOR_HOME": str(home)} if home else {})}
    command = ("dev", *(arguments or ("--port", "0")))
    process = ForkedProcess("arkor", command, folder, (Path(os.devnull), output, log), environment)
    while not (line := output.read_text()).endswith("\n"):
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    url, token = line.split()[-1].split("/#token=")
    return Studio(url, token, folder, process)


def write_project(folder: Path) -> Path:
    """Write a project with a trainer."""
    folder.mkdir()
    (folder / "train.py").write_text(ENTRY)
    (folder / "tickets.jsonl").write_text(ROW * 3)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path / "my-project")


@pytest.fixture(scope="module")
def module_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Studio, Backend]]:
    """Studio and its backend, shared by the tests of a module that clean up after themselves."""
    folder = tmp_path_factory.mktemp("studio")
    backend = start_backend(folder / "arkor-home", "--engine", "scripted")
    started = start_studio(write_project(folder / "my-project"), home=backend.home)
    yield started, backend
    started.process.kill()
    started.process.wait()
    stop_backend(backend.home)
    backend.process.wait()


@pytest.fixture
def studio_env(module_studio: tuple[Studio, Backend], monkeypatch: pytest.MonkeyPatch) -> Studio:
    """The shared Studio, with `ARKOR_HOME` set for the test."""
    started, backend = module_studio
    monkeypatch.setenv("ARKOR_HOME", str(backend.home))
    return started


@pytest.fixture
def studio(backend: Backend, project: Path) -> Iterator[Studio]:
    """Studio with a backend whose runs take no time."""
    started = start_studio(project)
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture
def slow_studio(slow_backend: Backend, project: Path) -> Iterator[Studio]:
    """Studio with a backend whose steps take a tenth of a second."""
    started = start_studio(project)
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[CloudApiClient]:
    """The backend of this test's Studio."""
    present = [name for name in ("shared_studio", "slow_backend", "backend") if name in request.fixturenames]
    request.getfixturevalue(present[0] if present else "backend")
    found = connect()
    yield found
    found.close()


def submit(client: CloudApiClient, name: str = "a run", **config: Any) -> str:
    """Submit a run of the scripted engine and return its id."""
    source = {"type": "blob", "url": "https://example.com/rows.jsonl"}
    config.setdefault("model", "org/small-model")
    return client.create_job(name, JobConfig(dataset_source=source, **config)).id


def until(client: CloudApiClient, job_id: str, *statuses: str, seconds: float = 60) -> None:
    """Wait until the run has one of these statuses."""
    deadline = time.monotonic() + seconds
    while client.get_job(job_id).status not in statuses:
        assert time.monotonic() < deadline, client.get_job(job_id)
        time.sleep(0.05)


@pytest.fixture(scope="package")
def chromium(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A browser, shared by the tests of this folder; it runs an event loop in this thread."""
    path = browsers.require(request.config)
    from playwright import sync_api as playwright  # noqa: PLC0415 - for those tests alone

    os.environ.setdefault("NODE_NO_WARNINGS", "1")
    playwright.expect.set_options(timeout=30_000)  # milliseconds; the machine may be busy
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=browsers.ARGUMENTS)
        yield opened
        opened.close()


class Tab:
    """A page of the browser, with its errors and requests."""

    def __init__(self, page: Any, studio: Studio) -> None:
        self.page = page
        self.studio = studio
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on(
            "console",
            lambda output: self.complaints.append(output.text) if output.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: str = "/") -> Any:
        """Open a page; the first URL has the token, as the printed one."""
        token = "" if self.requests else f"#token={self.studio.token}"
        self.page.goto(f"{self.studio.url}{path}{token}")
        self.page.locator("main:not([aria-busy])").wait_for()
        return self.page


@pytest.fixture
def new_tab(chromium: Any) -> Iterator[Callable[..., Tab]]:
    """Open tabs; at the end, none may have an error or a request to another host."""
    contexts, tabs = [], []

    def make(studio: Studio, *, width: int = 1280, theme: str = "light") -> Tab:
        context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
        context.set_default_timeout(30_000)
        contexts.append(context)
        tabs.append(Tab(context.new_page(), studio))
        return tabs[-1]

    yield make
    for tab in tabs:
        foreign = [url for url in tab.requests if not url.startswith((tab.studio.url, "blob:"))]
        assert not tab.complaints
        assert not foreign
    for context in contexts:
        context.close()
