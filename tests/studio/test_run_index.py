"""The list of runs: search, filters, order, pages; and the requests that an update needs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve
from starlette.datastructures import QueryParams

from arkor.client.api import CloudApiClient
from arkor.client.connect import connect
from arkor.protocol.codec import from_wire
from arkor.protocol.jobs import JobConfig, TrainingJob
from arkor.studio import run_index
from arkor.studio.rendering import total_steps
from arkor.studio.run_index import ORDERS, PER_PAGE, SORTS, Query, RunIndex, paginate
from tests.backend.http.routes.test_job_list import fill
from tests.conftest import Backend, start_backend
from tests.studio.conftest import Studio, start_studio, submit, until


def job(number: int, name: str = "", status: str = "completed", model: str = "org/m", **extra: object) -> TrainingJob:
    created = f"2026-03-01T14:{number:02}:00.000Z"
    data = {"id": f"id{number}", "orgId": "o", "projectId": "p", "name": name or f"run {number}", "status": status}
    times = {"createdAt": created, "startedAt": created, "completedAt": f"2026-03-01T15:{60 - number:02}:00.000Z"}
    return from_wire(TrainingJob, {**data, **times, "config": JobConfig(model, None), **extra})


RUNS = [
    job(3, "Gamma bot", "failed", step=5, totalSteps=50, lastLoss=0.5),
    job(
        2,
        "alpha bot",
        "running",
        model="org/other",
        step=50,
        totalSteps=50,
        lastLoss=None,
        nonFinite={"lastLoss": "nan"},
    ),
    job(1, "Beta", "queued"),
]


def names(address: str) -> list[str]:
    return [found.name.split()[0].lower() for found in Query.of(QueryParams(address)).apply(RUNS)]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("", "gamma alpha beta"),
        ("order=asc", "beta alpha gamma"),
        ("q=BOT", "gamma alpha"),
        ("q=bot+gam", "gamma"),
        ("q=org/other", "alpha"),
        ("q=id1", "beta"),
        ("q=%20%20", "gamma alpha beta"),
        ("q=nothing", ""),
        ("status=failed&status=queued", "gamma beta"),
        ("status=nonsense", "gamma alpha beta"),
        ("sort=name", "alpha beta gamma"),
        ("sort=name&order=desc", "gamma beta alpha"),
        ("sort=status", "beta alpha gamma"),
        ("sort=step&order=desc", "alpha gamma beta"),
        ("sort=loss&order=desc", "gamma alpha beta"),
        ("sort=loss", "gamma alpha beta"),  # runs without a finite loss are last in both orders
        ("sort=step", "gamma alpha beta"),
        ("by=name+desc", "gamma beta alpha"),
        ("by=loss+asc&sort=name", "gamma alpha beta"),
        ("by=created", "gamma alpha beta"),
        ("by=nonsense+asc", "beta alpha gamma"),
        ("by=", "gamma alpha beta"),
        ("sort=duration&order=desc", "beta alpha gamma"),
        ("sort=__class__", "gamma alpha beta"),
        ("sort=created&order=sideways", "beta alpha gamma"),
    ],
)
def test_queries(address: str, expected: str) -> None:
    assert " ".join(names(address)) == expected


def test_every_order_of_a_phone_is_one_of_the_table() -> None:
    assert {by for by, _ in ORDERS} == {f"{name} {order}" for name in SORTS for order in ("asc", "desc")}
    assert all(Query.of(QueryParams({"by": by})).by == by for by, _ in ORDERS)


@pytest.mark.parametrize(
    ("page", "shown"), [("1", 1), ("3", 3), ("99", 3), ("0", 1), ("-1", 1), ("x", 1), ("9" * 30, 1), ("²", 1)]
)
def test_pages(page: str, shown: int) -> None:
    many = [job(number % 60) for number in range(2 * PER_PAGE + 1)]
    found = paginate(many, Query.of(QueryParams({"page": page})).page)
    assert found.page == shown
    assert (found.first, found.last) == ((shown - 1) * PER_PAGE + 1, min(shown * PER_PAGE, len(many)))
    assert len(found.runs) == found.last - found.first + 1


def test_an_empty_page() -> None:
    found = paginate([], 5)
    assert (found.first, found.last, found.page, found.pages) == (0, 0, 1, 1)


def test_what_a_backend_does_not_tell_is_none() -> None:
    assert (RUNS[2].step, total_steps(RUNS[2]), RUNS[2].last_loss) == (None, None, None)
    assert total_steps(evolve(RUNS[2], config=JobConfig("m", None, max_steps=7))) == 7
    assert math.isnan(RUNS[1].last_loss or 0)
    strange = job(1, step="5", totalSteps=[], lastLoss={}, nonFinite="x")
    assert (strange.step, total_steps(strange), strange.last_loss) == (None, None, None)


class Counting:
    """A connection to the real backend that counts its requests."""

    def __init__(self, client: CloudApiClient) -> None:
        self._client, self.calls = client, 0
        send = client.http.call

        def counted(*arguments: object, **rest: object) -> object:
            self.calls += 1
            return send(*arguments, **rest)  # type: ignore[arg-type]

        client.http.call = counted  # type: ignore[assignment,method-assign]

    def client(self) -> CloudApiClient:
        return self._client


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Backend]:
    """A backend with four thousand runs."""
    home = tmp_path / "arkor-home"
    fill(home, 4000)
    started = start_backend(home, "--engine", "scripted")
    yield started
    started.process.kill()
    started.process.wait()


@pytest.mark.slow
def test_it_is_kept_up_to_date_at_the_price_of_a_page(many: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_index, "_FRESH_SECONDS", 3600)
    client = connect()
    link = Counting(client)
    info = RunIndex(link)  # type: ignore[arg-type]
    everything = [run.id for run in info.runs()]
    assert len(everything) == 4000
    assert link.calls == 40
    info.runs()
    assert link.calls == 40  # no request while it is fresh
    monkeypatch.setattr(run_index, "_FRESH_SECONDS", -1)
    later = submit(client, "later", max_steps=1)
    before = link.calls
    assert [run.id for run in info.runs()] == [later, *everything]
    assert link.calls == before + 1
    client.close()


@pytest.mark.slow
def test_a_list_of_thousands_is_quick(many: Backend, project: Path) -> None:
    studio = start_studio(project)
    try:
        studio.get("/parts/runs")  # the first request fetches every run
        for query in ("", "?q=run+39", "?sort=name&page=80", "?status=failed"):
            time.sleep(1)  # so that the list is updated
            began = time.monotonic()
            answer = studio.get(f"/parts/runs{query}")
            assert time.monotonic() - began < 15  # measured: below 0.1 s
            assert len(answer.content) < 80_000
    finally:
        studio.stop()


def test_the_part_says_what_it_shows(studio_env: Studio, client: CloudApiClient) -> None:
    done = submit(client, "the first", max_steps=3)
    until(client, done, "completed")
    submit(client, "the second", model="scripted/fail")
    answer = studio_env.get("/parts/runs?q=first")
    assert "the first" in answer.text
    assert "the second" not in answer.text
    assert "3<span" in answer.text  # step
    assert answer.headers["HX-Replace-Url"] == "/runs?q=first"
    assert "None of" in studio_env.get("/parts/runs?q=nothing-like-that").text


def test_two_beside_each_other(studio_env: Studio, client: CloudApiClient) -> None:
    one, other = submit(client, "one", max_steps=3), submit(client, "other", max_steps=4)
    text = studio_env.get(f"/compare?run={one}&run={other}&run={one}").text
    rows = {row.split("</th>")[0] for row in text.split('<th scope="row">')[1:]}
    assert {"max_steps", "model"} <= rows
    differing = text.split('class="same"')[0]
    assert 'scope="row">max_steps' in differing
    assert 'scope="row">model' not in differing
    assert "Select two or more runs" in studio_env.get(f"/compare?run={one}").text
    assert studio_env.get(f"/compare?run={one}&run=nothing").status_code == 404
