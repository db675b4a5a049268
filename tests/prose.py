"""Count constructions that make technical prose hard to read: `python -m tests.prose [PATH ...]`.

The text of a Python file is its docstrings, its comments and every string of at least four words; of a Markdown file,
all but the fenced code. Rates are per 10,000 words.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import frozen

PROJECT = Path(__file__).parent.parent

#: What `test_prose.py` allows of each construction.
MAX_RATE = 10.0

_CLAUSE = r"(?:^|[.!?;:,(—–-]\s+|\b(?:and|but|or|of|for|that|to|from|with|by|in)\s+)"
CONSTRUCTIONS = {
    "what is, what was, what of": re.compile(
        _CLAUSE + r"what (?:is|was|are|were|of|comes|came|has|had)\b", re.I | re.M
    ),
    "told, tell, say": re.compile(r"\b(?:told|tells?|telling|says?|said|saying)\b", re.I),
    "somebody, nobody, whoever": re.compile(r"\b(?:some|no|every|any)body\b|\bwhoever\b", re.I),
    # `None`, the value, is not counted
    "is no, are no, is none": re.compile(r"\b(?:[Ii]s|[Aa]re|[Ww]as|[Ww]ere|be) (?:no|none)\b"),
    "beside, behind": re.compile(r"\b(?:beside|behind)\b", re.I),
    "the one that, those of": re.compile(r"\b(?:the ones? (?:that|which|who)|that of|those (?:of|that|who))\b", re.I),
    "so many, so long": re.compile(r"\bso (?:many|long|much|few|often)\b", re.I),
    "is the business of": re.compile(r"\bbusiness of\b|'s business\b|'s to (?:say|decide|know)\b", re.I),
}
_WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
_MESSAGE_WORDS = 4


@frozen
class Hit:
    """One use of a construction: where it is and the text around it."""

    construction: str
    file: Path
    line: int
    excerpt: str


def texts_of(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (first line, text) for each piece of prose in a Python or Markdown file."""
    source = file.read_text("utf-8")
    if file.suffix == ".md":
        yield 1, _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), source)
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#: ")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if len(_WORD.findall(node.value)) >= _MESSAGE_WORDS:
            yield node.lineno, node.value


def scan(files: Iterable[Path]) -> tuple[int, list[Hit]]:
    """Return the number of words in the files and every use of a construction."""
    words, hits = 0, []
    for file in files:
        for first_line, text in texts_of(file):
            words += len(_WORD.findall(text))
            for name, pattern in CONSTRUCTIONS.items():
                for found in pattern.finditer(text):
                    excerpt = " ".join(text[max(0, found.start() - 30) : found.end() + 30].split())
                    hits.append(Hit(name, file, first_line + text.count("\n", 0, found.end()), excerpt))
    return words, hits


def rates(words: int, hits: list[Hit]) -> dict[str, float]:
    """Uses of each construction per 10,000 words."""
    return {name: 1e4 * sum(hit.construction == name for hit in hits) / max(1, words) for name in CONSTRUCTIONS}


def files_below(*paths: Path) -> list[Path]:
    """The Python and Markdown files in these files and folders."""
    found = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in found if file.suffix in (".py", ".md") and "site-packages" not in file.parts]


def project_files() -> list[Path]:
    """The package, the documentation and the pages at the root."""
    return files_below(PROJECT / "arkor", PROJECT / "docs", *sorted(PROJECT.glob("*.md")))


def main() -> None:
    words, hits = scan(files_below(*map(Path, sys.argv[1:])) or project_files())
    for hit in hits:
        print(f"{hit.file}:{hit.line}: {hit.construction}: … {hit.excerpt} …")
    print(f"{words} words; per 10,000:")
    for name, rate in rates(words, hits).items():
        print(f"  {rate:6.1f}  {name}")


if __name__ == "__main__":
    main()
