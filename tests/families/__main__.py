"""Check families of models, and write the table of docs/models.md.

    python -m tests.families [--steps N] [--write] [FAMILY …]

Without names, all families are checked. `--write` renews their rows of the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import asdict

from tests.families.tiny import families

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
MARK = "<!-- families -->"

#: A report of `tests/families/check.py` as JSON, with `problems`.
Report = dict[str, Any]


def check_here(family: str, steps: int) -> str:
    """Check a family in this process; return the report as JSON."""
    import torch  # noqa: PLC0415 - the parent does not need it

    from tests.families.check import check  # noqa: PLC0415 - as above

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        report = check(family, Path(folder), steps=steps)
    return json.dumps({**asdict(report), "problems": report.problems})


def check_apart(families: list[str], steps: int) -> Iterator[Report]:
    """Check families in a process of their own; where it ends, a new one goes on with the next family."""
    waiting = list(families)
    while waiting:
        command = [sys.executable, "-m", "tests.families", "--here", "--steps", str(steps), *waiting]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"family"'):
                    waiting.pop(0)
                    yield json.loads(line)
        if waiting:
            yield {"family": waiting.pop(0), "problems": [f"its process ends with status {process.returncode}"]}


def read_table(page: str) -> dict[str, str]:
    """Return the rows of the table by family."""
    return {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}


def row(report: Report) -> str:
    """Return the row of a family in the table."""
    result = "; ".join(report["problems"])[:160].replace("|", "/") or "equal to transformers"
    return f"| `{report['family']}` | {report.get('layout_name', '')} | {report.get('share', '')} | {result} |"


def main() -> None:
    """Check the families of the command line, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--write", action="store_true", help="renew the rows of these families in docs/models.md")
    parser.add_argument("--here", action="store_true", help="check them in this process, and print JSON")
    options = parser.parse_args()
    names = options.families or families()
    if options.here:
        for family in names:
            print(check_here(family, options.steps), flush=True)
        return
    reports = []
    for report in check_apart(names, options.steps):
        reports.append(report)
        print(f"{report['family']}: {'; '.join(report['problems']) or 'right'}", flush=True)
        if options.write:
            write(report)
    wrong = [report["family"] for report in reports if report["problems"]]
    print(f"{len(reports) - len(wrong)} of {len(reports)} families are right; not: {', '.join(wrong) or 'none'}")


def write(report: Report) -> None:
    """Renew the row of a family in the documentation."""
    before, _, rest = PAGE.read_text("utf-8").partition(MARK)
    rows = read_table(rest) | {report["family"]: row(report)}
    lines = [
        "| family | layout | adapted | result |",
        "| --- | --- | --- | --- |",
        *(rows[name] for name in sorted(rows)),
    ]
    PAGE.write_text("\n".join([f"{before}{MARK}", "", *lines, ""]), "utf-8")


if __name__ == "__main__":
    main()
