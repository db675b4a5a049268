"""The bell: a ring is heard at once, a storm of them now and then, and nobody needs it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from arkor.backend.runs import log_notifier
from arkor.backend.runs.log_notifier import LogNotifier, notify


class Listener:
    """A bell, and the times at which it called."""

    def __init__(self, path: Path) -> None:
        self.bell = LogNotifier(path)
        self.calls: list[float] = []
        self.bell.on_notify = lambda: self.calls.append(time.monotonic())
        self.bell.open()
        self.calls.clear()


def test_a_ring_is_heard_at_once(tmp_path: Path) -> None:
    async def listen() -> None:
        listener = Listener(tmp_path / "bell")
        for rings in range(1, 4):
            await asyncio.sleep(0.01)
            notify(tmp_path / "bell")
            while len(listener.calls) < rings:
                await asyncio.sleep(0)
        listener.bell.close()

    asyncio.run(listen())


def test_a_storm_of_rings_is_few_calls_and_its_last_one_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_notifier, "_POLL_SECONDS", 3600.0)

    async def listen() -> None:
        listener = Listener(tmp_path / "bell")
        rings = 0
        while len(listener.calls) < 10:
            notify(tmp_path / "bell")
            rings += 1
            await asyncio.sleep(0)
        assert rings >= 2 * len(listener.calls), f"{len(listener.calls)} calls for {rings} rings"
        rung = time.monotonic()
        notify(tmp_path / "bell")
        while listener.calls[-1] < rung:
            await asyncio.sleep(0.001)
        listener.bell.close()

    asyncio.run(listen())


def test_without_a_pipe_it_calls_often(tmp_path: Path) -> None:
    async def listen() -> None:
        listener = Listener(tmp_path / "nowhere" / "bell")
        notify(tmp_path / "nowhere" / "bell")
        while len(listener.calls) < 5:
            await asyncio.sleep(0.001)
        assert listener.calls[4] - listener.calls[0] > 3 * 0.05  # it rests in between
        listener.bell.close()

    asyncio.run(listen())


def test_closing_calls_a_last_time_and_leaves_no_file_open(tmp_path: Path) -> None:
    async def listen() -> None:
        before = psutil.Process().num_fds()
        listener = Listener(tmp_path / "bell")
        notify(tmp_path / "bell")
        listener.bell.close()
        assert listener.bell.closed
        assert len(listener.calls) == 1
        await asyncio.sleep(0.05)
        assert len(listener.calls) == 1
        assert psutil.Process().num_fds() == before

    asyncio.run(listen())


def test_a_file_in_the_way_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_notifier, "_POLL_SECONDS", 3600.0)
    (tmp_path / "bell").write_text("a file")

    async def listen() -> None:
        listener = Listener(tmp_path / "bell")
        notify(tmp_path / "bell")
        while not listener.calls:
            await asyncio.sleep(0.001)
        listener.bell.close()

    asyncio.run(listen())
