"""Sentences of the pages that depend on the state of a run."""

from __future__ import annotations

from typing import Any

import pytest

from arkor.client.api import CloudApiClient
from arkor.protocol.codec import from_wire
from arkor.protocol.jobs import TrainingJob
from arkor.studio.rendering import evaluation_note
from tests.fakes.run_server import JOB
from tests.studio.conftest import Studio, submit, until

NONE = "This run has no evaluations; set eval_steps for some."
NOT_YET = "No evaluations yet."


@pytest.mark.parametrize(
    ("config", "note"),
    [
        ({}, NONE),
        ({"datasetSplit": "train[:9]"}, NONE),
        ({"evalSteps": 5, "datasetSplit": {"enabled": False}}, "This run has no evaluations: its dataset_split is not"),
        ({"evalSteps": 5}, "The first evaluation is at step 5."),
        ({"evalSteps": 0.25}, "The first evaluation is at step 10."),
        ({"evalSteps": {"ratio": 0.25}}, "The first evaluation is at step 10."),
        ({"evalSteps": {"ratio": 1}}, "The first evaluation is at step 40."),
        ({"evalSteps": {"steps": 7}}, "The first evaluation is at step 7."),
        ({"evalSteps": 50}, "This run has no evaluations: the first would be at step 50."),
        ({"evalSteps": 5, "dryRun": True}, NOT_YET),
        ({"datasetSplit": 0.1}, NOT_YET),
        ({"datasetSplit": {"enabled": True}}, NOT_YET),
        ({"evalSteps": {"each": "epoch"}}, NOT_YET),
        ({"evalSteps": "epoch"}, NOT_YET),
    ],
)
def test_when_the_first_evaluation_is(config: dict[str, Any], note: str) -> None:
    job = from_wire(TrainingJob, {**JOB, "totalSteps": 40, "config": config})
    assert evaluation_note(job).startswith(note)


def test_a_run_whose_length_is_not_known_yet() -> None:
    assert evaluation_note(from_wire(TrainingJob, {**JOB, "config": {"evalSteps": 0.5}})) == NOT_YET


def test_the_page_of_a_run_has_the_note(studio_env: Studio, client: CloudApiClient) -> None:
    job = submit(client, max_steps=12, eval_steps={"ratio": 1})
    until(client, job, "completed")
    assert 'data-evaluations="The first evaluation is at step 12."' in studio_env.get(f"/runs/{job}").text
