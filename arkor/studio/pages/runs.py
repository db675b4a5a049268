"""The list of runs, searched, filtered and sorted; and the comparison of several runs."""

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
from arkor.studio.backend_client import client_of
from arkor.studio.rendering import page, python_name
from arkor.studio.run_index import DESCENDING_ORDERS, ORDERS, STATUSES, Query, paginate

MAX_COMPARED = 6


def runs(request: Request) -> Response:
    """`GET /runs`: the page; the URL has the query."""
    return page("runs.html", query=Query.of(request.query_params), statuses=STATUSES, orders=ORDERS)


def found(request: Request) -> Response:
    query = Query.of(request.query_params)
    every = request.app.state.run_index.runs()
    response = page(
        "parts/runs.html",
        query=query,
        shown=paginate(query.apply(every), query.page),
        everything=len(every),
        counts={status: sum(job.status == status for job in every) for status in STATUSES},
        link=_query_url,
        descending_orders=DESCENDING_ORDERS,
    )
    response.headers["HX-Replace-Url"] = _query_url(query, "/runs")
    return response


def _query_url(query: Query, path: str = "/parts/runs", **changes: Any) -> str:
    """Return the URL of a query with some changes, without default values."""
    query = evolve(query, **changes)
    default_order = "desc" if query.sort == "created" else "asc"
    order = "desc" if query.descending else "asc"
    parameters = [
        ("q", query.text),
        *(("status", status) for status in query.statuses),
        ("sort", "" if query.sort == "created" else query.sort),
        ("order", "" if order == default_order else order),
        ("page", "" if query.page == 1 else str(query.page)),
    ]
    text = urlencode([(name, value) for name, value in parameters if value])
    return f"{path}?{text}" if text else path


@frozen
class Setting:
    """A setting and its value in each run; None is the backend's default."""

    name: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        return len(set(self.values)) > 1


def compare(request: Request) -> Response:
    """`GET /compare?run=…&run=…`: the losses and the settings of several runs."""
    client = client_of(request)
    ids = list(dict.fromkeys(request.query_params.getlist("run")))
    compared = [client.get_job(id_) for id_ in ids[:MAX_COMPARED] if id_]
    left_out = max(0, len(ids) - MAX_COMPARED)
    return page("compare.html", runs=compared, settings=_settings(compared), left_out=left_out, most=MAX_COMPARED)


def _settings(compared: Iterable[TrainingJob]) -> list[Setting]:
    """Return every setting of the runs; those with different values are first."""
    flat = [flattened(to_wire(job.config)) for job in compared]
    names = dict.fromkeys(name for settings in flat for name in settings)
    found = [Setting(name, tuple(settings.get(name) for settings in flat)) for name in names]
    return sorted(found, key=lambda setting: not setting.differs)


def flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a configuration: `{"a": {"bC": 1}}` → `{"a.b_c": "1"}`, without any `token`."""
    found: dict[str, str] = {}
    for wire_name, item in value.items():
        name = "dataset" if wire_name == "datasetSource" else python_name(wire_name)
        if isinstance(item, Mapping):
            found.update(flattened(item, f"{prefix}{name}."))
        elif name != "token":
            found[prefix + name] = _format_setting(item)
    return found


def _format_setting(value: Any) -> str:
    """Format a value; of an uploaded file, its name and the start of its digest."""
    uploaded = re.fullmatch(r"/v1/datasets/(?P<digest>[0-9a-f]{64})/(?P<name>.+)", str(value))
    return f"{uploaded['name']}, uploaded ({uploaded['digest'][:8]})" if uploaded else str(value)


routes = [
    Route("/runs", runs, methods=["GET"]),
    Route("/parts/runs", found, methods=["GET"]),
    Route("/compare", compare, methods=["GET"]),
]
