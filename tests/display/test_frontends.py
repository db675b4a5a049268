"""The output of cells in the themes of several notebooks: contrast, width, and hostile names and errors.

The themes come from the front ends' documentation and style sheets; the front ends themselves do
not run here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from arkor.charts.svg import loss_image
from arkor.display.notebook import NotebookProgress
from arkor.display.run_progress import RunProgress
from arkor.protocol.codec import from_wire
from arkor.protocol.events import TrainingFailedEvent, TrainingWarning
from arkor.protocol.jobs import TrainingJob
from arkor.results.check import Check
from arkor.results.history import History
from arkor.results.html_cards import job_card, text_card
from tests import browsers
from tests.fakes.scripted_run import at, scripted_run
from tests.results.test_html_cards import JOB

pytestmark = pytest.mark.slow  # a browser

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
RIGHT_TO_LEFT = "روبوت الدعم \u202e12"

VSCODE = """
    body { color: var(--ink); font: 13px sans-serif; margin: 0 20px }
    img { max-width: 100%; max-height: 100% }
    table, tr, td { border: none !important; text-align: right; vertical-align: middle }
    td { padding: 4px 8px }
    tr:nth-child(even) { background-color: rgba(130, 130, 130, .08) }
"""
CLASSIC = """
    body { color: #000; font: 14px/1.43 sans-serif }
    table { margin: auto; table-layout: fixed; font-size: 12px; border-collapse: collapse }
    td { text-align: right; white-space: normal; padding: .5em; max-width: none }
    tr:nth-child(odd) { background: #f5f5f5 }
    img { display: block; max-width: 100%; margin: 1em auto 0 }
"""
PAPERS = {
    "VS Code, light": ("#ffffff", f"<style>{VSCODE}</style><body class=vscode-light style='--ink:#3b3b3b'>"),
    "VS Code, dark": ("#1f1f1f", f"<style>{VSCODE}</style><body class=vscode-dark style='--ink:#cccccc'>"),
    "VS Code, high contrast": ("#000000", f"<style>{VSCODE}</style><body style='--ink:#ffffff'>"),
    "Colab, light": ("#ffffff", "<body style='color:#212121;font-family:Roboto,sans-serif'>"),
    "Colab, dark": ("#383838", "<body style='color:#d5d5d5;font-family:Roboto,sans-serif'>"),
    "classic": ("#ffffff", f"<style>{CLASSIC}</style><body>"),
    "JupyterLab, dark": ("#111111", "<body style='color:rgba(255,255,255,.87);font:13px sans-serif'>"),
}

#: The contrast of each text with the background, 1 to 21, including the opacity of all ancestors.
CONTRASTS = """
() => {
  const light = (rgb) => { const [r, g, b] = rgb.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
                           return .2126 * r + .7152 * g + .0722 * b };
  const parse = (text) => { const v = text.match(/[\\d.]+/g).map(Number); return [v.slice(0, 3), v.length > 3 ? v[3] : 1] };
  const over = (top, share, below) => top.map((v, n) => v * share + below[n] * (1 - share));
  const paper = parse(getComputedStyle(document.documentElement).backgroundColor)[0];
  const found = {};
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const words = walk.currentNode.textContent.trim(), holder = walk.currentNode.parentElement;
    if (!words || words === "●" || holder.tagName === "STYLE") continue;
    let [ink, share] = parse(getComputedStyle(holder).color);
    for (let e = holder; e; e = e.parentElement) share *= Number(getComputedStyle(e).opacity);
    const [a, b] = [light(over(ink, share, paper)), light(paper)].sort((x, y) => y - x);
    found[words.slice(0, 40)] = (a + .05) / (b + .05);
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A browser for this module only: its event loop on this thread would break a kernel's client."""
    path = browsers.require(request.config)
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=browsers.ARGUMENTS)
        yield opened
        opened.close()


def cells() -> list[str]:
    """Return the HTML of cells: a failed run, cards with plain and hostile content, answers, a chart, a check."""

    class Cell(NotebookProgress):
        page = ""

        def _publish(self, line: str, page: str) -> None:
            self.page = page

    with Cell(RunProgress(RIGHT_TO_LEFT + "x" * 200, 60), History(), "j-1") as cell:
        for event in scripted_run(20, 60):
            cell.on_event(event)
        cell.on_event(TrainingWarning("j", at(21), HOSTILE))
        cell.on_event(TrainingFailedEvent("j", at(22), "y" * 400))
    jobs = [
        {},
        {"name": HOSTILE, "error": f"{HOSTILE}\nits second line " + "long " * 300, "status": "failed"},
        {"name": RIGHT_TO_LEFT, "error": RIGHT_TO_LEFT, "id": "x" * 300, "status": "running"},
    ]
    check = from_wire(Check, {"problems": ["x" * 300, HOSTILE], "notes": ["read on"], "problemCount": 9})
    history = History()
    history.add(1, 2.0, 1.0)
    return [
        cell.page,
        *(job_card(from_wire(TrainingJob, {**JOB, **changes})) for changes in jobs),
        text_card("z" * 300 + HOSTILE, "ended: stop"),
        text_card(RIGHT_TO_LEFT, "ended: stop"),
        loss_image(*history.curves()),
        check._repr_html_(),
    ]


@pytest.fixture(params=PAPERS)
def paper(request: pytest.FixtureRequest, browser: Any) -> Iterator[Any]:
    """A sandboxed frame of another origin with our cells, as in Colab and VS Code."""
    background, head = PAPERS[request.param]
    page = browser.new_page(viewport={"width": 500, "height": 800})
    alarms: list[str] = []
    page.on("dialog", lambda dialog: alarms.append(dialog.message))
    inner = f"<!doctype html><html style='background:{background}'>{head}" + "".join(
        f"<div>{cell}</div>" for cell in cells()
    )
    page.set_content('<iframe sandbox="allow-scripts" style="border:0;width:480px;height:700px"></iframe>')
    page.locator("iframe").evaluate("(frame, inner) => frame.srcdoc = inner", inner)
    page.frame_locator("iframe").get_by_text("read on").wait_for()
    yield page.frames[1]
    page.close()
    assert not alarms


def test_a_cell_is_legible_on_any_paper_and_stays_within_it(paper: Any) -> None:
    contrasts = paper.evaluate(CONTRASTS)
    assert {"support-bot", "error", "failed", "ended: stop"} <= set(contrasts)
    assert {words: ratio for words, ratio in contrasts.items() if ratio < 4.5} == {}
    width, room = paper.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= room
    charts = paper.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert charts == [640, 640]
    assert paper.evaluate("document.scripts.length") == 0


def test_on_a_card_names_keep_to_their_line_and_strangers_to_their_place(paper: Any) -> None:
    rows = paper.evaluate(
        "[...document.querySelectorAll('td:first-child')].map(cell => {"
        " const words = document.createRange(); words.selectNodeContents(cell);"
        " return [cell.textContent, words.getClientRects().length, getComputedStyle(cell).textAlign] })"
    )
    assert {(lines, side) for _, lines, side in rows} == {(1, "left")}
    assert {name for name, _, _ in rows} >= {"id", "error", "settings", "submitted"}
    name, status = paper.evaluate(
        "[...[...document.querySelectorAll('b > bdi')].at(-1).parentElement.parentElement.querySelectorAll('bdi')]"
        ".map(words => words.getBoundingClientRect().left)"
    )
    assert name < status
    shown = paper.evaluate("document.body.innerText").split("\n")
    assert any(line.startswith("its second line long") for line in shown)
