"""Kill servers and workers repeatedly, and count lost and repeated events of the runs.

Events are counted in the logs, in callbacks of the SDK, and in a plain reader of the stream.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from attrs import define, field, frozen

from arkor.backend.runs.event_log import is_finished, read_events
from tests.backend.caller import Caller, owner
from tests.benchmarks import stream
from tests.conftest import start_backend
from tests.kills.schedule import FaultSchedule

#: A run of the scripted engine.
STEPS, SAVE_STEPS, STEP_SECONDS = 100, 10, "0.02"


@frozen
class KillCounts:
    """Numbers of events and kills, of lost events and of repeated events."""

    lost: int
    doubled: int
    events: int
    kills: int


def free_port() -> int:
    """Return a port outside the ephemeral range, which stays free while the server is down."""
    while True:
        port = random.randrange(10_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def until(condition: Callable[[], bool], seconds: float = 60) -> float:
    """Wait for the condition; return `time.monotonic()`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return time.monotonic()


@define
class Scenario(FaultSchedule):
    """A home whose server restarts at the same address, and a client that uses the SDK."""

    port: int = field(factory=free_port)
    callbacks: dict[str, list[int]] = field(factory=dict)
    threads: list[threading.Thread] = field(factory=list)

    def serve(self) -> Caller:
        if self.server is None or self.server.process.poll() is not None:
            self.server = start_backend(self.home, "--engine", "scripted", "--port", str(self.port), anew=True)
        return owner(self.server)

    @property
    def kills(self) -> int:
        return sum("killed" in line for line in self.log_lines)

    @property
    def logged(self) -> int:
        return sum(folder.events.read_bytes().count(b'"training.log"') for folder in self.folders())

    def watched_run(self) -> None:
        """Submit a run whose `on_log` records the steps."""
        self.submit(STEPS, SAVE_STEPS)
        job = self.jobs[-1]
        steps = self.callbacks[job] = []
        source = stream.Source(f"http://127.0.0.1:{self.port}", job, self.serve().token or "")
        self.threads.append(threading.Thread(target=stream.arkor, args=(source, steps.append), daemon=True))
        self.threads[-1].start()

    def kill_one(self) -> None:
        """Kill server, worker or both, after progress since the last kill."""
        if all(is_finished(folder.events) for folder in self.folders()):
            self.watched_run()
        time.sleep(self.rng.uniform(0, 0.3))
        self.serve()
        before = self.logged
        until(lambda: self.logged > before or is_finished(self.folders()[-1].events))
        deaths = (
            self.kill_server,
            self.kill_worker,
            self.kill_both,
            self.kill_in_a_checkpoint,
            self.kill_recovering_server,
        )
        self.rng.choice(deaths)()


def run_scenario(home: Path, kills: int) -> KillCounts:
    """Run jobs one after the other, until the number of kills is reached."""
    os.environ["ARKOR_SCRIPTED_STEP_SECONDS"] = STEP_SECONDS
    scenario = Scenario(home, random.Random(kills))
    try:
        while scenario.kills < kills:
            scenario.kill_one()
        scenario.wait_until_finished(60)
        for thread in scenario.threads:
            thread.join(60)
    finally:
        scenario.clean_up()
    lost, doubled = losses(scenario)
    return KillCounts(lost, doubled, sum(len(watcher.frames) for watcher in scenario.watchers), scenario.kills)


def losses(scenario: Scenario) -> tuple[int, int]:
    """Count lost and repeated events in the logs and at the clients."""
    lost = doubled = 0
    for watcher, folder in zip(scenario.watchers, scenario.folders(), strict=True):
        lines = read_events(folder.events, limit_bytes=1 << 30)
        log = [json.loads(line) for _, line in lines]
        steps = range(1, STEPS + 1)
        pairs: list[tuple[Iterable[int], list[int]]] = [
            (steps, [event["step"] for event in log if event["type"] == "training.log"]),
            (steps, scenario.callbacks[folder.id]),
            ([event_id for event_id, _ in lines], [int(frame.id or 0) for frame in watcher.frames]),
        ]
        for expected, found in pairs:
            counts = Counter(found)
            lost += sum(one not in counts for one in expected)
            doubled += sum(count - 1 for count in counts.values())
    return lost, doubled
