"""arkor compared with plain TRL on the same data and settings, in alternating rounds; prints a
table.

    python tests/benchmarks/speed.py [DATA] [--rounds N] [--steps N]

Times the steps, and the whole run from the start of the script to its result. Ratios are of the
medians.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from arkor.backend.compute.models import local_folder
from arkor.settings import STARTER_MODEL, arkor_home
from tests.benchmarks import intents
from tests.benchmarks.banking77 import fine_tune


def plain(model: str, data: Path, steps: int) -> tuple[float, float]:
    """Return the seconds of the steps and of the whole script of plain TRL, in a process."""
    command = [sys.executable, "-m", "tests.benchmarks.plain_trl", model, str(data), "--steps", str(steps)]
    began = time.perf_counter()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    whole = time.perf_counter() - began
    return json.loads(output.strip().splitlines()[-1])["seconds"], whole


def ours(data: Path, steps: int) -> tuple[float, float]:
    """Return the same for a run with the public API, which has a worker process."""
    _, training, whole = fine_tune(data, steps, progress=False)
    return training, whole


def line(label: str, seconds: tuple[float, float], steps: int) -> None:
    training, whole = seconds
    print(f"{label:<12} {training:>10.1f} {training / steps:>12.3f} {whole:>12.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=intents.DATA, help="the folder of banking77")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=intents.STEPS)
    options = parser.parse_args()
    model = local_folder(STARTER_MODEL, arkor_home(), print)
    measured: dict[str, list[tuple[float, float]]] = {"plain TRL": [], "arkor": []}
    print(f"{'':<12} {'steps, s':>10} {'a step, s':>12} {'whole run, s':>12}")
    for _ in range(options.rounds):
        measured["plain TRL"].append(plain(model, options.data, options.steps))
        line("plain TRL", measured["plain TRL"][-1], options.steps)
        measured["arkor"].append(ours(options.data, options.steps))
        line("arkor", measured["arkor"][-1], options.steps)
    trl, arkor = ([median(column) for column in zip(*rows, strict=True)] for rows in measured.values())
    print(f"arkor is {trl[0] / arkor[0]:.1f} times as fast as plain TRL; {trl[1] / arkor[1]:.1f} times with loading.")


if __name__ == "__main__":
    main()
