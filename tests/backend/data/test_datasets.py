"""Data sources → rows: every format, every kind of file, and a sentence for every fault."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from arkor.backend.data.datasets import DataError, Rows, load_rows
from arkor.backend.data.packed_rows import PackedRows
from arkor.backend.engine.hyperparameters import EVAL_ROWS
from arkor.protocol.datasets import BlobDataset, HuggingFaceDataset

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def jsonl(*records: Any) -> bytes:
    return "\n".join(json.dumps(record) for record in records).encode()


def upload(home: Path, data: bytes, name: str = "tickets.jsonl") -> BlobDataset:
    digest = hashlib.sha256(data).hexdigest()
    (home / "datasets").mkdir(parents=True, exist_ok=True)
    (home / "datasets" / digest).write_bytes(data)
    return BlobDataset(f"/v1/datasets/{digest}/{name}")


def load(home: Path, data: bytes, name: str = "tickets.jsonl", **options: Any) -> Rows:
    return load_rows(upload(home, data, name), home=home, **options)


def fault(home: Path, data: bytes, name: str = "tickets.jsonl", **options: Any) -> str:
    with pytest.raises(DataError) as raised:
        load(home, data, name, **options)
    return str(raised.value)


# Formats


FORMATS = {
    "chatml": (CHAT, CHAT["messages"]),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        CHAT["messages"],
    ),
    "alpaca": ({"instruction": "Hi", "input": "", "output": "Hello"}, CHAT["messages"]),
    "prompt_completion": ({"prompt": "Hi", "completion": "Hello"}, CHAT["messages"]),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("named", [True, False])
def test_a_format_is_recognised_by_its_fields_or_by_its_name(tmp_path: Path, name: str, named: bool) -> None:
    record, messages = FORMATS[name]
    rows = load(tmp_path, jsonl(record), format=name if named else None)
    assert rows.format == name
    assert rows.train[0] == {"messages": messages}
    assert rows.chat


def test_plain_text(tmp_path: Path) -> None:
    rows = load(tmp_path, jsonl({"text": "Once upon a time"}))
    assert rows.train[0] == {"text": "Once upon a time"}
    assert not rows.chat


def test_the_named_format_wins_over_the_fields(tmp_path: Path) -> None:
    rows = load(tmp_path, jsonl({**CHAT, "text": "plain"}), format="text")
    assert rows.train[0] == {"text": "plain"}


def test_fields_that_play_no_part_are_told(tmp_path: Path) -> None:
    rows = load(tmp_path, jsonl({"text": "a", "category": "b"}))
    assert rows.notes == ("Rows are read as text; these fields are ignored: category",)


def test_an_alpaca_input_follows_its_instruction(tmp_path: Path) -> None:
    rows = load(tmp_path, jsonl({"instruction": "Translate.", "input": "Hallo", "output": "Hello"}))
    assert rows.train[0]["messages"][0]["content"] == "Translate.\n\nHallo"


def test_tools_and_tool_calls_are_kept(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    answer = {"role": "tool", "tool_call_id": "1", "content": "3"}
    record = {"messages": [CHAT["messages"][0], call, answer, CHAT["messages"][1]], "tools": [{"type": "function"}]}
    row = load(tmp_path, jsonl(record)).train[0]
    assert row["tools"] == record["tools"]
    assert row["messages"][1]["tool_calls"] == call["tool_calls"]
    assert row["messages"][2]["tool_call_id"] == "1"


USER_AND_CALL = [
    {"from": "human", "value": "How is Oslo?"},
    {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
    {"from": "observation", "value": "sunny"},
    {"from": "gpt", "value": "Sunny."},
]
WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}}


def test_calls_of_llama_factory(tmp_path: Path) -> None:
    record = {"conversations": USER_AND_CALL, "tools": json.dumps([WEATHER]), "system": "Be brief."}
    row = load(tmp_path, jsonl(record)).train[0]
    assert row["tools"] == [{"type": "function", "function": WEATHER}]
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    called = {"name": "weather", "arguments": {"city": "Oslo"}}
    assert row["messages"][2] == {"role": "assistant", "content": "", "tool_calls": [{"function": called}]}


def test_parallel_calls_of_llama_factory(tmp_path: Path) -> None:
    both = json.dumps([{"name": "a", "arguments": {}}, {"name": "b", "arguments": "{}"}])
    turns = [USER_AND_CALL[0], {"from": "function_call", "value": both}, *USER_AND_CALL[2:]]
    [first, second] = load(tmp_path, jsonl({"conversations": turns})).train[0]["messages"][1]["tool_calls"]
    assert (first["function"]["name"], second["function"]["name"]) == ("a", "b")
    apart = [USER_AND_CALL[0], USER_AND_CALL[1], USER_AND_CALL[1], *USER_AND_CALL[2:]]
    assert len(load(tmp_path, jsonl({"conversations": apart})).train[0]["messages"][1]["tool_calls"]) == 2


def answered(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", **fields}]}


HONOURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "weight": (
        {"messages": [*answered(content="No", weight=0)["messages"], *CHAT["messages"]]},
        {"content": "No", "weight": 0},
    ),
    "train": (
        {"messages": [*answered(content="No", train=False)["messages"], *CHAT["messages"]]},
        {"content": "No", "weight": 0},
    ),
    "weight 1": (answered(content="Hello", weight=1.0), {"content": "Hello"}),
    "parts": (
        answered(content=[{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]),
        {"content": "Hello"},
    ),
    "thoughts in parts": (
        answered(content=[{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hello"}]),
        {"content": "Hello", "reasoning_content": "Hm."},
    ),
    "reasoning": (answered(content="Hello", reasoning="Hm."), {"content": "Hello", "reasoning_content": "Hm."}),
    "refusal": (answered(content=None, refusal="I cannot."), {"content": "I cannot."}),
    "no calls": (answered(content="Hello", tool_calls=[]), {"content": "Hello"}),
    "old call": (
        answered(content=None, function_call={"name": "f", "arguments": "{}"}),
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
    ),
    "flat call": (
        answered(content="", tool_calls=[{"name": "f", "arguments": {"a": 1}}]),
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
    ),
}


@pytest.mark.parametrize("name", HONOURED)
def test_a_field_of_a_message_is_honoured(tmp_path: Path, name: str) -> None:
    record, message = HONOURED[name]
    assert load(tmp_path, jsonl(record)).train[0]["messages"][1] == {"role": "assistant", **message}


@pytest.mark.parametrize(("result", "text"), [({"t": 18}, '{"t": 18}'), ([1, 2], "[1, 2]"), (18, "18"), ("18", "18")])
def test_a_result_of_a_tool_may_be_json(tmp_path: Path, result: Any, text: str) -> None:
    turns = [*CHAT["messages"], {"role": "tool", "content": result}]
    assert load(tmp_path, jsonl({"messages": turns})).train[0]["messages"][2]["content"] == text


def test_messages_as_columns(tmp_path: Path) -> None:
    """A sequence of objects of the `datasets` library is an object of lists."""
    columns = {"from": ["human", "gpt"], "value": ["Hi", "Hello"]}
    assert load(tmp_path, jsonl({"conversations": columns})).train[0] == CHAT


def test_answers_in_a_prompt_are_context(tmp_path: Path) -> None:
    row = load(tmp_path, jsonl({"prompt": CHAT["messages"], "completion": CHAT["messages"]})).train[0]
    assert [message.get("weight") for message in row["messages"]] == [None, 0, None, None]


def test_functions_history_and_template_options(tmp_path: Path) -> None:
    record = {"instruction": "c", "output": "d", "history": [["a", "b"]], "functions": [WEATHER], "system": "s"}
    row = load(tmp_path, jsonl({**record, "chat_template_kwargs": {"enable_thinking": False}})).train[0]
    assert [message["content"] for message in row["messages"]] == ["s", "a", "b", "c", "d"]
    assert row["tools"][0]["function"] == WEATHER
    assert row["chat_template_kwargs"] == {"enable_thinking": False}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "weight": (
        answered(content="x", weight=0.5),
        "messages[1].weight: must be 0 (context only) or 1 (learnt), not 0.5",
    ),
    "all weights 0": (answered(content="x", weight=0), "has only messages of the assistant with the weight 0"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, CHAT["messages"][1]]},
        "messages[0].content: must be a string or a list of text parts, but part 0 is",
    ),
    "images": ({**CHAT, "images": ["a.png"]}, "images: is not empty, but only text is trained on"),
    "audio": (answered(content="x", audio={"id": "a"}), "messages[1].audio: audio is not supported"),
    "spans": (answered(content="x", train_detail=[{"begin_offset": 0}]), "parts of a message cannot be selected"),
    "call": (
        {"conversations": [USER_AND_CALL[0], {"from": "function_call", "value": "weather(Oslo)"}]},
        'conversations[1].value: must be JSON like {"name": …, "arguments": {…}}, not \'weather(Oslo)\'',
    ),
    "arguments": (
        answered(content=None, tool_calls=[{"function": {"name": "f", "arguments": "city=Oslo"}}]),
        "messages[1].tool_calls[0].function.arguments: must be an object, or JSON of one, not 'city=Oslo'",
    ),
    "calls of the user": (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}, CHAT["messages"][1]]},
        "messages[0].tool_calls: belong in messages of the assistant only",
    ),
    "bad completion": ({"prompt": "a", "completion": "b", "label": False}, "label: is false, which marks a completion"),
    "preference": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen: holds a preference pair"),
    "segments": ({"segments": [{"label": True, "text": "x"}]}, "segments: holds labelled segments"),
    "options": ({**CHAT, "chat_template_kwargs": {"tokenize": True}}, "is not an option of a chat template"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, name: str) -> None:
    record, words = REFUSED[name]
    sentence = fault(tmp_path, jsonl(record))
    assert sentence.startswith("tickets.jsonl has 1 bad row; nothing was trained:\n  line 1: ")
    assert words in sentence


def test_ignored_fields_of_all_rows_are_counted(tmp_path: Path) -> None:
    marked = [{**CHAT["messages"][0], "weight": 1, "mood": "good"}, CHAT["messages"][1]]
    rows = load(tmp_path, jsonl({**CHAT, "id": 1}, {**CHAT, "id": 2, "score": 3}, {"messages": marked, "id": 3}))
    assert rows.notes == (
        "Rows are read as chatml; these fields are ignored: id, score (in 1 of 3 rows), "
        "messages[].mood (in 1 of 3 rows), messages[].weight (in 1 of 3 rows)",
    )


def test_bad_rows_may_be_skipped(tmp_path: Path) -> None:
    rows = load(tmp_path, jsonl(CHAT, {"messages": []}, CHAT, {"messages": 1}), skip_bad=True)
    assert len(rows.train) == 2
    [note] = rows.notes
    assert note.startswith("2 bad rows of tickets.jsonl skipped: line 2: messages: is an empty list")
    assert [rows.train.place(index) for index in range(2)] == ["line 1", "line 3"]
    assert "has 1 bad row" in fault(tmp_path, jsonl({"messages": []}), skip_bad=True)


# Files


def as_csv(*records: dict[str, str]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def as_parquet(*records: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), sink)
    return sink.getvalue()


PAIR = {"prompt": "Hé, “you”, 😀\nthere", "completion": "Oui, là"}
FILES = {
    "a.jsonl": jsonl(PAIR, PAIR),
    "blank-lines.jsonl": b"\n" + jsonl(PAIR) + b"\r\n\r\n" + jsonl(PAIR) + b"\n",
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl(PAIR, PAIR),
    "no-name": jsonl(PAIR, PAIR),
    "lines.json": jsonl(PAIR, PAIR),
    "array.json": json.dumps([PAIR, PAIR]).encode(),
    "pretty.json": json.dumps([PAIR, PAIR], indent=2, ensure_ascii=False).encode(),
    "data.json": json.dumps({"data": [PAIR, PAIR]}).encode(),
    "a.csv": as_csv(PAIR, PAIR),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(PAIR, PAIR),
    "tabs.tsv": b"prompt\tcompletion\na\tb\nc\td\n",
    "a.parquet": as_parquet(PAIR, PAIR),
    "list.jsonl": json.dumps([PAIR, PAIR]).encode(),
    "pretty.jsonl": json.dumps([PAIR, PAIR], indent=2).encode(),
    "data.jsonl": json.dumps({"data": [PAIR, PAIR]}, indent=1).encode(),
    "objects.jsonl": b"\n".join([json.dumps(PAIR, indent=1).encode()] * 2),
    "lines.csv": jsonl(PAIR, PAIR),
    "long-lines.json": jsonl({**PAIR, "x": "y" * 5000}, {**PAIR, "x": "y"}),
    "long-lines": jsonl({**PAIR, "x": "y" * 100_000}, {**PAIR, "x": "y"}),
    "long-bom.json": b"\xef\xbb\xbf" + jsonl({**PAIR, "x": "y" * 5000}, {**PAIR, "x": "y"}),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file(tmp_path: Path, name: str, zipped: bool) -> None:
    data = gzip.compress(FILES[name]) if zipped else FILES[name]
    rows = load(tmp_path, data, f"{name}.gz" if zipped else name)
    assert len(rows.train) == 2
    if name != "tabs.tsv":
        assert [message["content"] for message in rows.train[1]["messages"]] == list(PAIR.values())


def test_nulls_of_the_columns_of_parquet_are_absent(tmp_path: Path) -> None:
    def called(**arguments: Any) -> dict[str, Any]:
        call = {"function": {"name": "f", "arguments": arguments}}
        return {"messages": [CHAT["messages"][0], {"role": "assistant", "content": None, "tool_calls": [call]}]}

    rows = load(tmp_path, as_parquet(called(city="Oslo"), called(currency="NOK")), "a.parquet").train
    arguments = [row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in rows]
    assert arguments == [{"city": "Oslo"}, {"currency": "NOK"}]
    kept = load(tmp_path, jsonl(called(city=None))).train[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert kept == {"city": None}


def test_dates_and_maps_of_parquet_are_json(tmp_path: Path) -> None:
    day, moment = datetime(2024, 2, 3), datetime(2024, 2, 3, 4, 5)
    kind = pyarrow.map_(pyarrow.string(), pyarrow.timestamp("us"))
    call = pyarrow.struct([("function", pyarrow.struct([("name", pyarrow.string()), ("arguments", kind)]))])
    message = pyarrow.struct(
        [("role", pyarrow.string()), ("content", pyarrow.string()), ("tool_calls", pyarrow.list_(call))]
    )
    calls = [{"function": {"name": "f", "arguments": [("day", day), ("moment", moment)]}}]
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table({"messages": pyarrow.array([turns], pyarrow.list_(message))}), sink)
    row = load(tmp_path, sink.getvalue(), "a.parquet").train[0]
    arguments = row["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert arguments == {"day": "2024-02-03", "moment": "2024-02-03T04:05:00"}


def test_one_record_of_several_lines_is_a_data_set(tmp_path: Path) -> None:
    assert len(load(tmp_path, json.dumps(CHAT, indent=2).encode(), "one.json").train) == 1


def test_messages_may_stand_in_a_csv_cell(tmp_path: Path) -> None:
    rows = load(tmp_path, as_csv({"messages": json.dumps(CHAT["messages"])}), "cells.csv")
    assert rows.train[0] == CHAT


# Faults of rows


def chat(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


USER, ASSISTANT = CHAT["messages"]

BAD_ROWS: dict[str, tuple[Any, str]] = {
    "no assistant": (chat(USER), "messages: has no message of the assistant"),
    "unknown role": (chat(USER, {"role": "robot", "content": "x"}), 'messages[1].role: must be "system", "user"'),
    "role not text": (chat(USER, {"role": 3, "content": "x"}), "messages[1].role: must be"),
    "content not text": (chat(USER, {"role": "assistant", "content": 5}), "messages[1].content: must be a string"),
    "content parts": (chat({"role": "user", "content": [{"type": "text"}]}, ASSISTANT), "messages[0].content: must"),
    "content null": (chat({"role": "user", "content": None}, ASSISTANT), "messages[0].content: must be a string"),
    "no content": (chat(USER, {"role": "assistant"}), "messages[1].content: is missing; the message has role"),
    "no role": (chat({"content": "x"}, ASSISTANT), "messages[0].role: is missing; the message has content"),
    "empty answer": (chat(USER, {"role": "assistant", "content": " "}), "messages[1].content: is empty"),
    "message not object": (chat("Hi", ASSISTANT), "messages[0]: must be {"),
    "messages not list": ({"messages": {"role": "user"}}, "messages: must be a list of messages"),
    "messages empty": ({"messages": []}, "messages: is an empty list"),
    "messages null": ({"messages": None}, "messages: is missing"),
    "row not object": ([1, 2], "a row must be an object"),
    "half a character": (
        chat(USER, {"role": "assistant", "content": "\ud83d"}),
        "contains an unpaired surrogate (\\ud83d)",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_told_by_file_line_and_field(tmp_path: Path, name: str) -> None:
    record, words = BAD_ROWS[name]
    sentence = fault(tmp_path, jsonl(CHAT, record))
    assert sentence.startswith("tickets.jsonl has 1 bad row; nothing was trained:\n  line 2: ")
    assert words in sentence


def test_an_unknown_shape_says_which_shapes_there_are(tmp_path: Path) -> None:
    sentence = fault(tmp_path, jsonl({"question": "a", "answer": "b"}))
    assert "line 1: the row has question, answer, but a row must have one of: messages; conversations" in sentence


def test_a_named_format_names_the_field_that_is_missing(tmp_path: Path) -> None:
    assert "output: is missing; the row has instruction" in fault(
        tmp_path, jsonl({"instruction": "x"}), format="alpaca"
    )


def test_a_null_in_one_row_of_parquet(tmp_path: Path) -> None:
    sentence = fault(tmp_path, as_parquet({"text": "a"}, {"text": None}), "a.parquet")
    assert "row 2: text: is missing" in sentence


def test_twenty_faults_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    sentence = fault(tmp_path, jsonl(*[chat(USER)] * 25, CHAT))
    assert sentence.startswith("tickets.jsonl has 25 bad rows")
    assert sentence.count("\n  line ") == 20
    assert sentence.endswith("… and 5 more")


# Faults of lines and files


def test_json_that_breaks_off_in_a_line(tmp_path: Path) -> None:
    sentence = fault(tmp_path, jsonl(CHAT) + b'\n{"messages": [{"role": "us\n' + jsonl(CHAT))
    assert "line 2: is not valid JSON (" in sentence
    assert "write one whole JSON object per line" in sentence


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    assert "line 1: is nested too deeply" in fault(tmp_path, b"[" * 100_000)
    assert "too deeply" in fault(tmp_path, b"[" * 100_000, "deep.json")


def test_a_number_of_too_many_digits(tmp_path: Path) -> None:
    assert "line 1: contains a value that cannot be read" in fault(tmp_path, b'{"text": ' + b"9" * 5000 + b"}")


WHOLE_FILES: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "a.jsonl", "a.jsonl is empty."),
    "blank": (b" \n\n", "a.jsonl", "a.jsonl is empty."),
    "empty list": (b"[]", "a.json", "a.json is an empty list."),
    "header alone": (b"prompt,completion\n", "a.csv", "a.csv is empty."),
    "latin-1": (
        jsonl(CHAT) + '\n{"text": "café"}'.encode("latin-1"),
        "a.jsonl",
        "a.jsonl, line 2 is not UTF-8 (byte 0xE9",
    ),
    "latin-1 array": ('[\n{"text": "café"}]'.encode("latin-1"), "a.json", "a.json, line 2 is not UTF-8 (byte 0xE9"),
    "utf-16": ('{"text": "a"}'.encode("utf-16"), "a.jsonl", "a.jsonl is in UTF-16; save it as UTF-8"),
    "web page": (b"\n<!DOCTYPE html><html>", "a.jsonl", "a.jsonl is a web page, not data."),
    "zip": (b"PK\x03\x04rest", "a.zip", "a.zip is a ZIP archive"),
    "cut gzip": (
        gzip.compress(jsonl(*[CHAT] * 999))[:-20],
        "a.jsonl.gz",
        "The gzip stream of a.jsonl.gz is incomplete",
    ),
    "array without end": (b'[{"text": "a"}\n', "a.json", "a comma or the closing ] is missing"),
    "array broken": (b'[{"text": "a"},\n {"text": ]', "a.json", "a.json, line 2: the file is not valid JSON"),
    "not a list": (b'"hello"', "a.json", "a.json must be a list of rows"),
    "doubled header": (b"text,text\na,b\n", "a.csv", "line 1: the column 'text' occurs twice"),
    "open quote": (b'text\n"never closed\n', "a.csv", "Is a quotation mark not closed?"),
    "no parquet": (b"{}", "a.parquet", "a.parquet is not a Parquet file"),
    "cut parquet": (as_parquet(PAIR)[:-30], "a.parquet", "cannot be read as Parquet"),
}


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_a_file_that_is_of_no_use_has_its_sentence(tmp_path: Path, name: str) -> None:
    data, file, words = WHOLE_FILES[name]
    assert words in fault(tmp_path, data, file)


def test_a_csv_row_with_too_many_cells(tmp_path: Path) -> None:
    sentence = fault(tmp_path, b"prompt,completion\na,b\nHello, you,Hi\n", "a.csv")
    assert "line 3: has 3 cells, but the header has 2" in sentence


def test_an_upload_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not on this backend any more"):
        load_rows(BlobDataset(f"/v1/datasets/{'0' * 64}/a.jsonl"), home=tmp_path)


@pytest.mark.parametrize("path", ["../../secret", "%2e%2e/x", "etc/passwd"])
def test_an_upload_path_leads_nowhere_else(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_bytes(jsonl(CHAT))
    with pytest.raises(DataError, match="is not on this backend any more"):
        load_rows(BlobDataset(f"/v1/datasets/{path}"), home=tmp_path)


# Splits


NUMBERED = jsonl(*[{"text": str(number)} for number in range(100)])


def numbers(rows: PackedRows | None) -> list[int]:
    return [int(row["text"]) for row in rows or ()]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", range(100)),
        ("train[:20]", range(20)),
        ("train[10%:]", range(10, 100)),
        ("train[-5:]", range(95, 100)),
        ("[5:7]", range(5, 7)),
        ({"train": "train[:30]"}, range(30)),
    ],
)
def test_a_slice_of_a_file(tmp_path: Path, split: Any, expected: range) -> None:
    rows = load(tmp_path, NUMBERED, split=split)
    assert numbers(rows.train) == list(expected)
    assert rows.eval is None


@pytest.mark.parametrize("split", [0.2, {"eval": 0.2}])
def test_a_share_is_held_out(tmp_path: Path, split: Any) -> None:
    rows = load(tmp_path, NUMBERED, split=split)
    assert len(rows.train) == 80
    assert sorted(numbers(rows.train) + numbers(rows.eval)) == list(range(100))
    assert numbers(rows.eval) != list(range(80, 100)), "a random part, not the end"
    assert numbers(load(tmp_path, NUMBERED, split=split).eval) == numbers(rows.eval), "the same part each time"


def test_train_and_eval_by_slices(tmp_path: Path) -> None:
    rows = load(tmp_path, NUMBERED, split={"train": "train[:90%]", "eval": "train[90%:]"})
    assert numbers(rows.eval) == list(range(90, 100))
    assert numbers(rows.train) == list(range(90))


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ("test", 'the only split of a file is "train"'),
        ("train[a:]", "is not valid"),
        ("train[100:]", "selects none of the 100"),
    ],
)
def test_a_split_that_cannot_be(tmp_path: Path, split: str, words: str) -> None:
    assert words in fault(tmp_path, NUMBERED, split=split)


def test_one_row_cannot_be_divided(tmp_path: Path) -> None:
    assert "needs at least two" in fault(tmp_path, jsonl(CHAT), split=0.5)


def test_rows_are_held_out_by_number_and_seed(tmp_path: Path) -> None:
    def held_out(**fields: Any) -> list[int]:
        rows = load(tmp_path, NUMBERED, split={"enabled": True, **fields})
        assert sorted(numbers(rows.train) + numbers(rows.eval)) == list(range(100))
        return numbers(rows.eval)

    assert len(held_out()) == 10
    assert len(held_out(testSize=0.2)) == 20
    assert len(held_out(testSize=7)) == 7
    assert held_out(seed=1) == held_out(seed=1) != held_out(seed=2)
    assert held_out(testSize=0.1, seed=0) == numbers(load(tmp_path, NUMBERED, split=0.1).eval)
    assert load(tmp_path, NUMBERED, split={"enabled": False}).eval is None
    assert "holds out 100 rows, and the data set has 100" in fault(
        tmp_path, NUMBERED, split={"enabled": True, "testSize": 100}
    )


# Other columns, and tokens


@pytest.mark.parametrize("mapping", [{"instruction": "q", "output": "a"}, {"q": "instruction", "a": "output"}])
def test_columns_are_mapped_in_both_directions(tmp_path: Path, mapping: dict[str, str]) -> None:
    rows = load(tmp_path, jsonl({"q": "Hallo", "a": "Hello", "instruction": 7}), format="alpaca", columns=mapping)
    assert [message["content"] for message in rows.train[0]["messages"]] == ["Hallo", "Hello"]


def test_a_mapped_column_that_a_row_lacks(tmp_path: Path) -> None:
    mapping = {"messages": "turns"}
    data = jsonl({"turns": CHAT["messages"]}, {"other": 1})
    assert "line 2: messages: is missing" in fault(tmp_path, data, format="chatml", columns=mapping)


def test_rows_that_are_tokens(tmp_path: Path) -> None:
    padded = {"input_ids": [5, 6, 0], "labels": [-100, 6, -100], "attention_mask": [1, 1, 0]}
    rows = load(tmp_path, jsonl({"input_ids": [1, 2, 3]}, padded))
    assert (rows.format, rows.chat) == ("pretokenized", False)
    assert list(rows.train) == [{"input_ids": [1, 2, 3]}, {"input_ids": [5, 6], "labels": [-100, 6]}]


def test_rows_that_are_tokens_need_their_format_in_another_one(tmp_path: Path) -> None:
    data = jsonl(CHAT, {"input_ids": [1, 2]})
    assert (
        "line 2: messages: is missing; the row has input_ids; for rows that are tokens, "
        'set dataset_format={"type": "pretokenized"}'
    ) in fault(tmp_path, data)
    assert list(load(tmp_path, jsonl({**CHAT, "input_ids": [1, 2]}), format="pretokenized").train) == [
        {"input_ids": [1, 2]}
    ]


def test_mapped_rows_keep_their_places(tmp_path: Path) -> None:
    data = jsonl({"turns": CHAT["messages"]}, {"turns": 1}, {"turns": CHAT["messages"], "score": 2})
    rows = load(tmp_path, data, format="chatml", columns={"messages": "turns"}, skip_bad=True)
    assert [rows.train.place(index) for index in range(2)] == ["line 1", "line 3"]
    assert rows.notes[0].startswith("1 bad row of tickets.jsonl skipped: line 2: messages: must be a list of messages")
    assert rows.notes[1:] == ("Rows are read as chatml; these fields are ignored: score (in 1 of 2 rows)",)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"input_ids": []}, "input_ids: has no tokens; leave the row out"),
        ({"input_ids": [1, -1]}, "input_ids: must contain token ids, not -1"),
        ({"input_ids": [1, 2.5]}, "input_ids: must contain token ids, not 2.5"),
        ({"input_ids": "hello"}, "input_ids: must be a list of numbers"),
        ({"input_ids": [1, 2], "labels": [1]}, "labels: has 1 items, but input_ids has 2"),
        ({"input_ids": [1], "labels": [-3]}, "labels: must be token ids, or -100"),
    ],
)
def test_rows_that_are_not_tokens(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    assert words in fault(tmp_path, jsonl(row))


# The hub's library, on a repository that lies in the working directory


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "acme" / "tickets"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_bytes(NUMBERED)
    (folder / "test.jsonl").write_bytes(jsonl({"text": "1000"}, {"text": "1001"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return "acme/tickets"


@pytest.mark.slow
def test_a_hugging_face_data_set(tmp_path: Path, repository: str) -> None:
    source = HuggingFaceDataset(repository)
    assert numbers(load_rows(source, home=tmp_path).train) == list(range(100))
    assert numbers(load_rows(HuggingFaceDataset(repository, split="test"), home=tmp_path).train) == [1000, 1001]
    assert numbers(load_rows(source, split="train[:3]", home=tmp_path).train) == [0, 1, 2]
    both = load_rows(source, split={"train": "train[:5]", "eval": "test"}, home=tmp_path)
    assert (numbers(both.train), numbers(both.eval)) == ([0, 1, 2, 3, 4], [1000, 1001])
    with pytest.raises(DataError, match=r"cannot be loaded.*dev"):
        load_rows(source, split="dev", home=tmp_path)


@pytest.mark.slow
def test_the_validation_split_is_evaluated_on_if_none_is_named(tmp_path: Path, repository: str) -> None:
    source = HuggingFaceDataset(repository)
    assert load_rows(source, home=tmp_path, evaluates=True).eval is None  # train and test only
    (tmp_path / repository / "validation.jsonl").write_bytes(jsonl({"text": "2000"}, {"text": "2001"}))
    rows = load_rows(source, home=tmp_path, evaluates=True)
    assert (len(rows.train), numbers(rows.eval)) == (100, [2000, 2001])
    assert f"Evaluating on the split validation of {repository}" in rows.notes
    assert numbers(load_rows(source, split="train[:3]", home=tmp_path, evaluates=True).eval) == [2000, 2001]
    assert load_rows(source, home=tmp_path).eval is None
    named = load_rows(source, split={"eval": "test"}, home=tmp_path, evaluates=True)
    assert numbers(named.eval) == [1000, 1001]
    held_out = load_rows(source, split=0.02, home=tmp_path, evaluates=True)
    assert (len(held_out.train), len(held_out.eval or ())) == (98, 2)
    for split in ("validation", "train+validation[:1]"):
        assert load_rows(HuggingFaceDataset(repository, split=split), home=tmp_path, evaluates=True).eval is None
    many = jsonl(*({"text": str(number)} for number in range(EVAL_ROWS + 1)))
    (tmp_path / repository / "validation.jsonl").write_bytes(many)
    rows = load_rows(source, home=tmp_path, evaluates=True)
    assert numbers(rows.eval) == list(range(EVAL_ROWS))
    assert rows.notes[-1] == f"Evaluating on the split validation[:{EVAL_ROWS}] of {repository}"
    (tmp_path / repository / "train.jsonl").unlink()
    (tmp_path / repository / "test.jsonl").unlink()
    rows = load_rows(source, home=tmp_path, evaluates=True)
    assert (len(rows.train), rows.eval) == (EVAL_ROWS + 1, None)  # the only split is trained on


@pytest.mark.slow
def test_a_hugging_face_data_set_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"acme/nothing"):
        load_rows(HuggingFaceDataset("acme/nothing"), home=tmp_path)


@pytest.mark.parametrize("name", ["../secrets", "/etc", "a/b/c", "~x"])
def test_a_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="is not a valid name of a Hugging Face data set"):
        load_rows(HuggingFaceDataset(name), home=tmp_path)


# Size


@pytest.mark.slow
def test_many_rows_take_little_memory(tmp_path: Path) -> None:
    """A million of them less than 500 MiB."""
    many = 300_000
    line = jsonl({"messages": [{"role": "user", "content": "x" * 100}, {"role": "assistant", "content": "y" * 20}]})
    source = upload(tmp_path, (line + b"\n") * many)
    code = (
        "import psutil; from pathlib import Path; from arkor.backend.data.datasets import load_rows;"
        "from arkor.protocol.datasets import BlobDataset; before = psutil.Process().memory_info().rss;"
        f"rows = load_rows(BlobDataset({source.url!r}), home=Path({str(tmp_path)!r}));"
        "print(len(rows.train), psutil.Process().memory_info().rss - before)"
    )
    count, taken = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert int(count) == many
    assert int(taken) < 500 * 2**20 * many / 1_000_000
