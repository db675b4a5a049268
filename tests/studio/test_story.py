"""Studio from start to end: train a real model, chat with it meanwhile, publish it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from playwright.sync_api import expect

from tests.fakes.tiny_model import make_tiny_model
from tests.studio.conftest import Studio, Tab, start_studio

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

ENTRY = """
from arkor import LoraConfig, Trainer

trainer = Trainer(
    name="{name}",
    model="{model}",
    dataset={{"type": "file", "path": "tickets.jsonl"}},
    lora=LoraConfig(r=8, alpha=16),
    max_steps={steps},
    save_steps=20,
    logging_steps=1,
    learning_rate=2e-2,
    batch_size=2,
)
"""
TICKETS = {"My card was charged twice": "billing", "I cannot log in": "account", "The app crashes on start": "bug"}
TICKET = "I cannot log in"
MODEL = "tiny"
LONG, SHORT = 20_000, 3  # steps: longer than the test waits, and very few
ANSWERED = re.compile(r"^\d+ tokens? · .* prompt tokens")  # the note under a complete answer
TRAINING_MS = 120_000  # the limit for a step, a model load or an answer on a busy machine


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """Studio with a backend that it starts itself, and that trains a tiny model."""
    make_tiny_model(tmp_path / MODEL)
    folder = tmp_path / "help-desk"
    folder.mkdir()
    rows = [
        [{"role": "user", "content": payload}, {"role": "assistant", "content": output}]
        for payload, output in TICKETS.items()
    ]
    (folder / "tickets.jsonl").write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    write_entry(folder, "support-bot", LONG)
    started = start_studio(folder)
    yield started
    family = [psutil.Process(started.process.pid), *psutil.Process(started.process.pid).children(recursive=True)]
    for process in family:  # a process that watches a run would restart the backend
        process.kill()
    started.process.wait()


def write_entry(folder: Path, name: str, steps: int) -> None:
    (folder / "train.py").write_text(ENTRY.format(name=name, steps=steps, model=folder.parent / MODEL))


def test_from_a_script_to_an_endpoint(studio: Studio, new_tab: Callable[..., Tab]) -> None:
    tab = new_tab(studio)
    run = start_a_run(tab, "support-bot")
    watch_the_loss_fall(tab.page)
    chat_with_a_checkpoint(tab.page)
    cancel(tab, run)
    write_entry(studio.folder, "hasty-bot", SHORT)
    hasty = start_a_run(tab, "hasty-bot")
    tab.page.locator(".status[data-status=completed]").wait_for(timeout=TRAINING_MS)
    step, output = compare(tab, run, hasty)
    address, key = publish(tab, step)
    with openai.OpenAI(base_url=address, api_key=key, max_retries=0) as client:
        message: Any = {"role": "user", "content": TICKET}
        answer = client.chat.completions.create(model="help-desk", messages=[message])
    assert answer.choices[0].message.content == output
    tab.page.get_by_role("button", name="Done").click()
    expect(tab.page.get_by_role("region", name="Keys", exact=True)).not_to_contain_text("never")
    assert key not in tab.page.content()


def start_a_run(tab: Tab, name: str) -> str:
    """Start the script's run with the button, open its page, and return its id."""
    page = tab.open("/")
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    page.get_by_role("button", name="Run training").click()
    page.get_by_role("link", name="Open the run").click()
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    return str(page.url).rsplit("/", 1)[1]


def watch_the_loss_fall(page: Any) -> None:
    """Check the chart's description for screen readers, and the values at the arrow keys."""
    chart = page.get_by_role("group", name=re.compile("^Loss"))
    output = re.compile(r"loss: ([\d.]+) at step 1, ([\d.e-]+) at step (\d+)\.")
    expect(chart).to_have_attribute("aria-label", re.compile(r"at step ([3-9]\d|\d\d\d+)\."), timeout=TRAINING_MS)
    found = output.search(chart.get_attribute("aria-label"))
    assert found
    first, last = float(found[1]), float(found[2])
    assert last < first - 0.5
    readout = page.get_by_role("figure").filter(has=chart).locator("figcaption")
    chart.focus()
    points = []
    for step in (1, 2, 3):
        page.keyboard.press("ArrowRight")
        expect(readout).to_contain_text(f"step {step} ")
        points.append(float(readout.inner_text().split()[-1]))
    assert points[0] == pytest.approx(first)
    assert len(set(points)) == 3


def chat_with_a_checkpoint(page: Any) -> None:
    """Chat with the latest checkpoint of the active run; it stays selected when newer ones appear."""
    checkpoints = page.get_by_role("region", name="Checkpoints", exact=True)
    checkpoints.get_by_role("link", name=re.compile(r"^Chat with step \d+$")).first.click()
    weights = page.get_by_label("Model: checkpoint", exact=True)
    expect(weights).to_have_value(re.compile(r"^\d+$"))
    step = weights.input_value()
    page.get_by_label("Max tokens").fill("12")
    page.get_by_label("Your message").fill(TICKET)
    page.keyboard.press("Enter")
    expect(page.get_by_text(ANSWERED)).to_be_visible(timeout=TRAINING_MS)
    assert page.locator(".said").inner_text().strip()
    expect(weights).to_have_value(step)


def cancel(tab: Tab, run: str) -> None:
    page = tab.open(f"/runs/{run}")
    expect(page.get_by_role("heading", name="support-bot running")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the run").click()
    expect(page.get_by_role("heading", name="support-bot cancelled")).to_be_visible(timeout=TRAINING_MS)
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)
    kept = [folder.name for folder in Path(os.environ["ARKOR_HOME"], "runs", run, "checkpoints").glob("[0-9]*")]
    for step in kept:
        expect(page.get_by_role("link", name=f"Chat with step {step}", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name=re.compile(r"^Chat with step"))).to_have_count(len(kept))


def compare(tab: Tab, *runs: str) -> tuple[str, str]:
    """Compare both runs: losses in one chart, the different setting, an answer of each.

    Return the step of the cancelled run that has answered, and its answer.
    """
    page = tab.open("/runs")
    for name in ("support-bot", "hasty-bot"):
        page.get_by_label(f"Select {name}").check()
    page.get_by_role("link", name="Compare").click()
    chart = page.get_by_role("group", name=re.compile("^Loss.*support-bot: .*hasty-bot: .* at step 3"))
    expect(chart.locator("canvas")).to_be_visible()
    assert sorted(re.findall(r"run=([^&]+)", page.url)) == sorted(runs)
    differing = page.get_by_role("row").filter(has_text=str(LONG))
    expect(differing).to_have_count(1)
    expect(differing).to_contain_text("max_steps")
    page.get_by_label("Your message").fill(TICKET)
    page.keyboard.press("Enter")
    expect(page.get_by_text(ANSWERED)).to_have_count(2, timeout=TRAINING_MS)
    expect(page.get_by_role("heading", name="hasty-bot, final adapter")).to_be_visible()
    answer = page.get_by_role("article").filter(has_text="support-bot")
    step = answer.get_by_role("heading").inner_text().removeprefix("support-bot, step ")
    return step, answer.locator(".said").inner_text()


def publish(tab: Tab, step: str) -> tuple[str, str]:
    """Publish that checkpoint with a key; return its URL and the key, as the page shows them."""
    page = tab.open("/endpoints")
    page.get_by_role("link", name="Create an endpoint").click()
    page.get_by_role("button", name="Model: hasty-bot").click()  # the latest completed run
    page.get_by_role("dialog").get_by_role("button", name="support-bot").click()
    page.get_by_label("Model: checkpoint").select_option(step)
    page.get_by_label("Name", exact=True).fill("help-desk")
    page.get_by_role("button", name="Publish").click()
    expect(page.get_by_role("heading", name="help-desk enabled")).to_be_visible()
    expect(page.get_by_text(f"support-bot, step {step}")).to_be_visible()
    page.get_by_label("Label of a new key").fill("laptop")
    page.get_by_role("button", name="Create a key").click()
    shown = page.get_by_role("status", name="The new key").locator("code")
    expect(shown).to_have_text(re.compile("^ark_live_"))
    code = page.get_by_role("region", name="Python").inner_text()
    address = re.search(r'base_url="([^"]+)"', code)
    assert address
    assert shown.inner_text() in code
    return address[1], shown.inner_text()
