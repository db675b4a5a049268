"""Reports of checks as text and HTML, and the accuracy of estimates."""

from __future__ import annotations

import json

import pytest

from arkor.errors import InvalidConfig
from arkor.protocol.codec import from_wire, to_wire
from arkor.protocol.estimates import Estimate, Outcome, outcome_of, parse_estimate
from arkor.results.check import Check, merge_reports

LENGTHS = {"rows": 3, "shortest": 4, "median": 5, "p95": 90, "longest": 90, "longestRow": 2, "mean": 33.0}
FOUND = {
    "format": "chatml",
    "trainRows": 3,
    "evalRows": 2,
    "learns": "Learnt: 3 answers in 3 rows, with what ends them. Not learnt: other messages.",
    "preview": [
        {"row": 1, "tokens": ["<|user|>", "Hi\n", "Bye", "\n"], "counted": [False, False, True, True], "more": 7}
    ],
    "lengths": {**LENGTHS, "maxLength": 64, "cut": 1, "counted": 30, "lost": 12, "bins": [[47, 2], [90, 1]]},
    "duplicates": {"within": 1, "between": 1, "withinExamples": [[3, 1]], "betweenExamples": [[2, 3]]},
    "estimate": {"steps": 60, "seconds": 102.0, "stepSeconds": 1.68, "memoryBytes": 1_400_000_000, "timedSteps": 9},
}


def test_the_report_has_every_section() -> None:
    report = str(from_wire(Check, FOUND))
    assert "3 rows to train on, 2 to evaluate on, read as chatml" in report
    assert "  │ <|user|>Hi\n  │ ⟦Bye↵⟧\n  … and 7 more tokens" in report
    assert "the others are context.\nLearnt: 3 answers in 3 rows, with what ends them. Not learnt:" in report
    assert "3 training rows of 4 to 90 tokens, 33 on average; half have at most 5, 95 % at most 90" in report
    assert "  ≤ 47  ████████████████████████████████ 2\n  ≤ 90  ████████████████ 1" in report
    assert "1 rows are longer than max_length (64) and are cut, which loses 12 of 30 tokens that count." in report
    assert "1 of the training rows repeat an earlier one (rows 3 = 1)." in report
    assert "1 of the evaluation rows are also training rows (rows 2 = 3)." in report
    assert "60 steps of 1.7 s, 1:42 in all, with 1.4 GB of memory." in report


def test_rows_that_are_left_out_without_a_cut() -> None:
    lengths = {**LENGTHS, "maxLength": 100, "leftOut": 2, "bins": []}
    report = str(from_wire(Check, {**FOUND, "lengths": lengths}))
    assert "2 training rows are left out: none of their tokens count." in report
    assert "are cut" not in report
    cut = str(from_wire(Check, {**FOUND, "lengths": {**lengths, "maxLength": 64, "cut": 1}}))
    assert "2 training rows are left out: none of their tokens within max_length count." in cut


def test_problems_come_first_and_the_rest_is_counted() -> None:
    check = Check(problems=("line 2: text: is empty", "line 9: text: is empty"), problem_count=5)
    assert not check.ok
    assert str(check).splitlines() == [
        "This run cannot be trained: 5 problems",
        "problem: line 2: text: is empty",
        "problem: line 9: text: is empty",
        "… and 3 more",
    ]
    assert repr(check) == "Check(ok=False, problems=5)"
    with pytest.raises(InvalidConfig, match="dataset: line 2: text: is empty\nline 9"):
        check.raise_for_problems()


def test_raise_for_problems_returns_a_check_that_is_ok() -> None:
    check = from_wire(Check, FOUND)
    assert check.raise_for_problems() is check
    assert from_wire(Check, json.loads(json.dumps(to_wire(check)))) == check


def test_untrusted_rows_are_escaped_for_terminals_and_html() -> None:
    row = {"row": 1, "tokens": ["\x1b[2J\x01\x03<script>", "alert(1)</script>\x02"], "counted": [True, False]}
    check = from_wire(Check, {"preview": [row], "problems": ["line 1: <b>\x1b]0;x\x07"]})
    assert not {"\x1b", "\x01", "\x02", "\x03", "\x07"} & set(str(check))
    page = check._repr_html_()
    assert "<script" not in page
    assert "<b>�" not in page
    assert page.count("<span") == page.count("</span>") == 2
    assert page.count("<b>") == page.count("</b>")


def test_partial_reports_are_merged() -> None:
    parts = [{"notes": ["a"], "trainRows": 1}, {"notes": ["b"]}, {"trainRows": 2, "problems": ["c"]}]
    assert merge_reports(parts) == {"notes": ["a", "b"], "trainRows": 2, "problems": ["c"]}


@pytest.mark.parametrize(
    ("took", "words"),
    [
        (97.0, "estimated 1:42, took 1:37: 5 % too high"),
        (120.0, "estimated 1:42, took 2:00: 15 % too low"),
        (102.1, "estimated 1:42, took 1:42: exactly"),
    ],
)
def test_the_outcome_of_an_estimate(took: float, words: str) -> None:
    outcome = outcome_of(Estimate(60, 102.0, 1.68), {"seconds": took})
    assert str(outcome) == words


def test_an_outcome_without_metrics() -> None:
    assert outcome_of(None, {"seconds": 1.0}) is None
    assert str(outcome_of(Estimate(60, 102.0, 1.68, busy=True), None)) == (
        "estimated 1:42 (estimated while the machine was busy)"
    )
    assert Outcome(Estimate(1, 1.0, 1.0), 0.0).error is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        [],
        {},
        {"steps": 1},
        {"steps": "x", "seconds": 1, "stepSeconds": 1},
        {"steps": 1, "seconds": 1e300, "stepSeconds": 1},
    ],
)
def test_an_invalid_estimate_is_none(value: object) -> None:
    assert parse_estimate(value) is None
