"""The runs of the project: fetched incrementally, searched, filtered and sorted.

A backend lists runs newest first, in pages, and neither searches nor sorts them. Finished runs do
not change, so an update fetches the newest page and the unfinished runs only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field, frozen

from arkor.client.api import CloudApiClient
from arkor.protocol.jobs import JobStatus, TrainingJob
from arkor.studio.backend_client import BackendClient
from arkor.studio.rendering import elapsed_seconds, model_of

STATUSES = tuple(status.value for status in JobStatus)
PER_PAGE = 50

_FETCH_SIZE = 100
_FRESH_SECONDS = 0.9  # below the refresh interval of a page, so that tabs share an update


@define(eq=False)
class RunIndex:
    """The runs of a backend's project, cached; thread-safe."""

    backend: BackendClient
    _known: dict[str, TrainingJob] = field(factory=dict)  # newest first
    _fetched_at: float = -1e9
    _lock: threading.Lock = field(factory=threading.Lock)

    def runs(self) -> list[TrainingJob]:
        with self._lock:
            if time.monotonic() - self._fetched_at > _FRESH_SECONDS:
                self._known = _update(self.backend.client(), self._known)
                self._fetched_at = time.monotonic()
            return list(self._known.values())


def _update(client: CloudApiClient, known: Mapping[str, TrainingJob]) -> dict[str, TrainingJob]:
    """Fetch pages until one ends with a known run; of the older runs, fetch the unfinished ones."""
    found: dict[str, TrainingJob] = {}
    older: list[TrainingJob] = []
    for job in client.iter_jobs(page=_FETCH_SIZE):
        found[job.id] = job
        if len(found) >= _FETCH_SIZE and job.id in known:
            order = list(known)
            older = [known[id_] for id_ in order[order.index(job.id) + 1 :]]
            break
    for job in older:
        found[job.id] = job if has_ended(job) else client.get_job(job.id)
    return found


def has_ended(job: TrainingJob) -> bool:
    return isinstance(job.status, JobStatus) and job.status.terminal


def _loss(job: TrainingJob) -> float | None:
    """Return the last loss; None instead of NaN, which cannot be sorted."""
    return None if job.last_loss != job.last_loss else job.last_loss


#: The sort keys by their names in URLs; runs with the key None are listed last.
SORTS: Mapping[str, Callable[[TrainingJob], Any]] = {
    "created": lambda job: job.created_at,
    "name": lambda job: job.name.casefold(),
    "model": lambda job: model_of(job).casefold(),
    "status": lambda job: STATUSES.index(job.status) if job.status in STATUSES else len(STATUSES),
    "step": lambda job: job.step,
    "loss": _loss,
    "duration": elapsed_seconds,
}

#: The sort keys that are sorted in descending order by default.
DESCENDING_ORDERS = ("created", "step", "duration")

#: The orders (`Query.by`) and their labels, for windows too narrow for the table's header.
ORDERS = (
    ("created desc", "Newest first"),
    ("created asc", "Oldest first"),
    ("loss asc", "Lowest loss first"),
    ("loss desc", "Highest loss first"),
    ("step desc", "Most steps first"),
    ("step asc", "Fewest steps first"),
    ("duration desc", "Longest first"),
    ("duration asc", "Shortest first"),
    ("name asc", "Name, A to Z"),
    ("name desc", "Name, Z to A"),
    ("model asc", "Model, A to Z"),
    ("model desc", "Model, Z to A"),
    ("status asc", "Active first"),
    ("status desc", "Finished first"),
)


@frozen
class Query:
    """A search for runs, its order, and the page of the results."""

    text: str = ""
    statuses: tuple[str, ...] = ()
    sort: str = "created"
    descending: bool = True
    page: int = 1

    @classmethod
    def of(cls, parameters: Any) -> Query:
        """Parse the query of a URL; invalid values are ignored."""
        given, order = parameters.get("sort"), parameters.get("order")
        if "by" in parameters:  # both in one field, from a form
            given, _, order = parameters["by"].partition(" ")
        sort = given if given in SORTS else "created"
        number = parameters.get("page", "")
        return cls(
            text=parameters.get("q", "").strip(),
            statuses=tuple(status for status in STATUSES if status in parameters.getlist("status")),
            sort=sort,
            descending=(order or ("desc" if sort == "created" else "asc")) == "desc",
            page=int(number) if number.isascii() and number.isdigit() and 0 < len(number) < 7 else 1,
        )

    @property
    def by(self) -> str:
        """The sort key and the order, as one value of a form (`"loss asc"`)."""
        return f"{self.sort} {'desc' if self.descending else 'asc'}"

    @property
    def is_filtered(self) -> bool:
        return bool(self.text or self.statuses)

    def apply(self, runs: list[TrainingJob]) -> list[TrainingJob]:
        """Filter and sort runs; equal ones stay newest first, those without a value are last."""
        words = self.text.casefold().split()
        found = [
            job
            for job in runs
            if (not self.statuses or job.status in self.statuses)
            and all(word in f"{job.name} {model_of(job)} {job.id}".casefold() for word in words)
        ]
        if self.sort == "created":
            return found if self.descending else found[::-1]
        values = {job.id: SORTS[self.sort](job) for job in found}
        with_value = [job for job in found if values[job.id] is not None]
        without = [job for job in found if values[job.id] is None]
        return sorted(with_value, key=lambda job: values[job.id], reverse=self.descending) + without


@frozen
class RunPage:
    """One page of results: `first` to `last` of `total`, counted from 1."""

    runs: list[TrainingJob]
    total: int
    page: int
    pages: int
    first: int
    last: int


def paginate(found: list[TrainingJob], page: int) -> RunPage:
    """Return this page of the runs, or the last one if there are fewer pages."""
    pages = max(1, -(-len(found) // PER_PAGE))
    page = min(max(page, 1), pages)
    start, end = (page - 1) * PER_PAGE, min(page * PER_PAGE, len(found))
    return RunPage(found[start:end], len(found), page, pages, first=start + 1 if found else 0, last=end)
