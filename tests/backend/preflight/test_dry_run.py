"""The check of a run with tiny models, in a process and without one; the report on its data."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arkor.backend.data.datasets import Rows
from arkor.backend.data.packed_rows import PackedRows
from arkor.backend.preflight.data_report import find_duplicates, length_stats, preview_rows
from arkor.backend.preflight.process import run_check
from arkor.backend.training.tokenization import encode
from tests.fakes.tiny_model import make_tiny_model, tiny_tokenizer


def packed(*texts: str) -> PackedRows:
    rows = PackedRows()
    for text in texts:
        rows.append({"text": text})
    return rows


def test_duplicates_within_and_between() -> None:
    found = find_duplicates(Rows(packed("a", "b", "a", "c", "a"), packed("d", "b", "a")))
    assert (found.within, found.within_examples) == (2, ((3, 1), (5, 1)))
    assert (found.between, found.between_examples) == (2, ((2, 2), (3, 1)))


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.slow
def test_lengths_are_those_before_the_cut() -> None:
    rows = [chat("?", "x" * count) for count in (1, 5, 100)] + [chat("?" * 200, "lost")]
    tokenizer = tiny_tokenizer()
    whole = length_stats(encode(rows, tokenizer, answers_only=True, max_length=1000), 1000)
    found = length_stats(encode(rows, tokenizer, answers_only=True, max_length=60), 60)
    frame = whole.shortest - 1
    assert (found.shortest, found.longest, found.longest_row) == (frame + 1, frame + 203, 4)
    assert (found.rows, found.cut, found.left_out) == (4, 2, 1)
    assert sum(count for _, count in found.bins) == 4
    assert found.bins[-1][0] == found.longest
    assert whole.lost == 0
    assert whole.counted == found.counted == 1 + 5 + 100 + 4 + 4 * 2  # each with the token that ends it and a newline
    assert found.lost == frame + 100 - 60 + 4 + 2


@pytest.mark.slow
def test_preview_by_tokens() -> None:
    tokenizer = tiny_tokenizer()
    examples = encode([chat("Grüß 🙂", "né")], tokenizer, answers_only=True, max_length=1000)
    [row] = preview_rows(examples, tokenizer)
    assert "".join(row.tokens) == tokenizer.apply_chat_template(chat("Grüß 🙂", "né")["messages"], tokenize=False)
    assert "�" not in "".join(row.tokens)
    assert [text for text, counts in row.parts() if counts] == ["né<|im_end|>\n"]


def request_of(home: Path, model: Path, rows: list[Any], **config: Any) -> dict[str, Any]:
    """Return the request for the process."""
    data = "\n".join(json.dumps(row) for row in rows).encode()
    digest = hashlib.sha256(data).hexdigest()
    (home / "datasets").mkdir(parents=True, exist_ok=True)
    (home / "datasets" / digest).write_bytes(data)
    (home / "folder").mkdir(exist_ok=True)
    source = {"type": "blob", "url": f"/v1/datasets/{digest}/rows.jsonl"}
    wanted = {"model": str(model), "datasetSource": source, **config}
    return {"config": wanted, "token": None, "folder": str(home / "folder"), "busy": False}


def checked_in_process(home: Path, question: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the process; return its lines."""
    module = [sys.executable, "-m", "arkor.backend.preflight.process", "--home", str(home), "--engine", "trl"]
    with subprocess.Popen(module, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(question).encode() + b"\n")
        process.stdin.flush()
        lines = [json.loads(line) for line in process.stdout]
    assert process.returncode == 0
    return lines


def checked(home: Path, model: Path, rows: list[Any], **config: Any) -> list[dict[str, Any]]:
    """Return the same lines without a process, whose imports take seconds."""
    lines: list[dict[str, Any]] = []
    run_check(request_of(home, model, rows, **config), home, "trl", lines.append)
    return lines


def found(lines: list[dict[str, Any]]) -> dict[str, Any]:
    assert lines[-1] == {"done": True}
    return {name: value for line in lines if "found" in line for name, value in line["found"].items()}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "llama")


CHATS = [chat(f"What is {number}?", "word " * (number % 7 + 1)) for number in range(40)]


@pytest.mark.slow
def test_a_run_is_estimated_from_its_steps(tmp_path: Path, llama: Path) -> None:
    fields = {"maxSteps": 200, "batchSize": 4, "evalSteps": 50, "loggingSteps": 10}
    check = found(checked_in_process(tmp_path, request_of(tmp_path, llama, CHATS, **fields)))
    estimate = check["estimate"]
    assert (check["trainRows"], check["evalRows"]) == (36, 4)
    assert (check["lengths"]["rows"], check["evalLengths"]["rows"]) == (36, 4)
    assert len(check["preview"]) == 3
    assert estimate["steps"] == 200
    assert 5 <= estimate["timedSteps"] <= 40  # depends on the speed of the machine
    assert estimate["seconds"] >= 200 * estimate["stepSeconds"] > 0
    assert 2**27 < estimate["memoryBytes"] < 2**33
    assert not list((tmp_path / "folder").glob("*/*.partial"))


@pytest.mark.slow
def test_all_errors_in_the_data_are_reported(tmp_path: Path, llama: Path) -> None:
    check = found(checked(tmp_path, llama, [CHATS[0], *[{"messages": []}] * 60]))
    assert (len(check["problems"]), check["problemCount"]) == (60, 60)
    assert check["problems"][-1].startswith("line 61: messages: is an empty list")
    assert "estimate" not in check


@pytest.mark.slow
def test_invalid_configurations_are_refused(tmp_path: Path, llama: Path) -> None:
    assert "max_length is 4096, but" in checked(tmp_path, llama, CHATS, maxLength=4096)[-1]["refused"]
    assert "load_in_4bit requires" in checked(tmp_path, llama, CHATS, loadIn4bit=True)[-1]["refused"]
