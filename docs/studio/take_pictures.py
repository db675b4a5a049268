"""Take the screenshots of Studio for the documentation, of two real runs: `python docs/studio/take_pictures.py`.

Needs Chromium and takes about four minutes. Each screenshot is saved in this folder with a light and a dark theme.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
SIZE = {"width": 1280, "height": 800}
PHONE = {"width": 380, "height": 760}

TRAIN = """
from pathlib import Path

from arkor import LoraConfig, Trainer

trainer = Trainer(
    name="{name}",
    model="smollm2-135m-instruct",
    dataset={{"type": "file", "path": str(Path(__file__).parent / "data/train.jsonl")}},
    lora=LoraConfig(r={r}, alpha={r}),
    max_steps=40,
    learning_rate={rate},
    batch_size=4,
    save_steps=10,
    eval_steps=10,
    dataset_split={{"eval": 0.02}},
)
"""


@contextmanager
def studio(folder: Path) -> Iterator[str]:
    """Run `arkor dev` in this folder and yield its URL."""
    command = [sys.executable, "-m", "arkor", "dev", "--port", "0"]
    process = subprocess.Popen(  # noqa: S603 - a constant command
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield process.stdout.readline().split()[-1] if process.stdout else ""
    finally:
        process.terminate()
        process.wait()
        backend = json.loads((Path(os.environ["ARKOR_HOME"]) / "backend.json").read_text())
        os.kill(backend["pid"], signal.SIGTERM)  # the backend is idle
        time.sleep(5)


def settle(page: Page, path: str = "") -> None:
    """Open the path, if any, and wait until requests and animations have ended."""
    if path:
        page.goto(path)
    page.locator("main:not([aria-busy])").wait_for()
    page.wait_for_timeout(1500)


def shoot(page: Page, name: str) -> None:
    """Save a screenshot of the page with each theme."""
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_timeout(400)
        page.screenshot(path=HERE / f"{name}-{theme}.png")


def train(page: Page, base: str, folder: Path, *, pictures: bool, **settings: Any) -> str:
    """Start a run from the page and wait for its end. Return the run's id."""
    (folder / "train.py").write_text(TRAIN.format(**settings))
    settle(page, base)
    page.get_by_role("button", name="Run training").click()
    page.get_by_role("link", name="Open the run").click()
    job = page.url.rsplit("/", 1)[1]
    wait_for(page, r"^(2[4-9]|3\d) /")
    if pictures:
        shoot(page, "run")
        settle(page, base)
        shoot(page, "overview")
        settle(page, f"{base}/runs/{job}")
    wait_for(page, r"^40 /")
    page.locator("#run-head .status[data-status=completed]").wait_for(timeout=60_000)
    return job


def wait_for(page: Page, step: str) -> None:
    """Wait until the page of a run shows a step that matches the pattern."""
    deadline = time.monotonic() + 300
    while not re.match(step, page.locator("[data-fact=step]").inner_text()):
        if time.monotonic() > deadline:
            raise TimeoutError(page.locator("[data-fact=step]").inner_text())
        page.wait_for_timeout(100)


def converse(page: Page, base: str, folder: Path, job: str) -> None:
    """Send tickets to the tuned model and to its base model, and take the screenshot of the playground."""
    settle(page, f"{base}/playground?run={job}&run2={job}&step2=base")
    page.get_by_label("System prompt").fill(system_prompt(folder))
    page.get_by_label("Max tokens").fill("20")  # so that two answers of each model fit on the page
    ask(page, "Hello")  # loads the model
    page.get_by_role("button", name="Clear").click()
    page.mouse.move(0, 0)
    for ticket in ("I can't log in, it says my password is wrong", "You charged my card twice this month"):
        ask(page, ticket)
    shoot(page, "playground")


def ask(page: Page, text: str) -> None:
    """Send a message and wait for both answers."""
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="Send").wait_for(timeout=120_000)


def system_prompt(folder: Path) -> str:
    """Return the system prompt of the training rows."""
    row = json.loads((folder / "data" / "train.jsonl").read_text().splitlines()[0])
    return next((message["content"] for message in row["messages"] if message["role"] == "system"), "")


def publish(page: Page, base: str, job: str) -> None:
    """Create an endpoint for the tuned model and take its screenshot."""
    settle(page, f"{base}/endpoints/new?run={job}")
    page.get_by_label("Name", exact=True).fill("triage")
    page.get_by_role("button", name="Publish").click()
    page.get_by_label("Label of a new key").fill("help desk")
    page.get_by_role("button", name="Create a key").click()
    page.get_by_role("button", name="Done").click()
    page.locator(".new-key").wait_for(state="detached")
    shoot(page, "endpoint")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        os.environ["HOME"], os.environ["ARKOR_HOME"] = scratch, f"{scratch}/.arkor"
        folder = Path(scratch) / "support-desk"
        command = [sys.executable, "-m", "arkor", "init", str(folder), "--template", "triage"]
        subprocess.run(command, check=True)  # noqa: S603 - a constant command
        page = browser.new_page(viewport=SIZE)
        with studio(folder) as address:
            base = address.split("/#")[0]
            page.goto(address)
            first = train(page, base, folder, pictures=False, name="triage", r=8, rate=3e-4)
            second = train(page, base, folder, pictures=True, name="triage-r16", r=16, rate=1e-3)
            settle(page, f"{base}/runs")
            shoot(page, "runs")
            settle(page, f"{base}/compare?run={first}&run={second}")
            shoot(page, "compare")
            converse(page, base, folder, second)
            publish(page, base, second)
            page.set_viewport_size(PHONE)
            settle(page, f"{base}/runs/{second}")
            shoot(page, "phone")
        browser.close()


if __name__ == "__main__":
    main()
