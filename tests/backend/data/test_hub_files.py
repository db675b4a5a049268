"""Data sets of the hub, as repositories in the working directory: texts are those of their files."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from arkor.backend.data.datasets import DataError, load_rows
from arkor.protocol.datasets import HuggingFaceDataset
from tests.fakes.hub import hub_of

pytestmark = pytest.mark.slow

Load = Callable[..., list[Any]]

README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: rows.csv
  sep: ";"
---
"""


def lines(*rows: Any) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def pair(prompt: str, completion: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, **more}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Write the files of a repository and load it; return the training rows as their last texts."""
    folder = tmp_path / "acme" / "rows"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def load(files: dict[str, bytes], **options: Any) -> list[Any]:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        source = HuggingFaceDataset("acme/rows", split=options.pop("named", None))
        rows = load_rows(source, home=tmp_path, **options).train
        return [row["text"] if "text" in row else row["messages"][-1]["content"] for row in rows]

    return load


def test_dates_stay_texts(load: Load) -> None:
    dates = ["2024-01-01", "2024-02-01T10:00:00Z", "2024-03-01 09:30"]
    assert load({"train.jsonl": lines(*(pair("When?", date) for date in dates))}) == dates


def test_numbers_of_a_csv_file_stay_texts(load: Load) -> None:
    assert load({"train.csv": b"prompt,completion\nWhich code?,007\nAnd now?,1.50\n"}) == ["007", "1.50"]


def test_numbers_of_a_tsv_file_stay_texts(load: Load) -> None:
    assert load({"train.tsv": b"prompt\tcompletion\nWhich one, now?\t010\n"}) == ["010"]


def test_a_column_may_be_null_for_long_and_change_its_type(load: Load) -> None:
    long = [pair("x" * 1000, str(number), note=None) for number in range(11_000)]  # more than 10 MiB
    rows = [*long, pair("a", "b", note="a text"), pair("c", "d", note={"a": 1}), pair("e", "f", note=5)]
    assert load({"train.jsonl": lines(*rows)})[-3:] == ["b", "d", "f"]


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv", "train.json"])
def test_an_empty_file_is_named(load: Load, name: str) -> None:
    with pytest.raises(DataError, match=rf"^{name} is empty\. A data set needs at least one row\.$"):
        load({name: b""})


def test_a_bad_row_is_named_by_file_and_line(load: Load) -> None:
    with pytest.raises(DataError, match=r"acme/rows has 1 bad row; nothing was trained:\n  train\.jsonl, line 2: "):
        load({"train.jsonl": lines(pair("a", "b"), pair("c", ""))})


def test_splits_and_slices(load: Load) -> None:
    def texts(start: int, stop: int) -> list[str]:
        return [str(number) for number in range(start, stop)]

    files = {
        "train.jsonl": lines(*({"text": text} for text in texts(0, 10))),
        "test.jsonl.gz": gzip.compress(lines(*({"text": text} for text in texts(10, 15)))),
    }
    assert load(files) == texts(0, 10)
    assert load(files, named="test") == texts(10, 15)
    assert load(files, split="train[:3]") == texts(0, 3)
    assert load(files, split="train[50%:]") == texts(5, 10)
    assert load(files, split="train[-2:]+test[1:2]") == ["8", "9", "11"]
    assert load(files, split={"train": "train[:2]", "eval": "test"}) == ["0", "1"]
    for split in ("dev", "dev[:3]"):
        with pytest.raises(DataError, match=r"cannot be loaded \(ValueError\): Unknown split \"dev\""):
            load(files, split=split)


def test_several_splits_without_train_must_be_named(load: Load) -> None:
    files = {"test.jsonl": lines({"text": "a"}), "validation.jsonl": lines({"text": "b"})}
    with pytest.raises(DataError, match="has the splits validation, test; name one"):
        load(files)


def test_files_whose_names_have_no_split_are_left_out(load: Load) -> None:
    """The library's rule, which docs/data.md describes."""
    files = {"tickets.jsonl": lines({"text": "a"}), "more.jsonl": lines({"text": "b"})}
    assert sorted(load(files)) == ["a", "b"]
    assert load({**files, "last-test.jsonl": lines({"text": "c"})}) == ["c"]


def test_other_files_are_read_by_the_library(load: Load, tmp_path: Path) -> None:
    table = Dataset.from_list([{"text": "a"}, {"text": "b"}])
    table.to_parquet(tmp_path / "rows.parquet")
    assert load({"train.parquet": (tmp_path / "rows.parquet").read_bytes()}) == ["a", "b"]


def test_options_of_the_repository_are_used(load: Load) -> None:
    files = {"README.md": README.encode(), "rows.csv": b"prompt;completion\na;b\n"}
    assert load(files) == ["b"]


CODE = """
import sys
from pathlib import Path
from arkor.backend.data.datasets import DataError, load_rows
from arkor.protocol.datasets import HuggingFaceDataset

for name in sys.argv[2:]:
    try:
        rows = load_rows(HuggingFaceDataset(name), split={"eval": "test"}, home=Path(sys.argv[1]))
        print([row["text"] for row in rows.train], [row["text"] for row in rows.eval])
    except DataError as error:
        print("DataError:", error)
"""


def load_in_process(home: Path, endpoint: str, *names: str, offline: bool = False) -> list[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hub"), "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_OFFLINE"] = str(int(offline))
    command = [sys.executable, "-c", CODE, str(home), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=True, cwd=home)
    return done.stdout.splitlines()


def test_files_are_downloaded_and_read_from_the_cache_later(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(lines({"text": "2024-01-01"}, {"text": "2024-01-02"}))
    (folder / "test.jsonl").write_bytes(lines({"text": "2024-01-03"}))
    expected = "['2024-01-01', '2024-01-02'] ['2024-01-03']"
    with hub_of("acme/rows", folder, "datasets") as hub:
        loaded, missing = load_in_process(tmp_path, hub.url, "acme/rows", "acme/missing")
    assert loaded == expected
    assert missing.startswith("DataError: The data set acme/missing")
    loaded, missing = load_in_process(tmp_path, hub.url, "acme/rows", "acme/missing", offline=True)
    assert loaded == expected
    assert missing.startswith("DataError: The Hugging Face Hub cannot be reached for acme/missing")
