"""The benchmark of docs/reliability.md: its table is in the page, and it counts losses correctly."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.benchmarks.kills import STEPS, Scenario, losses
from tests.benchmarks.lifecycle import MEASURES
from tests.conftest import PROJECT


def test_the_page_has_every_row() -> None:
    page = (PROJECT / "docs" / "reliability.md").read_text("utf-8")
    for names, _ in MEASURES:
        for name in names:
            assert f"| {name} | " in page


@pytest.mark.slow
def test_what_is_lost_or_doubled_is_seen(tmp_path: Path) -> None:
    scene = Scenario(tmp_path / "arkor-home", random.Random(0))
    try:
        scene.watched_run()
        scene.wait_until_finished(30)
        scene.threads[0].join(10)
    finally:
        scene.clean_up()
    (steps,) = scene.callbacks.values()
    frames = scene.watchers[0].frames
    log = scene.folders()[0].events
    assert (losses(scene), steps) == ((0, 0), list(range(1, STEPS + 1)))
    steps.remove(7)
    assert losses(scene) == (1, 0)
    steps += [8, 8]
    assert losses(scene) == (1, 2)
    frames.append(frames.pop(3))
    assert losses(scene) == (1, 2)
    frames.append(frames[3])
    assert losses(scene) == (1, 3)
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-3]))
    assert losses(scene)[0] > 1
