"""The data of the templates matches their READMEs, and `arkor start` accepts their scripts."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import arkor
from arkor.client.response_format import parse_instance
from arkor.trainer.project import load_entry

TEMPLATES = Path(arkor.__file__).parent / "templates"
NAMES = ["redaction", "translate", "triage"]  # those with data to learn from; `blank` has a few rows

Row = list[dict[str, str]]


def rows(template: str, part: str) -> list[Row]:
    text = (TEMPLATES / template / "data" / f"{part}.jsonl").read_text("utf-8")
    return [json.loads(line)["messages"] for line in text.splitlines()]


def questions(template: str, part: str) -> list[str]:
    return [row[1]["content"] for row in rows(template, part)]


def answers(template: str, part: str) -> list[str]:
    return [row[2]["content"] for row in rows(template, part)]


def test_there_are_three_and_a_blank_one() -> None:
    found = sorted(folder.name for folder in TEMPLATES.iterdir() if (folder / "train.py").exists())
    assert found == ["blank", *NAMES]


def template_module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, TEMPLATES / name / "train.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "schema"), [("triage", "Label"), ("translate", "Translation"), ("redaction", "Redaction")]
)
def test_every_answer_fits_the_schema_of_its_template(name: str, schema: str) -> None:
    module = template_module(name)
    for part in ("train", "heldout"):
        for answer in answers(name, part):
            parsed = dataclasses.asdict(parse_instance(getattr(module, schema), answer))
            assert json.dumps(parsed, ensure_ascii=False) == answer
    assert module.trainer._config.dataset_split == 0.04


@pytest.mark.parametrize("name", ["blank", *NAMES])
def test_its_script_is_an_entry(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # paths are relative to the file
    assert load_entry(TEMPLATES / name / "train.py").name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["train", "heldout"])
def test_every_row_is_a_question_and_its_answer(name: str, part: str) -> None:
    for row in rows(name, part):
        assert [message["role"] for message in row] == ["system", "user", "assistant"]
        assert all(message["content"] == message["content"].strip() != "" for message in row)
    assert len({row[0]["content"] for row in rows(name, part)}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_few_hundred_rows_and_no_two_the_same(name: str) -> None:
    train, held_out = questions(name, "train"), questions(name, "heldout")
    assert len(train) >= 300
    assert 30 <= len(held_out) <= 60
    plain = [re.sub(r"\W+", " ", text.lower()).strip() for text in train + held_out]
    assert [text for text, count in Counter(plain).items() if count > 1] == []


@pytest.mark.parametrize("name", NAMES)
def test_its_readme_counts_right_and_names_the_system_prompt(name: str) -> None:
    readme = (TEMPLATES / name / "README.md").read_text("utf-8")
    assert f"`data/train.jsonl`: {len(rows(name, 'train'))} " in readme
    assert f"`data/heldout.jsonl`: {len(rows(name, 'heldout'))} more" in readme
    assert f'--system "{rows(name, "train")[0][0]["content"]}"' in readme


@pytest.mark.parametrize("name", NAMES)
def test_what_is_held_out_is_not_trained_on_in_other_words(name: str) -> None:
    """Compare each held-out row with its nearest training row: the topic is shared, the text is not."""
    matcher = difflib.SequenceMatcher(autojunk=False)
    near = []
    for text in questions(name, "heldout"):
        matcher.set_seq2(text.lower())
        for other in questions(name, "train"):
            matcher.set_seq1(other.lower())
            if matcher.real_quick_ratio() > 0.85 and matcher.quick_ratio() > 0.85 and matcher.ratio() > 0.85:
                near.append((text, other))
    assert near == []


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_the_labels_of_triage_are_in_balance(part: str) -> None:
    labels = [json.loads(answer) for answer in answers("triage", part)]
    assert all(list(label) == ["category", "urgency"] for label in labels)
    categories = Counter(label["category"] for label in labels)
    urgencies = Counter(label["urgency"] for label in labels)
    assert set(categories) == {"billing", "cancellation", "delivery", "feedback", "login", "repair"}
    assert set(urgencies) == {"normal", "high"}
    assert max(categories.values()) <= 1.2 * min(categories.values())
    assert max(urgencies.values()) <= 4 * min(urgencies.values())


TAGS = {"NAME", "EMAIL", "PHONE", "ADDRESS", "DATE", "CARD", "IBAN"}


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_redaction_only_puts_tags_in(part: str) -> None:
    counted: Counter[str] = Counter()
    for question, reply in zip(questions("redaction", part), answers("redaction", part), strict=True):
        answer, listed = json.loads(reply).values()
        tags = re.findall(r"\[(\w+)\]", answer)
        assert listed == list(dict.fromkeys(tags))
        counted.update(tags or ["nothing"])
        pattern = ".+?".join(re.escape(kept) for kept in re.split(r"\[\w+\]", answer))
        assert re.fullmatch(pattern, question), question
        assert not re.search(r"@|\d{6}", answer), answer
    assert set(counted) == TAGS | {"nothing"}
    assert min(counted.values()) >= (15 if part == "train" else 3)


def test_the_addresses_in_redaction_are_nobody_s() -> None:
    texts = questions("redaction", "train") + questions("redaction", "heldout")
    hosts = [host.rstrip(".") for text in texts for host in re.findall(r"@([\w.-]+)", text)]
    assert hosts
    assert [host for host in hosts if not re.search(r"\.(example|test)$|\.example\.(com|net|org)$", host)] == []


LETTERS = {"French": "[àâçèêëîïôùûœÀÉÊÎ]|\\b[ldjnmsc]'", "Spanish": "[áíóúñ¿¡]", "German": "[äöüßÄÖÜ]"}


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_translate_has_three_languages_and_the_whole_sentence(part: str) -> None:
    counted: Counter[str] = Counter()
    written: Counter[str] = Counter()
    for question, reply in zip(questions("translate", part), answers("translate", part), strict=True):
        language, english = json.loads(reply).values()
        counted[language] += 1
        written[language] += bool(re.search(LETTERS[language], question))
        assert question[-1] in ".?!"
        assert english[-1] in ".?!"
    assert set(counted) == set(LETTERS)
    assert max(counted.values()) <= min(counted.values()) + 1
    assert all(written[language] >= counted[language] / 8 for language in counted)
