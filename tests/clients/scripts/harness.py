"""Run the commands of `docs/recipes/harnesses.md` in the environments of the harnesses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from calls import API_KEY, BASE_URL, call

PAGE = (Path(__file__).parents[3] / "docs" / "recipes" / "harnesses.md").read_text("utf-8")

#: Rows of each evaluation; the page has no limit.
LIMIT = 8

#: The least share of right answers; guessing one of twelve answers gives 0.08.
MIN_SCORE = 0.3

_BLOCK = re.compile(r"<!-- (run|file|script): ([^\n]*?) -->\n```\w+\n(.*?)^```$", re.M | re.S)


def run_commands(harness: str) -> None:
    """Run the commands of a harness, whose names begin with its name, in the current folder."""
    for kind, name, text in _BLOCK.findall(PAGE):
        if kind in ("file", "script"):
            Path(name).write_text(text, "utf-8")
    shutil.copy(os.environ["HELD_OUT"], "heldout.jsonl")
    for kind, name, command in _BLOCK.findall(PAGE):
        if kind == "run" and name.startswith(harness):
            call(name)(lambda command=command: accuracy(command))


def accuracy(command: str) -> str:
    """Run a command, and return the share of right answers that it prints."""
    environment = {**os.environ, "ARKOR_BASE_URL": BASE_URL, "ARKOR_API_KEY": API_KEY, "INSPECT_DISPLAY": "plain"}
    command = f"{command.strip()} --limit {LIMIT}"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(["bash", "-c", command], check=False, env=environment, **options)
    assert done.returncode == 0, done.stdout[-600:]
    scores = list(printed_scores(done.stdout))
    assert scores, done.stdout[-600:]
    assert scores[0] >= MIN_SCORE, done.stdout[-600:]
    return f"{scores[0]}"


def printed_scores(output: str) -> Iterator[float]:
    """Yield the scores in the output of lm-eval (a table) or of inspect (`mean  0.9`)."""
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 7 and cells[5] in ("acc", "exact_match"):
            yield float(cells[7])
        elif found := re.search(r"^\s*mean\s+([\d.]+)", line):
            yield float(found[1])
