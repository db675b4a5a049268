"""The cost of crashes, long logs and checkpoints; prints the table of docs/reliability.md.

    python -m tests.benchmarks.lifecycle [--kills N] [--rounds N]

Kills real processes with signals, each kind in a home of its own. Training uses a tiny model, so
that the overhead and not the arithmetic is measured. Takes about four minutes. The starter model is
measured only if it is already converted, in `ARKOR_HOME` or by `make demo`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from attrs import frozen

from arkor import Trainer, TrainerAborted
from arkor.backend.compute.models import quiet_libraries
from arkor.backend.runs.event_log import LogWriter, last_id, read_events
from arkor.backend.runs.log_notifier import notify
from arkor.backend.runs.paths import RunFolder, address_file, models_folder, notifier_file, run_folder
from arkor.protocol.events import TrainingLog, now
from arkor.settings import STARTER_MODEL, arkor_home
from tests.backend.caller import owner
from tests.backend.crashing_worker import events_of_type, finalize, lines, make_run
from tests.benchmarks import kills, stream
from tests.benchmarks.kills import until
from tests.benchmarks.processes import Child, child
from tests.conftest import PROJECT, start_backend, stop_backend
from tests.fakes.process_tree import ProcessTree
from tests.fakes.tiny_model import make_tiny_model

#: Lengths of the logs, in events.
LENGTHS = (10, 1_000, 100_000, 1_000_000)

#: The run of the tiny model that is killed and compared, and the number of kills.
TRAINED_STEPS, DEATHS = 120, 6
TRAINING = {"batchSize": 4, "loggingSteps": 1, "learningRate": 0.01, "lrSchedulerType": "cosine"}

#: Steps of a run, of which every other one is not recorded.
COMPARED_STEPS = 2000

LOGGED = 20_000
TICK_SECONDS = 0.002

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"What is {word}?"}, {"role": "assistant", "content": word[::-1]}]}
    for word in (f"{number:03d} and so on" for number in range(64))
]


@frozen
class Options:
    """Run all measurements: `kills` of servers and workers, `rounds` of everything else."""

    kills: int
    rounds: int
    starter: Path | None


def tiny_model(home: Path) -> str:
    """Return a model with dropout, which makes wrong random states visible."""
    quiet_libraries()
    folder = make_tiny_model(home.with_name(f"{home.name}-model"), "gpt2")
    config = json.loads((folder / "config.json").read_text())
    config.update(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


# Events during kills


def over_kills(home: Path, options: Options) -> Iterator[str]:
    found = kills.run_scenario(home, options.kills)
    for count in (found.lost, found.doubled):
        yield f"{count} of {found.events:,}, over {found.kills} kills"


# Training during kills


def resumed_exactly(home: Path, options: Options) -> Iterator[str]:
    config = {"model": tiny_model(home), "maxSteps": TRAINED_STEPS, "saveSteps": 10, **TRAINING}
    whole, killed = (make_run(home, name, ROWS, **config) for name in ("whole", "killed"))
    with ProcessTree("trl") as process_tree:
        assert process_tree.run(whole.path).code == 0, whole.worker_log.read_text()
        died = die_on_the_way(process_tree, killed, *seconds_of_steps(whole))
        assert died
        assert process_tree.run(killed.path).code == 0, killed.worker_log.read_text()
    pairs = list(zip(events_of_type(whole, "training.log"), events_of_type(killed, "training.log"), strict=True))
    assert len(pairs) == TRAINED_STEPS
    yield f"{max(abs(one['loss'] - other['loss']) for one, other in pairs):g} in {len(pairs)} steps, {died} deaths"
    weights = [(folder.final / "adapter_model.safetensors").read_bytes() for folder in (whole, killed)]
    yield "the same to the last bit" if weights[0] == weights[1] else "NOT THE SAME"


def seconds_of_steps(folder: RunFolder) -> tuple[float, float]:
    """Return the seconds from the start of a worker to its first and its last step."""
    times = [(line["type"], datetime.fromisoformat(line["timestamp"].rstrip("Z"))) for line in lines(folder)]
    steps = [at for kind, at in times if kind == "training.log"]
    began = times[0][1]
    return (steps[0] - began).total_seconds(), (steps[-1] - began).total_seconds()


def die_on_the_way(process_tree: ProcessTree, folder: RunFolder, first: float, last: float) -> int:
    """Kill workers after some steps each; return the number of kills."""
    chance = random.Random(0)
    share = (last - first) / DEATHS
    died = 0
    while died < DEATHS and process_tree.run(folder.path, seconds=first + chance.uniform(0.2, 1.2) * share).code:
        finalize(folder)
        died += 1
    return died


def next_steps(home: Path, options: Options) -> Iterator[str]:
    """Run with a real server, which reloads the model after each kill."""
    with training(home) as folder:
        until(lambda: b'"step":5,' in folder.events.read_bytes())
        yield _range([seconds_to_next_step(folder) for _ in range(options.rounds)])


@contextmanager
def training(home: Path) -> Iterator[RunFolder]:
    """Submit a run that continues until it is stopped."""
    file = home.with_name(f"{home.name}.jsonl")
    file.write_text("\n".join(map(json.dumps, ROWS)))
    source = {"type": "file", "path": str(file)}
    settings: dict[str, Any] = {"max_steps": 1_000_000, "save_steps": 20, "logging_steps": 1, "batch_size": 4}
    trainer = Trainer("mortal", tiny_model(home), source, **settings)
    try:
        yield run_folder(home, trainer.start().job_id)
    finally:
        stop_backend(home)


def seconds_to_next_step(folder: RunFolder) -> float:
    worker = folder.worker_pid()
    assert worker
    killed = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    time.sleep(0.05)  # wait for writes in progress
    after = last_id(folder.events)
    seen = until(
        lambda: any(line.startswith(b'{"type":"training.log"') for _, line in read_events(folder.events, after))
    )
    time.sleep(0.5)  # some more steps before the next kill
    return seen - killed


# Clients


def next_callbacks(home: Path, options: Options) -> Iterator[str]:
    """Kill the server; the client's SDK starts the next, and the worker continues."""
    os.environ["ARKOR_SCRIPTED_STEP_SECONDS"] = kills.STEP_SECONDS
    try:
        job = owner(start_backend(home, "--engine", "scripted", anew=True)).submit(maxSteps=100_000, saveSteps=1000)
        with child("tests.benchmarks.watcher", job) as watcher:
            gaps = [seconds_to_next_callback(home, watcher) for _ in range(2 * options.rounds)]
            watcher.process.kill()
    finally:
        stop_backend(home)
    yield _range([whole for whole, _ in gaps])
    yield _range([since_it_listens for _, since_it_listens in gaps])


def seconds_to_next_callback(home: Path, watcher: Child) -> tuple[float, float]:
    """Return the seconds since the kill, and since the next server listens."""

    def server() -> int:
        pid: int = json.loads(address_file(home).read_bytes())["pid"]
        return pid

    watcher.read()
    killed, dead = time.monotonic(), server()
    os.kill(dead, signal.SIGKILL)
    restarted = until(lambda: server() != dead)
    while (at := watcher.read()[1]) < restarted:
        pass
    return at - killed, at - restarted


def attaching(home: Path, options: Options) -> Iterator[str]:
    """Measure each length with `since="now"` and after the last event."""
    with stream.embedded(home) as backend:
        source, log = stream.waiting_run(backend)
        written = 0
        for length in LENGTHS:
            stream.write_history(log, length - written)
            written = length
            found = [
                [seconds_to_live(source.job, log, since) for _ in range(3 * options.rounds)]
                for since in (lambda: "now", lambda: str(last_id(log)))
            ]
            yield " · ".join(f"{1000 * median(seconds):.0f} ms" for seconds in found)


def seconds_to_live(job: str, log: Path, since: Callable[[], str]) -> float:
    """Return the seconds from `attach()` to the first callback of a later event."""
    seen = threading.Event()
    with ticking(log):
        began = time.monotonic()
        trainer = Trainer.attach(
            job, since=since(), callbacks={"on_log": lambda _: seen.set()}, abort_signal=seen, progress=False
        )
        with suppress(TrainerAborted):
            trainer.wait(30)
        return time.monotonic() - began


@contextmanager
def ticking(log: Path) -> Iterator[None]:
    """Write an event every `TICK_SECONDS`."""
    over = threading.Event()

    def tick() -> None:
        with LogWriter(log) as writer:
            while not over.wait(TICK_SECONDS):
                writer.append(TrainingLog(log.parent.name, now(), 1, 1.5))
                notify(notifier_file(arkor_home()))

    ticker = threading.Thread(target=tick)
    ticker.start()
    try:
        yield
    finally:
        over.set()
        ticker.join()


# Overhead of a step


def logging_events(home: Path, options: Options) -> Iterator[str]:
    with stream.embedded(home) as backend:
        _, log = stream.waiting_run(backend)
        for bell in (notifier_file(home), home / "no-bell"):
            yield f"{1e6 * median(seconds_per_event(log, bell) for _ in range(options.rounds)):.1f} µs"


def seconds_per_event(log: Path, bell: Path) -> float:
    with LogWriter(log) as writer:
        began = time.perf_counter()
        for step in range(LOGGED):
            writer.append(TrainingLog(log.parent.name, now(), step, 1.234567, None, 0.0001, 0.5))
            notify(bell)
        return (time.perf_counter() - began) / LOGGED


def timed(home: Path, name: str, **config: Any) -> tuple[float, float, float]:
    """Return the seconds of a checkpoint, a recorded step and an unrecorded step."""
    folder = make_run(home, name, ROWS, **config)
    command = [sys.executable, "-m", "tests.benchmarks.timed", str(folder.path)]
    output = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True)
    checkpoint, told_of, untold = json.loads(output.splitlines()[-1])
    return checkpoint, told_of, untold


def checkpointing(home: Path, options: Options) -> Iterator[str]:
    for model in (tiny_model(home), options.starter):
        yield checkpoints_of(home, str(model)) if model else "not measured: the starter model is not converted here"


def checkpoints_of(home: Path, model: str, count: int = 6) -> str:
    config = {"model": model, "maxSteps": count, "saveSteps": 1, "batchSize": 1, "loraR": 16, "loggingSteps": 1}
    seconds, *_ = timed(home, Path(model).name, **config)
    files = [file for file in run_folder(home, Path(model).name).checkpoint(count).rglob("*") if file.is_file()]
    return f"{1000 * seconds:.0f} ms ({sum(file.stat().st_size for file in files) / 1e6:.1f} MB)"


def beside_the_bare_engine(home: Path, options: Options) -> Iterator[str]:
    """Alternate recorded and unrecorded steps: two runs differ by more than the effect."""
    config = {"model": tiny_model(home), "maxSteps": COMPARED_STEPS, "saveSteps": COMPARED_STEPS, **TRAINING}
    with stream.embedded(home):
        _, run, bare = timed(home, "compared", **config)
    yield f"{1e6 * (run - bare):+.0f} µs on {1000 * bare:.1f} ms ({run / bare - 1:+.1%})"


# The table


def _range(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f} of {len(seconds)})"


#: Row name → measurement.
MEASURES: list[tuple[list[str], Callable[[Path, Options], Iterator[str]]]] = [
    (["events lost", "events doubled"], over_kills),
    (["loss after resuming, compared with an undisturbed run", "final adapter after resuming"], resumed_exactly),
    (["worker killed → next logged step, tiny model"], next_steps),
    (["server killed → next callback of a watcher", "part of it after the next server listens"], next_callbacks),
    ([f"attach to a log of {events:,} events, from now · from the last id" for events in LENGTHS], attaching),
    (["one logged event, with a server", "one logged event, without a server"], logging_events),
    (["checkpoint, tiny model", "checkpoint, starter model, rank 16"], checkpointing),
    (["a step of a run, compared with the engine alone, tiny model"], beside_the_bare_engine),
]


def converted_starter() -> Path | None:
    """Return the converted starter model of the user or of `make demo`."""
    homes = (arkor_home(), PROJECT / "build" / "demo-home")
    folders = (models_folder(home) / STARTER_MODEL for home in homes)
    return next((folder for folder in folders if folder.is_dir()), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    options = Options(given.kills, given.rounds, converted_starter())
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("ARKOR_CLOUD_API_URL", None)
    logging.getLogger("arkor").setLevel(logging.ERROR)  # servers are killed on purpose
    print("| what | found |\n| --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for names, measure in MEASURES:
            home = Path(folder, measure.__name__)
            os.environ["ARKOR_HOME"] = str(home)
            for name, figure in zip(names, measure(home, options), strict=True):
                print(f"| {name} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
