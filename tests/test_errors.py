"""Errors carry their parts, print as sentences, and survive pickling."""

from __future__ import annotations

import pickle

import pytest

from arkor.errors import ArkorError, CloudApiError, InvalidConfig, Problem, StructuredError, is_transient


def test_the_parts_of_a_problem_make_a_sentence() -> None:
    assert str(Problem("must be at least 1", "max_steps", "leave it out")) == (
        "max_steps: must be at least 1; leave it out"
    )
    assert str(Problem("The disk is full.", remedy="Make room.")) == "The disk is full. Make room."
    assert str(Problem("it is gone", code="not_found")) == "it is gone"


@pytest.mark.parametrize(
    "error",
    [
        InvalidConfig("lora.r", "must be a whole number", "write 16", code="range"),
        InvalidConfig("lora.r", "must be a whole number"),
        ArkorError("nothing works", remedy="try again", code="x"),
        StructuredError("broken", field="body"),
        CloudApiError(409, "conflict", "It is over.", method="POST", path="/v1/jobs", retry_after=1.5),
    ],
)
def test_an_error_survives_pickling(error: StructuredError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
    assert isinstance(copy, ArkorError) == isinstance(error, ArkorError)


def test_an_invalid_value_names_its_field() -> None:
    error = InvalidConfig("lora.r", "must be a whole number", "write 16")
    assert (error.field, error.problem, error.remedy) == ("lora.r", "must be a whole number", "write 16")
    assert str(error) == "lora.r: must be a whole number; write 16"
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(("status", "transient"), [(400, False), (404, False), (408, True), (429, True), (503, True)])
def test_which_statuses_are_worth_another_try(status: int, transient: bool) -> None:
    assert is_transient(status) is transient
