"""Report a run to each tracker with its library installed, and compare what it has stored.

    python -m tests.trackers.run [TRACKER…]

Each library is installed in an environment of its own below `build/trackers`, in the versions that
`TRACKERS` pins. Exits with 1 if a tracker has stored something else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from arkor.callbacks.report.trackers import MLFLOW_PACKAGES
from tests.environments import install_once, make_venv

PROJECT = Path(__file__).parent.parent.parent
BUILD = PROJECT / "build" / "trackers"

#: The packages of each environment; `mlflow-alone` lacks those with which MLflow stores runs.
TRACKERS: Mapping[str, Sequence[str]] = {
    "tensorboard": ["tensorboard==2.21.0"],
    "tensorboardX": ["tensorboardX==2.6.5"],
    "wandb": ["wandb==0.31.0"],
    "trackio": ["trackio==0.43.0"],
    "mlflow": ["mlflow==3.17.2"],
    "mlflow-skinny": ["mlflow-skinny==3.17.2", "sqlalchemy==2.1.9", "alembic==1.20.0"],
    "mlflow-alone": ["mlflow-skinny==3.17.2"],
}

#: What `tests.callbacks.replays` needs besides arkor's own dependencies.
FAKES = ["typing-extensions"]

#: What each tracker has of the run of `report.EVENTS`, which is reported twice.
ONCE = [
    ["train/loss", 1, "2.0"],
    ["train/loss", 2, "1.0"],
    ["eval/loss", 2, "1.5"],
    ["train/loss", 3, "nan"],
    ["train/loss", 5, "inf"],
]
FLOAT_MAX = str(sys.float_info.max)
STORED = {
    "mlflow": [*ONCE[:-1], ["train/loss", 5, FLOAT_MAX]],  # its SQL store has no infinity
    "mlflow-skinny": [*ONCE[:-1], ["train/loss", 5, FLOAT_MAX]],
    "wandb": [*ONCE, *ONCE],  # offline: each watch writes a file of its own, which only the server would merge
    "trackio": [*ONCE, *ONCE],  # it continues a run of the same name and keeps repeated steps
}

#: The error of `mlflow-alone`, whose remedy is the environment `mlflow-skinny`.
REFUSAL = (
    "Report.to: MLflow needs sqlalchemy and alembic to store runs in a database (sqlite); "
    f"install them: pip install {MLFLOW_PACKAGES}, or set tracking_uri to the URL of an MLflow server"
)


def main() -> int:
    """Try the trackers; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("trackers", nargs="*", metavar="TRACKER", help=f"of {', '.join(TRACKERS)}; default: all")
    options = parser.parse_args()
    if unknown := set(options.trackers) - set(TRACKERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    failed = []
    for name in options.trackers or TRACKERS:
        install(name)
        problem = refusal_problem(name) if name == "mlflow-alone" else storage_problem(name)
        print(f"{'FAILED' if problem else 'ok':6}  {name:14}  {' '.join(TRACKERS[name])}", flush=True)
        if problem:
            print(problem)
            failed.append(name)
    return bool(failed)


def install(name: str) -> None:
    """Make the environment of a tracker, unless it has these versions."""
    folder, packages = BUILD / name, TRACKERS[name]
    requirements = ("-r", "pyproject.toml", *FAKES, *packages)
    install_once(folder, packages, lambda: make_venv(folder, *requirements, cwd=PROJECT))


def storage_problem(name: str) -> str | None:
    """Report the run to a tracker; return how what it has stored differs."""
    work = BUILD / name / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for action in ("write", "read"):
        done = call(name, "-m", "tests.trackers.report", name, action)
        if done.returncode or "is disabled for this run" in done.stderr:
            return f"{action}: {done.stderr[-3000:]}"
    stored = json.loads(done.stdout.splitlines()[-1])
    expected = STORED.get(name, ONCE)
    return None if sorted(stored) == sorted(expected) else f"stored {stored}\nexpected {expected}"


def refusal_problem(name: str) -> str | None:
    """Return how the error without sqlalchemy and alembic differs; a server needs neither."""
    (BUILD / name / "work").mkdir(exist_ok=True)
    code = "from arkor.callbacks import Report; Report('mlflow', tracking_uri='http://127.0.0.1:9'); Report('mlflow')"
    done = call(name, "-c", code)
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no error"
    return None if last.endswith(REFUSAL) else last


def call(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the Python of a tracker in its work folder, with the trackers' files below it."""
    work = BUILD / name / "work"
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "TRACKIO_DIR": str(work / "trackio"),
        "WANDB_MODE": "offline",
        "PYTHONWARNINGS": "default",
    }
    for variable in ("MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
        environment.pop(variable, None)
    command = [str(BUILD / name / "bin" / "python"), *arguments]
    return subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=300)


if __name__ == "__main__":
    sys.exit(main())
