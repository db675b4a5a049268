"""Run third-party clients against a deployment of a tuned model.

    python -m tests.clients.run [CLIENT…] [--home DIR] [-v]

Each client is installed in an environment of its own below `build/clients`, in the version that
`CLIENTS` pins, and its script in `scripts/` prints a line for each call. The model comes from the
template `triage`, trained in `build/clients/home` unless `--home` has a completed run. Exits with 1
if a call fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from arkor.backend.runs.paths import models_folder, run_folder
from arkor.client.connect import connect
from arkor.protocol.jobs import JobStatus
from arkor.settings import STARTER_MODEL
from tests.conftest import PROJECT, start_backend, stop_backend
from tests.environments import install_once, make_venv

BUILD = PROJECT / "build" / "clients"
SCRIPTS = Path(__file__).parent / "scripts"

#: The packages of each client, from PyPI; for `ai_sdk` from npm.
CLIENTS: Mapping[str, Sequence[str]] = {
    "openai": ["openai==3.57.0"],
    "litellm": ["litellm==1.110.2"],
    "instructor": ["instructor==1.17.0"],
    "langchain": ["langchain-openai==1.7.4"],
    "llamaindex": ["llama-index-llms-openai-like==0.8.1"],
    "dspy": ["dspy==3.4.1"],
    "pydantic_ai": ["pydantic-ai-slim[openai]==2.68.0"],
    "openai_agents": ["openai-agents==0.24.0"],
    "lm_eval": ["lm-eval[api,hf]==0.4.13", "torch==2.13.0", "peft==0.21.2"],
    "inspect_ai": [
        "inspect-ai==0.3.285",
        "openai==3.57.0",
        "torch==2.13.0",
        "transformers==5.24.0",
        "accelerate==1.15.0",
        "peft==0.21.2",
    ],
    "ai_sdk": ["ai@7.0.173", "@ai-sdk/openai@4.0.118", "@ai-sdk/openai-compatible@3.0.92", "zod@4.6.7"],
}


def main() -> int:
    """Run the clients; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(CLIENTS)}; default: all")
    parser.add_argument("--home", type=Path, default=BUILD / "home", help="an ARKOR_HOME with a completed run")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the tracebacks of failed calls")
    options = parser.parse_args()
    if unknown := set(options.clients) - set(CLIENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    for name in options.clients or CLIENTS:
        install(name)
    environment = {**os.environ, "ARKOR_HOME": str(options.home)}
    os.environ["ARKOR_HOME"] = str(options.home)
    backend = start_backend(options.home, "--engine", "trl", anew=True)
    try:
        environment |= deploy(options.home)
        failed = [name for name in options.clients or CLIENTS if not run(name, environment, options.verbose)]
    finally:
        stop_backend(options.home)
        backend.process.wait()
    print(f"\n{'failed: ' + ', '.join(failed) if failed else 'All calls succeeded.'}")
    return bool(failed)


def install(name: str) -> None:
    """Make the environment of a client, unless it has these versions."""
    folder, packages = BUILD / name, CLIENTS[name]

    def install_packages() -> None:
        if name == "ai_sdk":
            (folder / "package.json").write_text("{}")
            subprocess.run(["npm", "install", "--silent", *packages], cwd=folder, check=True)
        else:
            make_venv(folder, *packages)

    install_once(folder, packages, install_packages)


def deploy(home: Path) -> dict[str, str]:
    """Deploy the final adapter of a completed run, which may be trained first; return the clients' settings."""
    backend = connect()
    completed = [job for job in backend.list_jobs() if job.status is JobStatus.COMPLETED]
    job = completed[0] if completed else train()
    for deployment in backend.list_deployments():
        if deployment.slug == "triage":
            backend.delete_deployment(deployment.id)
    target = {"kind": "adapter", "adapter": {"kind": "final", "jobId": job.id}}
    deployment = backend.create_deployment("triage", target, "fixed_api_key", run_retention_mode="days")
    key = backend.create_deployment_key(deployment.id, "test").plaintext
    address = f"{backend.base_url}/e/triage/v1"
    return {
        "OPENAI_BASE_URL": address,
        "OPENAI_API_BASE": address,
        "OPENAI_API_KEY": str(key),
        "MODEL": "triage",
        "ADAPTER": str(run_folder(home, job.id).final),
        "BASE_MODEL": str(models_folder(home) / STARTER_MODEL),
        "HELD_OUT": str(PROJECT / "arkor" / "templates" / "triage" / "data" / "heldout.jsonl"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "NO_COLOR": "1",
    }


def train() -> object:
    """Train the template `triage`; return the job."""
    project = BUILD / "triage"
    shutil.rmtree(project, ignore_errors=True)
    arkor = [sys.executable, "-m", "arkor.cli.main"]
    subprocess.run([*arkor, "init", str(project), "--template", "triage"], check=True)
    subprocess.run([*arkor, "start"], cwd=project, check=True)
    return next(job for job in connect().list_jobs() if job.status is JobStatus.COMPLETED)


def run(name: str, environment: Mapping[str, str], verbose: bool) -> bool:
    """Run the script of a client, print its lines, and return whether each call succeeded."""
    print(f"\n{name}  {' '.join(CLIENTS[name])}", flush=True)
    if name == "ai_sdk":
        script = shutil.copy(SCRIPTS / "client_ai_sdk.mjs", BUILD / name)
        command = ["node", str(script)]
    else:
        command = [str(BUILD / name / "bin" / "python"), str(SCRIPTS / f"client_{name}.py")]
    folder = BUILD / name / "work"
    folder.mkdir(exist_ok=True)
    options = ["-v"] if verbose else []
    path = f"{BUILD / name / 'bin'}:{environment['PATH']}"
    process = subprocess.run(
        [*command, *options],
        env={**environment, "PATH": path},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=None if verbose else subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = [line for line in process.stdout.splitlines() if line.startswith(("ok\t", "FAILED\t"))]
    for line in lines:
        verdict, call, note = line.split("\t", 2)
        print(f"  {verdict:6}  {call:42}  {note[:110]}")
    if process.returncode:
        print(f"  FAILED  exit code {process.returncode}: {(process.stderr or '').strip()[-800:]}")
    return not process.returncode and bool(lines) and all(line.startswith("ok\t") for line in lines)


if __name__ == "__main__":
    sys.exit(main())
