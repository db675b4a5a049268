"""Seconds to start with arkor, compared with `import requests`.

    python -m tests.benchmarks.imports [--rounds N]

Each command is a process of its own, in alternating rounds. Prints one Markdown table of medians.
Takes about half a minute.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median

from tests.conftest import PROJECT

BASELINE = "import requests"
#: Name of a command → its arguments for Python, and its goal as a multiple of the baseline.
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    BASELINE: (["-c", BASELINE], None),
    "from arkor import Trainer": (["-c", "from arkor import Trainer"], 1.8),
    "arkor --help": (["-m", "arkor", "--help"], 3.0),
}


def seconds(arguments: list[str]) -> float:
    """Return the seconds that a Python process takes, from its start to its end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=PROJECT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each command in each round; a first round that compiles is left out."""
    lists = [{name: seconds(arguments) for name, (arguments, _) in COMMANDS.items()} for _ in range(rounds + 1)]
    return {name: [found[name] for found in lists[1:]] for name in COMMANDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    found = measure(parser.parse_args().rounds)
    print("| process | seconds | of `import requests` | goal |\n| --- | --- | --- | --- |")
    for name, (_, goal) in COMMANDS.items():
        ratio = median(own / base for own, base in zip(found[name], found[BASELINE], strict=True))
        at_most = "" if goal is None else f"at most {goal:.1f} ×"
        print(f"| `{name}` | {median(found[name]):.3f} | {ratio:.2f} × | {at_most} |")


if __name__ == "__main__":
    main()
