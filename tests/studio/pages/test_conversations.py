"""The playground and the endpoints in a real browser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from arkor.client.api import CloudApiClient
from tests.conftest import start_backend
from tests.studio.conftest import Studio, Tab, start_studio, submit, until
from tests.studio.pages.test_playground import ask_endpoint, trained

pytestmark = pytest.mark.slow

WEIGHT = 300_000  # bytes in total, as transferred
NAME = "<img src=x onerror=alert(1)>"


@pytest.fixture
def chat_studio(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    """Studio with a backend whose steps and tokens take a tenth of a second."""
    for name in ("ARKOR_SCRIPTED_TOKEN_SECONDS", "ARKOR_SCRIPTED_STEP_SECONDS"):
        monkeypatch.setenv(name, "0.1")
    backend = start_backend(tmp_path / "arkor-home", "--engine", "scripted")
    started = start_studio(project)
    yield started
    for one in (started, backend):
        one.process.kill()
        one.process.wait()


@pytest.fixture
def chat_client(chat_studio: Studio) -> Iterator[CloudApiClient]:
    from arkor.client.connect import connect  # noqa: PLC0415 - after the fixture that sets the home

    found = connect()
    yield found
    found.close()


def playground(tab: Tab, query: str) -> Any:
    """Open the playground and wait for its script."""
    page = tab.open(f"/playground?{query}")
    page.locator("[data-ready]").wait_for()
    return page


def send(page: Any, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


# Playground


def test_a_checkpoint_answers_while_its_run_goes_on(
    chat_studio: Studio, chat_client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    job = submit(chat_client, NAME, max_steps=200, save_steps=10)
    until(chat_client, job, "running")
    page = playground(new_tab(chat_studio), f"run={job}")
    steps = page.get_by_label("Model: checkpoint", exact=True)
    expect(steps).to_have_value(re.compile(r"^[2-9]\d|\d{3}$"))  # it follows the latest one
    send(page, f"{NAME} **bold** [a](http://b)")
    expect(page.locator(".said")).to_have_text(f"scripted: {NAME} **bold** [a](http://b)")
    expect(page.locator(".note")).to_contain_text(
        re.compile(r"^6 tokens · .+ tokens/s · first token after .+ prompt tokens$")
    )
    held = steps.input_value()
    assert f"step={held}" in page.url
    until(chat_client, job, "completed", seconds=180)
    expect(steps.locator("option", has_text="Final")).to_have_count(1)
    expect(steps).to_have_value(held)  # the chosen model does not change


def test_what_is_pressed_before_it_is_alive_is_not_lost(studio: Studio, new_tab: Callable[..., Tab]) -> None:
    tab = new_tab(studio)
    tab.page.route("**/static/picker.js", lambda route: (time.sleep(1), route.continue_()))
    page = tab.open("/playground")
    page.get_by_role("button", name="Choose a model").first.click()
    expect(page.get_by_role("dialog")).to_be_visible()


COMPOSED = """(element) => {
    const fire = (type, rest) => element.dispatchEvent(
        new KeyboardEvent(type, { key: "Enter", code: "Enter", bubbles: true, cancelable: true, ...rest }));
    return [{ isComposing: true, keyCode: 13 }, { keyCode: 229 }].map((rest) => fire("keydown", rest) && fire("keyup", rest));
}"""


def test_enter_that_ends_a_composition_sends_nothing(studio_env: Studio, new_tab: Callable[..., Tab]) -> None:
    page = playground(new_tab(studio_env), "model=org/small-model")
    prompt = page.get_by_label("Your message")
    prompt.fill("こんにちは")
    assert prompt.evaluate(COMPOSED) == [True, True], "the key has its usual effect"
    expect(prompt).to_have_value("こんにちは")
    expect(page.locator(".turn")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.locator(".turn").last).to_contain_text("scripted: こんにちは")


def test_stop_keeps_what_was_said_and_the_next_question_knows_it(
    chat_studio: Studio, new_tab: Callable[..., Tab]
) -> None:
    tab = new_tab(chat_studio)
    page = playground(tab, "model=org/small-model")
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if "answers" in request.url else None)
    page.get_by_label("System prompt").fill("Be short.")
    send(page, "word " * 500)
    expect(page.locator(".said")).to_contain_text("scripted: word word")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".note")).to_have_text("Stopped.")
    output = page.locator(".said").inner_text()
    assert len(output) < 500
    send(page, "and then?")
    expect(page.locator(".said").nth(1)).to_have_text("scripted: and then?")
    roles = [message["role"] for message in bodies[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert bodies[1]["messages"][2]["content"].strip() == output.strip()
    page.get_by_role("button", name="Ask again").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert bodies[2]["messages"] == bodies[1]["messages"]


def test_a_conversation_stays_with_its_tab_until_it_is_cleared(
    studio_env: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    job = trained(client, NAME)
    tab = new_tab(studio_env)
    page = playground(tab, f"run={job}&step=4&run2={job}&step2=base")
    for text in (NAME, "and then?"):
        send(page, text)
        expect(page.locator(".asked", has_text=text)).to_have_count(2)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    output = page.locator(".log").all_inner_texts()
    page.reload()
    page.locator("[data-ready]").wait_for()
    assert page.locator(".log").all_inner_texts() == output
    tab.open("/runs")
    page = playground(tab, "")  # as linked in the navigation
    expect(page.get_by_label("Model: checkpoint", exact=True)).to_have_value("4")
    expect(page.get_by_label("Second model: checkpoint")).to_have_value("base")
    assert page.locator(".log").all_inner_texts() == output
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if "answers" in request.url else None)
    send(page, "so?")
    expect(page.locator(".said")).to_have_count(6)
    assert [message["role"] for message in bodies[0]["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert studio_env.token not in page.evaluate("JSON.stringify(sessionStorage)")
    playground(tab, "model=org/other")  # the conversation belongs to the first two models
    expect(page.locator(".turn")).to_have_count(0)
    other = page.context.new_page()
    other.goto(f"{studio_env.url}/playground?run={job}&step=4&run2={job}&step2=base")
    other.locator("[data-ready]").wait_for()
    expect(other.locator(".turn")).to_have_count(0)
    page = playground(tab, "")
    page.get_by_role("button", name="Clear").click()
    page.reload()
    page.locator("[data-ready]").wait_for()
    expect(page.locator(".turn")).to_have_count(0)


def test_a_conversation_that_is_left_in_the_middle_is_there_as_far_as_it_came(
    chat_studio: Studio, new_tab: Callable[..., Tab]
) -> None:
    page = playground(new_tab(chat_studio), "model=org/small-model")
    send(page, "word " * 300)
    expect(page.locator(".said")).to_contain_text("scripted: word word")
    page.reload()
    page.locator("[data-ready]").wait_for()
    expect(page.locator(".said")).to_contain_text("scripted: word word")
    expect(page.locator(".note")).to_have_text(re.compile("the page was closed|was interrupted"))


def test_a_fault_is_a_sentence_in_its_place(studio_env: Studio, chromium: Any) -> None:
    context = chromium.new_context()
    context.set_default_timeout(10_000)
    page = playground(Tab(context.new_page(), studio_env), "model=scripted/fail")
    send(page, "Hi")
    expect(page.locator(".note[role=alert]")).to_have_text("The scripted generator fails, as it was asked to.")
    expect(page.locator(".said")).to_have_count(0)
    context.set_offline(True)
    send(page, "And now?")
    expect(page.locator(".note[role=alert]").nth(1)).to_have_text("Studio cannot be reached. Start it again and retry.")
    expect(page.get_by_text("Studio has stopped.")).to_be_visible()
    context.close()


def test_settings_that_make_no_sense_are_named_before_anything_is_asked(
    studio_env: Studio, new_tab: Callable[..., Tab]
) -> None:
    tab = new_tab(studio_env)
    page = playground(tab, "model=org/small-model")
    page.get_by_label("Output format").select_option("json")
    problem = page.locator("[data-problem]")
    for text, sentence in (
        ("{", "The schema is not valid JSON"),
        ("[]", "The schema must be an object"),
        (" ", "JSON schema: this field is empty"),
    ):
        page.get_by_role("textbox", name="JSON schema").fill(text)
        send(page, "Hi")
        expect(problem).to_contain_text(sentence)
    page.get_by_role("textbox", name="JSON schema").fill('{"type": "object", "properties": {"a": {"const": 1}}}')
    page.get_by_label("Top-p").fill("2")
    send(page, "Hi")
    expect(problem).to_have_text("Top-p must be a number from 0 to 1.")
    assert not [url for url in tab.requests if "/streams/answers" in url]
    page.get_by_label("Top-p").fill("0.5")
    send(page, "Hi")
    expect(page.locator(".said")).to_have_text('{"a": 1}')


def test_two_side_by_side_and_as_code(studio_env: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]) -> None:
    one, other = trained(client, "the first"), trained(client, "the second")
    page = playground(new_tab(studio_env), f"run={one}")
    page.get_by_role("button", name="Side by side").click()
    expect(page.get_by_label("Second model: checkpoint")).to_have_value("base")
    page.get_by_role("button", name="Second model: the first").press("Enter")
    page.get_by_label("Search runs and models").fill("second")
    page.locator("#choose").get_by_role("button", name="the second").click()
    expect(page.get_by_role("button", name="Second model: the second")).to_be_visible()
    send(page, "Hi both")
    expect(page.locator(".said")).to_have_text(["scripted: Hi both"] * 2)
    assert page.url.endswith(f"/playground?run={one}&run2={other}")
    page.reload()
    expect(page.get_by_role("button", name="Second model: the second")).to_be_visible()
    page.get_by_role("button", name="Second model: show code").click()
    expect(page.locator("#code pre").first).to_contain_text(f'Adapter("final", "{other}")')
    page.locator("#code").get_by_text("curl").first.click()
    expect(page.locator("#code .snippet:visible pre").first).to_contain_text("/v1/inference/chat")
    page.keyboard.press("Escape")
    expect(page.locator("#code")).to_be_hidden()


def test_the_same_question_to_runs_beside_each_other(
    chat_studio: Studio, chat_client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    done = submit(chat_client, "done", max_steps=5)
    until(chat_client, done, "completed")
    going = submit(chat_client, "going", max_steps=200, save_steps=2)
    failed = submit(chat_client, "failed", model="scripted/fail")
    until(chat_client, going, "running")
    page = new_tab(chat_studio).open(f"/compare?run={done}&run={going}&run={failed}")
    page.locator("[data-ready]").wait_for()
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if "answers" in request.url else None)
    page.get_by_label("System prompt").fill("Be short.")
    page.get_by_label("Your message").fill("Hi all")
    page.keyboard.press("Enter")
    answers = page.locator(".answers article")
    expect(answers.nth(0)).to_contain_text(re.compile("done, final adapter.*scripted: Hi all", re.DOTALL))
    expect(answers.nth(1)).to_contain_text(re.compile(r"going, step \d+.*scripted: Hi all", re.DOTALL))
    expect(answers.nth(2)).to_contain_text("This run has no checkpoint yet")
    output = [[message["role"] for message in body["messages"]] for body in bodies]
    assert output == [["system", "user"]] * 2
    chat_client.cancel_job(going)


# Endpoints


def test_from_nothing_to_a_key_and_to_nothing_again(
    studio_env: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    job = trained(client, NAME)
    tab = new_tab(studio_env)
    page = tab.open("/endpoints")
    page.get_by_role("link", name="Create an endpoint").click()
    expect(page.get_by_role("button", name=f"Model: {NAME}")).to_be_visible()
    name = page.get_by_label("Name", exact=True)
    name.press_sequentially("Bad")
    expect(page.locator("[data-verdict=no]")).to_be_visible()
    name.fill("")
    name.press_sequentially("my-bot")
    expect(page.locator("[data-verdict=yes]")).to_contain_text("/e/my-bot/v1")
    page.get_by_role("button", name="Publish").click()
    expect(page.get_by_role("heading", name="my-bot")).to_be_visible()
    made = client.list_deployments()[0]
    assert made.target["adapter"]["jobId"] == job
    page.get_by_label("Label of a new key").fill("laptop")
    page.get_by_role("button", name="Create a key").click()
    key = page.locator(".new-key code").inner_text()
    expect(page.locator(".snippet:visible pre")).to_contain_text(key)
    assert ask_endpoint(client, "my-bot", key).status_code == 200
    page.get_by_role("button", name="Done").click()
    expect(page.locator(".new-key")).to_have_count(0)
    assert key not in page.content()
    page.get_by_role("button", name="Revoke laptop").click()
    page.get_by_role("button", name="Revoke the key").click()
    expect(page.get_by_text("revoked", exact=True)).to_be_visible()
    assert ask_endpoint(client, "my-bot", key).status_code == 401
    page.get_by_role("button", name="Disable").click()
    expect(page.get_by_role("heading", name="my-bot disabled")).to_be_visible()
    page.get_by_label("Type my-bot to confirm").fill("my-bot")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No endpoints yet")).to_be_visible()
    assert client.list_deployments() == []


# Both


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 380)])
def test_everybody_can_use_them(
    studio_env: Studio, client: CloudApiClient, new_tab: Callable[..., Tab], theme: str, width: int
) -> None:
    axe = Axe()
    job = trained(client, "a name that is longer than a picker has room for, by far, and goes on and on")
    made = client.create_deployment(
        f"an-endpoint-{theme}", {"kind": "base_model", "baseModel": "org/m"}, "fixed_api_key"
    )
    tab = new_tab(studio_env, width=width, theme=theme)

    def check(what: str) -> None:
        tab.page.wait_for_timeout(400)
        found = axe.run(tab.page).response["violations"]
        assert not [(item["id"], [node["html"] for node in item["nodes"]]) for item in found], what
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width, what

    page = playground(tab, f"run={job}&run2={job}&step2=base")
    page.get_by_label("Output format").select_option("choice")
    send(page, "Hi" * 200)
    expect(page.locator(".note").first).to_contain_text("prompt tokens")
    check("a conversation")
    page.get_by_role("button", name="Model: a name").first.click()
    check("the chooser")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Model: show code").first.click()
    check("the code")
    for place in ("/endpoints", "/endpoints/new"):
        tab.open(place)
        check(place)
    page = tab.open(f"/endpoints/{made.id}")
    page.get_by_label("Label of a new key").fill("x" * 80)
    page.get_by_role("button", name="Create a key").click()
    page.get_by_role("button", name="Done").wait_for()
    check("a key")
    client.delete_deployment(made.id)


def test_they_weigh_little(studio_env: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]) -> None:
    for place in (f"/playground?run={trained(client)}", "/endpoints/new"):
        tab, sizes = new_tab(studio_env), []
        tab.page.on(
            "response",
            lambda answer, sizes=sizes: (
                answer.status == 200 and "/streams/" not in answer.url and sizes.append(len(answer.body()))
            ),
        )
        tab.open(place).wait_for_timeout(500)
        assert 50_000 < sum(sizes) < WEIGHT


def test_a_conversation_by_keyboard_alone(
    studio_env: Studio, client: CloudApiClient, new_tab: Callable[..., Tab]
) -> None:
    trained(client, "the one")
    page = playground(new_tab(studio_env), "model=org/m")
    expect(page.get_by_label("Your message")).to_be_focused()
    page.get_by_role("button", name="Model: org/m").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("the one")
    expect(page.locator("[data-choose]")).to_have_count(2)  # the search is done: the run, and a model of that name
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.choose") is not None:
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Model: the one")).to_be_focused()
    page.get_by_label("Your message").focus()
    page.keyboard.type("Hi")
    page.keyboard.press("Enter")
    expect(page.locator(".said")).to_have_text("scripted: Hi")
