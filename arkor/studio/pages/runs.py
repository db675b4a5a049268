"""Runs: the list of them, searched, filtered and sorted; and several beside each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from attrs import evolve, frozen
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from arkor.protocol.codec import to_wire
from arkor.protocol.jobs import TrainingJob
from arkor.studio.rendering import page
from arkor.studio.run_index import LARGEST_FIRST, ORDERS, STATUSES, Query, paginate

#: How many runs stand beside each other, at most.
MAX_COMPARED = 6


def runs(request: Request) -> Response:
    """`GET /runs`: the page; the address says what is looked for."""
    return page("runs.html", query=Query.of(request.query_params), statuses=STATUSES, orders=ORDERS)


def found(request: Request) -> Response:
    """`GET /parts/runs`: the rows that are looked for."""
    query = Query.of(request.query_params)
    everything = request.app.state.run_index.runs()
    shown = paginate(query.apply(everything), query.page)
    counts = {status: sum(job.status == status for job in everything) for status in STATUSES}
    response = page(
        "parts/runs.html",
        query=query,
        shown=shown,
        everything=len(everything),
        counts=counts,
        link=_query_url,
        largest_first=LARGEST_FIRST,
    )
    response.headers["HX-Replace-Url"] = _query_url(query, "/runs")
    return response


def _query_url(query: Query, path: str = "/parts/runs", **changes: Any) -> str:
    """The address of a query, with some of it changed."""
    query = evolve(query, **changes)
    usual = "desc" if query.sort == "created" else "asc"
    order = "desc" if query.descending else "asc"
    parameters = [
        ("q", query.text),
        *(("status", status) for status in query.statuses),
        ("sort", "" if query.sort == "created" else query.sort),
        ("order", "" if order == usual else order),
        ("page", "" if query.page == 1 else str(query.page)),
    ]
    text = urlencode([(name, value) for name, value in parameters if value])
    return f"{path}?{text}" if text else path


# Several beside each other


@frozen
class Setting:
    """One setting, and what it is in each of the runs (None: the backend decides)."""

    name: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def compare(request: Request) -> Response:
    """`GET /compare?run=…&run=…`: losses over each other, settings beside each other."""
    client = request.app.state.backend.client()
    ids = list(dict.fromkeys(request.query_params.getlist("run")))
    compared = [client.get_job(id_) for id_ in ids[:MAX_COMPARED] if id_]
    settings = _settings(compared)
    return page(
        "compare.html", runs=compared, settings=settings, left_out=max(0, len(ids) - MAX_COMPARED), most=MAX_COMPARED
    )


def _settings(runs: Iterable[TrainingJob]) -> list[Setting]:
    """Every setting that one of them names, those that differ first."""
    flat = [flattened(to_wire(job.config)) for job in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    found = [Setting(name, tuple(settings.get(name) for settings in flat)) for name in names]
    return sorted(found, key=lambda setting: not setting.differs)


def flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"a": {"bC": 1}}` → `{"a.b_c": "1"}`, as a script spells it; without tokens, should a backend send one."""
    found: dict[str, str] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            found.update(flattened(item, f"{prefix}{_python_name(name)}."))
        elif name != "token":
            found[prefix + _python_name(name)] = _shown(item)
    return found


def _shown(value: Any) -> str:
    """A setting in words; of a file that was uploaded, its name and the beginning of its digest."""
    uploaded = re.fullmatch(r"/v1/datasets/(?P<digest>[0-9a-f]{64})/(?P<name>.+)", str(value))
    return f"{uploaded['name']}, uploaded ({uploaded['digest'][:8]})" if uploaded else str(value)


def _python_name(name: str) -> str:
    """As a script has it: `"maxSteps"` → `"max_steps"`."""
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    return {"dataset_source": "dataset"}.get(snake, snake)


routes = [
    Route("/runs", runs, methods=["GET"]),
    Route("/parts/runs", found, methods=["GET"]),
    Route("/compare", compare, methods=["GET"]),
]
