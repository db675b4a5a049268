"""Evaluation at checkpoints: questions, scores, and errors that must not end the wait."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from arkor import BlobDataset, FileDataset, InvalidConfig, Trainer, TrainerAborted
from arkor.callbacks import Evaluate
from arkor.callbacks.evaluate.evaluate import exact_match, json_valid
from arkor.callbacks.evaluate.questions import parse_questions
from arkor.results.evaluation import Answer, Evaluation
from tests.conftest import Backend
from tests.fakes.run_server import RunServer, completed
from tests.fakes.sse_server import frame, send

HUB = {"type": "huggingface", "name": "some/rows"}
ROW = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "scripted: Hi"}]}  # fmt: skip


def make(**settings: Any) -> Trainer:
    return Trainer(**{"name": "a run", "model": "some-model", "dataset": HUB, "progress": False, **settings})


# Questions


def test_questions_in_all_their_shapes(tmp_path: Path) -> None:
    file = tmp_path / "held out.jsonl"
    file.write_text("\ufeff" + json.dumps(ROW) + "\n\n" + json.dumps({"prompt": "a\u2028b", "completion": "c"}) + "\n")
    from_file = [(question.text, question.expected) for question in parse_questions(FileDataset(str(file)))]
    assert from_file == [("Hi", "scripted: Hi"), ("a\u2028b", "c")]
    assert parse_questions(file) == parse_questions({"type": "file", "path": str(file)})
    listed = parse_questions(["One?", ("Two?", "2"), ROW, ROW["messages"], ROW["messages"][:2], {"prompt": "Three?"}])
    assert [question.expected for question in listed] == [None, "2", "scripted: Hi", "scripted: Hi", None, None]
    assert [len(question.messages) for question in listed] == [1, 1, 2, 2, 2, 1]
    assert [question.expected for question in parse_questions({"One?": "1", "Two?": "2"})] == ["1", "2"]


@pytest.mark.parametrize(
    "row",
    [
        {"system": "Name the topic.", "prompt": "Hi", "completion": "greeting"},
        {"system": "Name the topic.", "instruction": "Hi", "output": "greeting"},
        {"system": "Name the topic.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "greeting"}]},
        {"prompt": [{"role": "system", "content": "Name the topic."}, {"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "greeting"}]},
        {"messages": [{"role": "system", "content": "Name the topic."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "greeting"}]},
    ],
)  # fmt: skip
def test_a_row_is_asked_as_it_is_trained_on(row: dict[str, Any]) -> None:
    (question,) = parse_questions([row])
    assert [(message["role"], message["content"]) for message in question.messages] == [
        ("system", "Name the topic."),
        ("user", "Hi"),
    ]
    assert question.expected == "greeting"


def test_the_system_prompt_stays_where_no_answer_is_expected() -> None:
    (question,) = parse_questions([{"system": "Name the topic.", "prompt": "Hi"}])
    assert [message["role"] for message in question.messages] == ["system", "user"]
    assert question.expected is None
    assert len(parse_questions({"type": "a word", "name": "another"})) == 2, "these are prompts"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("questions.jsonl", "FileDataset"),
        ([], "must contain at least one question"),
        (5, "not int"),
        ([5], r"questions\[0\]: must be a prompt"),
        ([{"text": "x"}], "is a plain text without a question"),
        ([{"question": "x"}], r"questions\[0\]: the row has question, but a row must have one of"),
        ([{"instruction": "x", "output": 5}], r"questions\[0\]: output: must be a string"),
        ([{"messages": []}], "at least one message"),
        ([{"messages": [{"role": "assistant", "content": "x"}]}], "at least one message"),
        ([{"messages": [{"role": "robot", "content": "x"}]}], "must be one of system"),
        ([{"messages": [{"role": "user", "content": 5}]}], "content"),
        (FileDataset("nowhere.jsonl"), "cannot be read"),
        (HUB, "are read on this machine"),
        (BlobDataset("https://example.com/rows.jsonl"), "are read on this machine"),
    ],
)
def test_what_is_no_question_is_named(given: Any, says: str) -> None:
    with pytest.raises(InvalidConfig, match=says):
        Evaluate(given)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"metric": len}, r"Evaluate.metric: must take \(answer, expected\), and this one takes \(obj, /\)"),
        ({"tell": 3}, "Evaluate.tell: must be a function of one evaluation"),
        ({"tell": lambda: None}, "Evaluate.tell"),
        ({"name": 3}, "Evaluate.name"),
        ({"base": "yes"}, "Evaluate.base: must be True or False"),
        ({"timeout": math.nan}, "Evaluate.timeout: must be seconds"),
    ],
)
def test_what_could_not_be_evaluated_is_named_before_the_run(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidConfig, match=says):
        Evaluate(["One?"], **settings)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(ROW) + "\n{broken\n")
    with pytest.raises(InvalidConfig, match=r"questions\.jsonl, line 2: is not JSON"):
        Evaluate(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidConfig, match="not UTF-8"):
        Evaluate(file)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"metric": "bleu"}, "metric"),
        ({"metric": "exact_match"}, "metric"),
        ({"every": 0}, "every"),
        ({"concurrency": 1.5}, "concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"max_token": 5}, "max_token"),
        ({"stream": False}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_wrong_values_are_named(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfig) as wrong:
        Evaluate(["One?"], **settings)
    assert wrong.value.field == f"Evaluate.{field}"


# Scores


def test_metrics() -> None:
    assert exact_match(" bug\n", "bug") == 1
    assert exact_match("Bug", "bug") == 0
    scores = [
        json_valid(text, None)
        for text in ('{"a": 1}', " [1]\n", "3", '{"a": NaN}', "```json\n{}\n```", "", "[" * 10**5)
    ]
    assert scores == [1, 1, 1, 0, 0, 0, 0]


def test_an_evaluation_shows_both_models() -> None:
    answers = (Answer("One?", "1", "1", 1.0, None, "two\nlines", 0.0), Answer("Two?", None, None, None, "gone"))
    evaluation = Evaluation("tickets", 20, answers)
    assert (evaluation.score, evaluation.base_score) == (1.0, 0.0)
    assert str(evaluation) == (
        "tickets, step 20: 1 (base 0)\n  One?\n    expected  1\n    base      two lines\n    tuned     1\n"
        "  Two?\n    tuned     (gone)"
    )
    assert Evaluation("tickets", None, ()).score is None


# A real run


def test_the_same_questions_at_every_checkpoint(backend_env: Backend) -> None:
    output: list[Evaluation] = []
    evaluate = Evaluate([ROW, ("Yo", "Yo?")], tell=output.append, name="greetings", max_tokens=9)
    result = make(max_steps=4, save_steps=2, callbacks=[evaluate]).wait()
    assert [evaluation.step for evaluation in result.evaluations] == [2, 4, None]
    assert tuple(output) == result.evaluations == evaluate.evaluations
    assert [evaluation.score for evaluation in result.evaluations] == [0.5, 0.5, 0.5]
    assert result.evaluations[0].answers == (
        Answer("Hi", "scripted: Hi", "scripted: Hi", 1.0, None, "scripted: Hi", 1.0),
        Answer("Yo", "Yo?", "scripted: Yo", 0.0, None, "scripted: Yo", 0.0),
    )


def test_every_other_checkpoint_and_the_final_adapter(backend_env: Backend) -> None:
    evaluate = Evaluate(["Hi"], every=2, base=False)
    result = make(max_steps=3, save_steps=1, callbacks=[evaluate]).wait()
    assert [evaluation.step for evaluation in result.evaluations] == [2, None]
    (answer,) = result.evaluations[0].answers
    assert (answer.text, answer.score, answer.base_text) == ("scripted: Hi", None, None)


def test_a_function_of_yours_scores_and_may_fail(backend_env: Backend) -> None:
    def length(answer: str, expected: str | None) -> float:
        if answer.endswith("Yo"):
            raise RuntimeError("my mistake")
        return len(answer)

    result = make(max_steps=1, callbacks=Evaluate(["Hi", "Yo"], length)).wait()
    first, second = result.evaluations[0].answers
    assert (first.score, first.base_score) == (12.0, 12.0)
    assert (second.text, second.score, second.error) == (
        "scripted: Yo",
        None,
        "the metric raised RuntimeError: my mistake",
    )
    assert result.evaluations[0].score == 12.0


def test_a_second_watcher_evaluates_and_a_checkpoint_that_is_gone_is_an_answer_less(backend: Backend) -> None:
    first = make(max_steps=4, save_steps=2)
    first.wait()
    checkpoints = backend.home / "runs" / str(first.job_id) / "checkpoints"
    (checkpoints / "2").rename(backend.home / "gone")
    evaluate = Evaluate(["Hi", "Yo"], concurrency=1)
    result = Trainer.attach(str(first.job_id), callbacks=evaluate, progress=False, callback_errors="raise").wait()
    gone, there, final = result.evaluations
    assert {answer.text for answer in gone.answers} == {None}
    assert all("no checkpoint of step 2" in str(answer.error) for answer in gone.answers)
    assert gone.score is None
    assert [answer.text for answer in there.answers] == ["scripted: Hi", "scripted: Yo"]
    assert final.answers == there.answers


WATCH = """
import sys
from arkor import Trainer
from arkor.callbacks import Evaluate
callbacks = Evaluate({"Hi": "scripted: Hi", "Yo": "no"}, every=2, tell=lambda evaluation: print(evaluation.step))
result = Trainer.attach(sys.argv[1], callbacks=callbacks, progress=False).wait()
print([evaluation.score for evaluation in result.evaluations])
"""


def test_a_second_process_evaluates_a_run_that_goes_on(slow_backend: Backend) -> None:
    job_id = make(max_steps=12, save_steps=3).start().job_id
    watcher = subprocess.run(
        [sys.executable, "-c", WATCH, job_id], check=True, timeout=60, capture_output=True, text=True
    )
    assert watcher.stdout == "6\n12\nNone\n[0.5, 0.5, 0.5]\n"


def test_two_sheets_are_both_in_the_result(backend_env: Backend) -> None:
    sheets = [Evaluate(["Hi"], name="one", base=False), Evaluate(["Yo"], name="two", base=False)]
    result = make(max_steps=1, save_steps=1, callbacks=sheets).wait()
    assert [evaluation.name for evaluation in result.evaluations] == ["one", "one", "two", "two"]


def test_a_model_that_does_not_answer_costs_the_sheet_its_time_and_no_more(tmp_path: Path) -> None:
    over = threading.Event()
    saved = frame(1, "checkpoint.saved", '{"type":"checkpoint.saved","jobId":"j","timestamp":"t","step":2}')
    with RunServer(send(saved + completed(2))) as server:
        server.special["POST /v1/inference/chat"] = lambda connection, headers: over.wait(20) and None
        evaluate = Evaluate(["Hi", "Yo", "Hey"], base=False, timeout=0.4)
        began = time.monotonic()
        result = server.watch(tmp_path, callbacks=evaluate).wait()
        assert time.monotonic() - began < 15
        over.set()
    assert result.job.status == "completed"
    errors = [answer.error for answer in result.evaluations[0].answers]
    assert errors == ["it was not answered in time"] * 2 + ["it was not asked in time"]


def test_an_abort_is_heard_in_mid_sheet(tmp_path: Path) -> None:
    over, leave = threading.Event(), threading.Event()
    saved = frame(1, "checkpoint.saved", '{"type":"checkpoint.saved","jobId":"j","timestamp":"t","step":2}')
    with RunServer(send(saved + completed(2))) as server:
        server.special["POST /v1/inference/chat"] = lambda connection, headers: over.wait(20) and None
        evaluate = Evaluate(["Hi", "Yo"], base=False)
        threading.Timer(0.3, leave.set).start()
        began = time.monotonic()
        with pytest.raises(TrainerAborted):
            server.watch(tmp_path, callbacks=evaluate, abort_signal=leave).wait()
        assert time.monotonic() - began < 15
        over.set()
