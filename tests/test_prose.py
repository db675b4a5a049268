"""The prose of the package and the documentation: few unclear constructions, short contributor pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import prose
from tests.conftest import PROJECT

WORDS, HITS = prose.scan(prose.project_files())

MAX_LINES = 30


@pytest.mark.parametrize("construction", prose.CONSTRUCTIONS)
def test_unclear_constructions_are_rare(construction: str) -> None:
    hits = [
        f"{hit.file.relative_to(PROJECT)}:{hit.line}: {hit.excerpt}" for hit in HITS if hit.construction == construction
    ]
    rate = prose.rates(WORDS, HITS)[construction]
    assert rate < prose.MAX_RATE, "\n".join([f"{rate:.1f} per 10,000 words", *hits])


@pytest.mark.parametrize(
    ("construction", "sentence"),
    [
        ("what is, what was, what of", "What is left is kept."),
        ("told, tell, say", "The backend says how many."),
        ("somebody, nobody, whoever", "Nobody calls it."),
        ("is no, are no, is none", "There is no limit."),
        ("beside, behind", "It is beside the log."),
        ("the one that, those of", "The names are those of the engine."),
        ("so many, so long", "It waits so long."),
        ("is the business of", "The path is the caller's business."),
    ],
)
def test_constructions_are_found(tmp_path: Path, construction: str, sentence: str) -> None:
    page, module = tmp_path / "page.md", tmp_path / "module.py"
    page.write_text(f"# Title\n\n{sentence}\n\n```text\n{sentence}\n```\n", "utf-8")
    module.write_text(f'"""Title.\n\n{sentence}\n"""\n\nx = None  # the value is None\n', "utf-8")
    _, hits = prose.scan([page, module])
    assert [(hit.construction, hit.file.name, hit.line) for hit in hits] == [
        (construction, "page.md", 3),
        (construction, "module.py", 3),
    ]


@pytest.mark.parametrize("page", sorted((PROJECT / "docs" / "contributing").glob("*.md")), ids=lambda page: page.name)
def test_contributor_pages_are_short(page: Path) -> None:
    assert len(page.read_text("utf-8").splitlines()) <= MAX_LINES
