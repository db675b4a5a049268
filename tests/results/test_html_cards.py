"""Cards of jobs and results for notebooks: complete, escaped, without secrets."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arkor import Artifact, TrainingJob, TrainingResult
from arkor.protocol.best_checkpoint import BestCheckpoint
from arkor.protocol.chat import Adapter
from arkor.protocol.codec import from_wire
from arkor.results.history import History

CONFIG = {"model": "m", "datasetSource": {"type": "file", "path": "rows.jsonl"}, "maxSteps": 60, "learningRate": 2e-4}
JOB = {
    "id": "3f9a",
    "orgId": "o",
    "projectId": "p",
    "name": "support-bot",
    "status": "completed",
    "config": CONFIG,
    "createdAt": "2026-01-01T00:00:00.000Z",
    "startedAt": "2026-01-01T00:00:10.000Z",
    "completedAt": "2026-01-01T00:01:52.000Z",
}


def job(**changes: Any) -> TrainingJob:
    return from_wire(TrainingJob, {**JOB, **changes})


class Page(HTMLParser):
    """The tags and the texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_card_of_a_job() -> None:
    assert repr(job()) == "TrainingJob(id='3f9a', name='support-bot', status='completed', model='m')"
    assert repr(job(error="it broke")).endswith("model='m', error='it broke')")
    texts = Page(job()._repr_html_()).texts
    assert {"support-bot", "completed", "3f9a", "rows.jsonl", "max_steps 60, learning_rate 0.0002", "1:42"} <= set(
        texts
    )


def test_the_card_of_a_result() -> None:
    history = History()
    history.add(60, 0.25)
    best = BestCheckpoint(40, "eval_loss", 0.3, Adapter("checkpoint", "3f9a", 40))
    result = TrainingResult(job(), (Artifact(kind="final", path="final"), {"odd": 1}), best, history=history)
    assert repr(result) == (
        "TrainingResult(id='3f9a', name='support-bot', status='completed', artifacts=2, best=40, "
        "history=History(1 logs, steps 60 to 60))"
    )
    texts = Page(result._repr_html_()).texts
    assert {"0.2500", "step 40, eval_loss 0.3000", "final, dict", "1 logs; result.history shows them"} <= set(texts)


def test_an_uploaded_file_is_shown_by_its_name() -> None:
    output = job(config={"model": "m", "datasetSource": {"type": "blob", "url": "/v1/datasets/0123abcd/tickets.jsonl"}})
    assert "tickets.jsonl" in Page(output._repr_html_()).texts


def test_long_texts_are_shortened() -> None:
    output = job(error="out of memory " * 1000)
    assert len(repr(output)) < 400
    assert repr(output).endswith("…')")
    assert 2000 < len("".join(Page(output._repr_html_()).texts)) < 2500
    assert "short" in repr(job(error="short"))


def test_many_artifacts_are_counted() -> None:
    result = TrainingResult(job(), tuple(Artifact(path=f"checkpoints/{n}") for n in range(20)))
    assert "checkpoints/7, and 12 more" in Page(result._repr_html_()).texts[-1]


def test_untrusted_text_is_escaped() -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    config = {"model": hostile, "datasetSource": {"type": "huggingface", "name": hostile}, "optim": hostile}
    output = job(id=hostile, name=hostile, status=hostile, error=hostile, createdAt=hostile, config=config)
    result = TrainingResult(output, (Artifact(path=hostile), hostile))
    for page in (output._repr_html_(), result._repr_html_()):
        assert Page(page).tags == {"div", "b", "bdi", "span", "table", "tr", "td"}


@pytest.mark.parametrize(
    "url",
    [
        "https://kim:s3cret@example.com/rows.jsonl",
        "https://example.com/rows.jsonl?X-Signature=s3cret",
        "https://example.com/rows.jsonl#s3cret",
    ],
)
def test_a_secret_is_shown_nowhere(url: str) -> None:
    source = {"type": "blob", "url": url, "token": "s3cret"}
    output = job(config={"model": "m", "datasetSource": source}, apiKey="s3cret")
    result = TrainingResult(output)
    for shown in (repr(output), output._repr_html_(), repr(result), result._repr_html_()):
        assert "s3cret" not in shown
    assert "https://example.com/rows.jsonl" in output._repr_html_()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@given(st.fixed_dictionaries(dict.fromkeys(JOB, JSON)), st.lists(JSON, max_size=3))
def test_any_job_of_a_backend_can_be_shown(output: dict[str, Any], artifacts: list[Any]) -> None:
    decoded = from_wire(TrainingJob, output)
    result = TrainingResult(decoded, tuple(artifacts))
    for page in (decoded._repr_html_(), result._repr_html_()):
        assert Page(page).tags <= {"div", "b", "bdi", "span", "table", "tr", "td"}
    assert re.match(r"Training(Job|Result)\(", repr(decoded) + repr(result))


def test_a_diverged_run_shows_its_last_loss() -> None:
    history = History()
    history.add(1, math.nan)
    assert "nan" in Page(TrainingResult(job(), history=history)._repr_html_()).texts
