"""The pages of Studio in a real browser, without internet access."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Error, expect

from arkor.client.api import CloudApiClient
from tests.studio.conftest import Studio, Tab, start_studio, submit, until

pytestmark = pytest.mark.slow

WEIGHT = 300_000  # bytes in total, uncompressed
NAME = "<img src=x onerror=alert(1)>"


# Access


def test_the_token_leaves_the_address_and_stays_in_the_browser(studio_env: Studio, new_tab: Callable[..., Tab]) -> None:
    tab = new_tab(studio_env)
    page = tab.open("/runs?q=x")
    assert page.url == f"{studio_env.url}/runs?q=x"
    expect(page.get_by_role("heading", name="Runs", exact=True)).to_be_visible()
    other = page.context.new_page()
    other.goto(f"{studio_env.url}/")
    expect(other.get_by_role("heading", name="my-project")).to_be_visible()
    assert not [url for url in tab.requests if studio_env.token in url.split("#")[0]]


def test_the_shown_trainer_follows_edits(studio: Studio, new_tab: Callable[..., Tab]) -> None:
    page = new_tab(studio).open()
    entry = studio.folder / "train.py"
    expect(page.locator("#trainer")).to_contain_text("org/small-model")
    assert studio.get("/parts/trainer?poll").status_code == 204
    text = entry.read_text()
    entry.write_text(text.replace("org/small-model", "org/edited-model"))
    expect(page.locator("#trainer")).to_contain_text("org/edited-model", timeout=20_000)
    entry.write_text(text.replace("max_steps", "max_step"))
    expect(page.locator("#trainer")).to_contain_text("did you mean 'max_steps'", timeout=20_000)
    entry.write_text(text)
    expect(page.locator("#trainer")).to_contain_text("org/small-model", timeout=20_000)


def test_without_it_studio_is_locked_until_it_is_pasted(studio_env: Studio, chromium: Any) -> None:
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{studio_env.url}/runs")
    expect(page.get_by_role("heading", name="Studio is locked")).to_be_visible()
    page.get_by_label("Or paste the URL").fill("x" * 43)
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_text("That is not the token of this launch.")).to_be_visible()
    page.get_by_label("Or paste the URL").fill(f"{studio_env.url}/#token={studio_env.token}")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_role("heading", name="Runs", exact=True)).to_be_visible()
    context.close()


# Overview


def test_overview_shows_the_trainer_and_runs_it(
    studio: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    page = new_tab(studio).open()
    expect(page.get_by_role("heading", name="support-bot")).to_be_visible()
    expect(page.locator("#trainer")).to_contain_text("org/small-model")
    page.get_by_role("button", name="Run training").dblclick()
    expect(page.locator(".console")).to_contain_text("support-bot: completed")
    expect(page.locator("#launch")).to_contain_text("ended")
    assert len(client.list_jobs()) == 1
    expect(page.locator("#latest")).to_contain_text("support-bot")
    page.get_by_role("button", name="Dry run").click()  # another click starts another run
    expect(page.locator("#launch")).to_contain_text("Dry run")
    expect(page.locator("#launch")).to_contain_text("ended")
    assert [job.config.dry_run for job in client.list_jobs()] == [True, None]
    page.get_by_role("link", name="Open the run").click()
    expect(page.get_by_role("heading", name="support-bot")).to_contain_text("completed")


def test_overview_shows_what_is_wrong_and_that_it_was_mended(studio: Studio, new_tab: Callable[..., Tab]) -> None:
    entry = studio.folder / "train.py"
    good = entry.read_text()
    entry.write_text(good.replace("max_steps", "max_step"))
    page = new_tab(studio).open()
    expect(page.locator("#trainer")).to_contain_text("train.py, line 4")
    expect(page.locator("#trainer")).to_contain_text("did you mean 'max_steps'?")
    expect(page.get_by_role("button", name="Run training")).to_have_count(0)
    entry.write_text(good)
    page.get_by_role("button", name="Reload").click()
    expect(page.get_by_role("button", name="Run training")).to_be_visible()


# Runs


def test_runs_are_searched_filtered_sorted_and_picked(
    studio: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    page = new_tab(studio).open("/runs")
    expect(page.get_by_role("heading", name="No runs yet")).to_be_visible()
    jobs = [submit(client, name, max_steps=n, eval_steps=1) for name, n in (("gamma", 3), ("alpha", 5), (NAME, 4))]
    failing = submit(client, "broken", model="scripted/fail")
    until(client, failing, "failed")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(4)  # it appears without a reload
    page.get_by_role("searchbox").fill("gam")
    expect(rows).to_have_count(1)
    expect(page).to_have_url(f"{studio.url}/runs?q=gam")
    page.get_by_role("searchbox").fill("")
    page.get_by_text("failed", exact=True).first.click()
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("broken")
    page.get_by_text("failed", exact=True).first.click()
    expect(rows).to_have_count(4)
    page.get_by_role("button", name="Step").click()
    expect(rows.first).to_contain_text("alpha")
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Step")
    page.get_by_label("Select gamma").check()
    page.get_by_label(f"Select {NAME}").check()
    page.wait_for_timeout(2500)  # the list is refreshed meanwhile
    expect(page.get_by_label("Select gamma")).to_be_checked()
    page.get_by_role("link", name="Compare").click()
    expect(page.get_by_role("heading", name="Compare")).to_be_visible()
    assert set(re.findall(r"run=(\w+)", page.url)) == {jobs[0], jobs[2]}
    expect(page.locator(".chart canvas")).to_have_count(2)
    expect(page.get_by_role("row", name="max_steps")).to_be_visible()
    expect(page.get_by_role("row", name="model")).to_be_hidden()
    page.get_by_text("Show equal settings").click()
    expect(page.get_by_role("row", name="model")).to_be_visible()


def test_runs_are_sorted_on_a_phone(studio: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]) -> None:
    for name, steps in (("gamma", 3), ("alpha", 5), ("beta", 4)):
        until(client, submit(client, name, max_steps=steps), "completed")
    page = new_tab(studio, width=380).open("/runs")
    names = page.locator("tbody .name")
    expect(names).to_have_text(["beta", "alpha", "gamma"])
    order = page.get_by_label("Order")
    order.select_option("Most steps first")
    expect(names).to_have_text(["alpha", "beta", "gamma"])
    expect(page).to_have_url(f"{studio.url}/runs?sort=step&order=desc")
    page.reload()
    expect(names).to_have_text(["alpha", "beta", "gamma"])
    expect(order).to_have_value("step desc")
    page.set_viewport_size({"width": 1280, "height": 800})
    page.get_by_role("button", name="Name").click()
    expect(names).to_have_text(["alpha", "beta", "gamma"])
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("Name")
    page.get_by_role("searchbox").fill("a")  # the order is kept
    expect(page).to_have_url(f"{studio.url}/runs?q=a&sort=name")


# Run


def test_a_run_is_seen_learning_and_cancelled(
    slow_studio: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    job = submit(client, NAME, max_steps=4000, save_steps=50, eval_steps=5, learning_rate=1e-3)
    page = new_tab(slow_studio).open(f"/runs/{job}")
    expect(page.get_by_role("heading", name=NAME)).to_be_visible()
    expect(page.locator(".chart canvas")).to_have_count(4)
    expect(page.locator("[data-checkpoints]")).to_contain_text("step 50")
    step = page.locator("[data-fact=step]")
    expect(step).not_to_have_text(step.inner_text())
    expect(page.get_by_role("link", name="Chat with step 50")).to_have_attribute(
        "href", f"/playground?run={job}&step=50"
    )
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Go back").click()
    assert client.get_job(job).status == "running"
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_timeout(6500)  # the page is refreshed every 3 s under the dialog
    page.get_by_role("button", name="Cancel the run").click()
    expect(page.locator("#run-head .status")).to_have_text("cancelled")
    expect(page.locator("[data-progress]")).to_have_attribute("data-end", "cancelled")
    assert client.get_job(job).status == "cancelled"


def test_the_tab_tells_how_far_a_run_is_even_while_nobody_looks(
    slow_studio: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    job = submit(client, NAME, max_steps=3000)
    page = new_tab(slow_studio).open(f"/runs/{job}")
    expect(page).to_have_title(re.compile(r"^\d+ % · <img"))
    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => true })")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(7000)  # it has closed its connection by then
    client.cancel_job(job)
    expect(page).to_have_title(f"Cancelled · {NAME}", timeout=60_000)


def test_only_the_checkpoints_that_are_kept_are_offered(
    slow_studio: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    job = submit(client, max_steps=600, save_steps=2)
    tab = new_tab(slow_studio)
    page = tab.open(f"/runs/{job}")
    expect(page.locator("[data-checkpoint-count]")).to_have_text(re.compile(r"^[2-4] kept of \d+$"))
    client.cancel_job(job)
    until(client, job, "cancelled")
    kept = client.get_job(job).checkpoints or ()
    assert kept
    for step in kept:
        expect(page.get_by_role("link", name=f"Chat with step {step}", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name=re.compile(r"^Chat with step"))).to_have_count(len(kept))
    page = tab.open(f"/playground?run={job}")
    options = page.get_by_label("Model: checkpoint", exact=True).locator("option")
    expect(options).to_have_text([f"Step {step}" for step in sorted(kept, reverse=True)] + ["Untrained"])


def test_few_evaluations_are_read_at_a_glance(
    studio: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    job = submit(client, max_steps=20, eval_steps=8)
    until(client, job, "completed")
    page = new_tab(studio).open(f"/runs/{job}")
    loss, evaluations = page.locator("figure").nth(0), page.locator("figure").nth(1)
    low = 2 * 0.9**16 * 1.1
    expect(evaluations.locator(".readout")).to_have_text(f"{low:.4f} lowest at step 16")
    expect(loss.locator(".readout")).to_contain_text(f"eval loss {low:.4f}")
    name = re.compile(r"^Loss\. loss: 1\.8000 at step 1, .* at step 20; eval loss: .* at step 8, .* at step 16\.")
    expect(page.get_by_role("group", name=name)).to_be_visible()


def test_a_run_that_failed_says_why_and_one_that_diverged_what_to_do(
    studio_env: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    failed, diverged = submit(client, model="scripted/fail"), submit(client, learning_rate=1e6, max_steps=5)
    until(client, diverged, "completed")
    tab = new_tab(studio_env)
    page = tab.open(f"/runs/{failed}")
    expect(page.get_by_role("alert").first).to_contain_text("This model fails by design; name another one.")
    expect(page.get_by_role("alert").first).to_contain_text(f"arkor logs {failed[:8]}")
    tab.open(f"/runs/{diverged}")
    expect(page.locator("[data-diverged]")).to_contain_text("Training has diverged at step 1")
    expect(page.locator("[data-fact=loss]")).to_have_text("NaN")


def test_the_numbers_and_the_charts_can_be_taken_away(
    studio_env: Studio, client: CloudApiClient, new_tab: Callable[..., Tab], tmp_path: Path
) -> None:
    job = submit(client, "a run / of mine", max_steps=50, eval_steps=25)
    until(client, job, "completed")
    page = new_tab(studio_env).open(f"/runs/{job}")
    expect(page.locator("[data-fact=step]")).to_have_text("50 / 50")
    with page.expect_download() as csv:
        page.get_by_role("button", name="CSV").click()
    rows = Path(csv.value.path()).read_text().splitlines()
    assert csv.value.suggested_filename == f"a-run-of-mine-{job[:8]}.csv"
    assert rows[0] == "step,timestamp,loss,eval_loss,learning_rate,epoch,samples_per_second"
    assert len(rows) == 1 + 50 + 2
    assert float(rows[1].split(",")[2]) == 1.8
    with page.expect_download() as png:
        page.get_by_role("button", name="PNG").click()
    assert Path(png.value.path()).read_bytes().startswith(b"\x89PNG")


def test_charts_are_zoomed_read_and_smoothed_by_keyboard(
    studio_env: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    job = submit(client, max_steps=60)
    until(client, job, "completed")
    page = new_tab(studio_env).open(f"/runs/{job}")
    chart = page.locator(".chart").first
    plot = chart.locator(".plot")
    expect(plot).to_have_attribute("aria-label", re.compile(r"Loss\. loss: 1\.8000 at step 1, .* at step 60"))
    plot.focus()
    plot.press("ArrowRight")
    expect(chart.locator(".readout")).to_contain_text("step 1 ")
    plot.press("ArrowRight")
    expect(chart.locator(".readout")).to_contain_text("step 2 ")
    plot.press("+")
    plot.press("ArrowRight")
    plot.press("0")
    before = chart.locator("canvas").screenshot()
    page.get_by_label("Log scale").check()
    page.wait_for_timeout(200)
    assert chart.locator("canvas").screenshot() != before


def test_the_step_that_is_read_stays_while_the_run_goes_on(
    slow_studio: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    job = submit(client, max_steps=300)
    page = new_tab(slow_studio).open(f"/runs/{job}")
    chart = page.locator(".chart").first
    plot, readout = chart.locator(".plot"), chart.locator(".readout")
    expect(plot).to_have_attribute("aria-label", re.compile(r"at step ([4-9]|\d\d+)\."))
    plot.focus()
    for _ in range(2):
        plot.press("ArrowRight")
    expect(readout).to_contain_text("step 2 ")
    expect(plot).to_have_attribute("aria-label", re.compile(r"at step (4[1-9]|[5-9]\d|\d\d\d)\."))  # drawn twice more
    page.wait_for_timeout(300)
    assert "step 2 " in readout.inner_text()
    plot.press("ArrowRight")
    expect(readout).to_contain_text("step 3 ")
    client.cancel_job(job)


# Interruptions


def test_studio_stops_and_comes_back(slow_studio: Studio, client: CloudApiClient, chromium: Any) -> None:
    job = submit(client, max_steps=60)
    context = chromium.new_context()
    page = Tab(context.new_page(), slow_studio).open(f"/runs/{job}")
    expect(page.locator("[data-fact=step]")).to_contain_text(re.compile(r"^\d\d? /"))
    slow_studio.stop()
    expect(page.get_by_text("Studio has stopped.")).to_be_visible()
    again = start_studio(slow_studio.folder, "--port", slow_studio.port)
    expect(page.get_by_role("heading", name="Studio is locked")).to_be_visible()
    page.goto(f"{again.url}/runs/{job}#token={again.token}")
    expect(page.locator("[data-fact=step]")).to_have_text("60 / 60")
    with page.expect_download() as csv:
        page.get_by_role("button", name="CSV").click()
    steps = [int(line.split(",")[0]) for line in Path(csv.value.path()).read_text().splitlines()[1:]]
    assert steps == list(range(1, 61))
    context.close()
    again.stop()


def test_the_network_goes_and_no_event_is_lost(slow_studio: Studio, client: CloudApiClient, chromium: Any) -> None:
    job = submit(client, max_steps=70)
    context = chromium.new_context()
    page = Tab(context.new_page(), slow_studio).open(f"/runs/{job}")
    expect(page.locator("[data-fact=step]")).to_contain_text(re.compile(r"^\d\d? /"))
    context.set_offline(True)
    page.wait_for_timeout(2000)
    context.set_offline(False)
    expect(page.locator("[data-fact=step]")).to_have_text("70 / 70")
    with page.expect_download() as csv:
        page.get_by_role("button", name="CSV").click()
    steps = [int(line.split(",")[0]) for line in Path(csv.value.path()).read_text().splitlines()[1:]]
    assert steps == list(range(1, 71))
    context.close()


def test_a_laptop_sleeps_and_no_event_is_lost(slow_studio: Studio, client: CloudApiClient, chromium: Any) -> None:
    job = submit(client, max_steps=80)
    context = chromium.new_context()
    page = Tab(context.new_page(), slow_studio).open(f"/runs/{job}")
    expect(page.locator("[data-fact=step]")).to_contain_text(re.compile(r"^\d\d? /"))
    devtools = context.new_cdp_session(page)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    until(client, job, "completed")
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    expect(page.locator("[data-fact=step]")).to_have_text("80 / 80")
    with page.expect_download() as csv:
        page.get_by_role("button", name="CSV").click()
    steps = [int(line.split(",")[0]) for line in Path(csv.value.path()).read_text().splitlines()[1:]]
    assert steps == list(range(1, 81))
    context.close()


def test_eight_tabs_on_one_run_all_see_it(
    slow_studio: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    job = submit(client, max_steps=60)
    first = new_tab(slow_studio).open(f"/runs/{job}")
    tabs = [first, *(first.context.new_page() for _ in range(7))]
    for tab in tabs[1:]:
        tab.goto(f"{slow_studio.url}/runs/{job}")
    for tab in tabs:
        expect(tab.locator("[data-fact=step]")).to_have_text("60 / 60")


# Every page


PLACES = ["/", "/runs", "/runs/{job}", "/runs/{failed}", "/compare?run={job}&run={failed}", "/compare"]


@pytest.fixture
def places(studio_env: Studio, client: CloudApiClient) -> list[str]:
    """Pages with content."""
    job = submit(
        client, "a name that is longer than a column of a table has room for, by far", max_steps=60, eval_steps=5
    )
    failed = submit(client, model="scripted/fail")
    until(client, failed, "failed")
    return [place.format(job=job, failed=failed) for place in PLACES]


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 380)])
def test_axe_finds_no_fault(
    studio_env: Studio, places: list[str], new_tab: Callable[..., Tab], theme: str, width: int
) -> None:
    axe = Axe()
    tab = new_tab(studio_env, width=width, theme=theme)
    for place in places:
        page = tab.open(place)
        page.wait_for_timeout(700)
        found = axe.run(page).response["violations"]
        assert not [(item["id"], [node["html"] for node in item["nodes"]]) for item in found], place


def test_nothing_is_wider_than_a_phone(studio_env: Studio, places: list[str], new_tab: Callable[..., Tab]) -> None:
    tab = new_tab(studio_env, width=380)
    for place in places:
        page = tab.open(place)
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380, place


def paint_without_data(tab: Tab, path: str) -> None:
    """Open a page while every request for data is held back, until its first paint; then let it load."""
    held: list[Any] | None = []

    def hold(route: Any) -> None:
        if held is None or route.request.resource_type != "xhr":
            route.continue_()
        else:
            held.append(route)

    tab.page.route("**/*", hold)
    tab.page.goto(f"{tab.studio.url}{path}#token={tab.studio.token}")
    tab.page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length && window.htmx")
    tab.page.locator("main[aria-busy]").wait_for()
    routes, held = held, None
    for route in routes:
        with suppress(Error):  # the page has replaced the request by another one
            route.continue_()
    tab.page.locator("main:not([aria-busy])").wait_for()


def test_a_page_weighs_little_and_is_there_at_once(
    studio_env: Studio, places: list[str], new_tab: Callable[..., Tab]
) -> None:
    for place in places:
        tab = new_tab(studio_env)
        sizes: list[int] = []

        def weigh(answer: Any, sizes: list[int] = sizes) -> None:
            if answer.status == 200 and "/streams/" not in answer.url:
                sizes.append(len(answer.body()))

        tab.page.on("response", weigh)
        paint_without_data(tab, place)
        tab.page.wait_for_timeout(500)
        assert sum(sizes) < WEIGHT, place


def test_studio_paints_as_soon_as_it_is_ready(backend: object, project: Path, new_tab: Callable[..., Tab]) -> None:
    studio = start_studio(project)
    paint_without_data(new_tab(studio), "/")
    studio.stop()


def test_all_of_it_by_keyboard(studio_env: Studio, places: list[str], new_tab: Callable[..., Tab]) -> None:
    page = new_tab(studio_env).open("/runs")
    expect(page.locator("tbody tr").first).to_be_visible()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent")
        )
    assert {"Skip to the content", "Overview", "Runs", "Search runs", "Name", "Loss", "a run"} <= {
        text.strip() for text in reached
    }
    page.locator("tbody a").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#run-head h1")).to_be_visible()
