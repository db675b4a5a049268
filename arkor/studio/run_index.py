"""Every run of the project, kept up to date at the price of one page of them.

A backend lists runs newest first, a page at a time, and neither searches nor sorts: that is done here. What has ended
does not change any more, so that only what is new and what is still going on is asked for again.
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
from arkor.studio.rendering import register_filters, seconds_of

STATUSES = tuple(status.value for status in JobStatus)
PER_PAGE = 50

_PAGE_SIZE = 100
_FRESH_SECONDS = 0.9  # what was asked for so recently serves other tabs, too


@define(eq=False)
class RunIndex:
    """The runs behind a link. From any thread."""

    backend: BackendClient
    _known: dict[str, TrainingJob] = field(factory=dict)  # newest first
    _fetched_at: float = -1e9
    _lock: threading.Lock = field(factory=threading.Lock)

    def runs(self) -> list[TrainingJob]:
        """All of them, newest first. Raises what the calls to the backend raise."""
        with self._lock:
            if time.monotonic() - self._fetched_at > _FRESH_SECONDS:
                self._known = _update(self.backend.client(), self._known)
                self._fetched_at = time.monotonic()
            return list(self._known.values())

    def latest(self, count: int) -> list[TrainingJob]:
        return self.runs()[:count]


def _update(client: CloudApiClient, known: Mapping[str, TrainingJob]) -> dict[str, TrainingJob]:
    """The newest page, and older ones until one ends with a run that was known; behind it, what may have changed."""
    found: dict[str, TrainingJob] = {}
    older: list[TrainingJob] = []
    for job in client.iter_jobs(page=_PAGE_SIZE):
        found[job.id] = job
        if len(found) >= _PAGE_SIZE and job.id in known:
            order = list(known)
            older = [known[id_] for id_ in order[order.index(job.id) + 1 :]]
            break
    for job in older:
        found[job.id] = job if is_over(job) else client.get_job(job.id)
    return found


def is_over(job: TrainingJob) -> bool:
    return isinstance(job.status, JobStatus) and job.status.terminal


# What a row says; a backend may not know where a run stands


def step_of(job: TrainingJob) -> int | None:
    """The last step that the backend knows of."""
    return job.step


def total_of(job: TrainingJob) -> int | None:
    """How many steps there will be."""
    return getattr(job.config, "max_steps", None) if job.total_steps is None else job.total_steps


def loss_of(job: TrainingJob) -> float | None:
    """The last loss; NaN for one that diverged."""
    return job.last_loss


def model_of(job: TrainingJob) -> str:
    return str(getattr(job.config, "model", "") or "–")


register_filters(step=step_of, total=total_of, last_loss=loss_of, model=model_of)


# Looking for some of them


def _finite(value: float | None) -> float | None:
    """None for what is no number, too."""
    return None if value != value else value


#: What a list may be sorted by; the names stand in addresses. None where a run has nothing to be sorted by.
SORTS: Mapping[str, Callable[[TrainingJob], Any]] = {
    "created": lambda job: job.created_at,
    "name": lambda job: job.name.casefold(),
    "model": lambda job: model_of(job).casefold(),
    "status": lambda job: STATUSES.index(job.status) if job.status in STATUSES else len(STATUSES),
    "step": step_of,
    "loss": lambda job: _finite(loss_of(job)),
    "duration": seconds_of,
}

#: Of those, what is largest first unless somebody wants it the other way.
LARGEST_FIRST = ("created", "step", "duration")

#: What a person calls the orders, where there is no head of a table to press: `Query.by`, words.
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
    ("status asc", "Going on first"),
    ("status desc", "Ended first"),
)


@frozen
class Query:
    """Which runs are looked for, in which order: `descending` is largest, latest, last of the alphabet first."""

    text: str = ""
    statuses: tuple[str, ...] = ()
    sort: str = "created"
    descending: bool = True
    page: int = 1

    @classmethod
    def of(cls, parameters: Any) -> Query:
        """The query of an address; what makes no sense in it is passed over."""
        given, order = parameters.get("sort"), parameters.get("order")
        if "by" in parameters:  # both in one, as a form has it
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
        """What it is sorted by and in which order, in one word for a form: `"loss asc"`."""
        return f"{self.sort} {'desc' if self.descending else 'asc'}"

    @property
    def narrow(self) -> bool:
        """Whether some runs are left out."""
        return bool(self.text or self.statuses)

    def apply(self, runs: list[TrainingJob]) -> list[TrainingJob]:
        """Those that are looked for, sorted; runs that are equal stay newest first, those without a value are last."""
        words = self.text.casefold().split()
        found = [
            job
            for job in runs
            if (not self.statuses or job.status in self.statuses) and all(word in _search_text(job) for word in words)
        ]
        if self.sort == "created":
            return found if self.descending else found[::-1]
        values = {job.id: SORTS[self.sort](job) for job in found}
        there = [job for job in found if values[job.id] is not None]
        lacking = [job for job in found if values[job.id] is None]
        return sorted(there, key=lambda job: values[job.id], reverse=self.descending) + lacking


def _search_text(job: TrainingJob) -> str:
    return f"{job.name} {model_of(job)} {job.id}".casefold()


@frozen
class RunPage:
    """One page of what a query found: `first` to `last` of `total`, counted from 1."""

    runs: list[TrainingJob]
    total: int
    page: int
    pages: int

    @property
    def first(self) -> int:
        return (self.page - 1) * PER_PAGE + 1 if self.total else 0

    @property
    def last(self) -> int:
        return min(self.page * PER_PAGE, self.total)


def paginate(found: list[TrainingJob], page: int) -> RunPage:
    """That page of them; the last one where there are not so many."""
    pages = max(1, -(-len(found) // PER_PAGE))
    page = min(max(page, 1), pages)
    return RunPage(found[(page - 1) * PER_PAGE : page * PER_PAGE], len(found), page, pages)
