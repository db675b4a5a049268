"""Notifications: one is handled at once, many are combined, and polling replaces them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from arkor.backend.runs import log_notifier
from arkor.backend.runs.log_notifier import LogNotifier, notify


class Listener:
    """A notifier, and the times at which it called back."""

    def __init__(self, path: Path) -> None:
        self.notifier = LogNotifier(path)
        self.calls: list[float] = []
        self.notifier.on_notify = lambda: self.calls.append(time.monotonic())
        self.notifier.open()
        self.calls.clear()


def test_a_notification_is_handled_at_once(tmp_path: Path) -> None:
    async def listen() -> None:
        listener = Listener(tmp_path / "bell")
        for notifications in range(1, 4):
            await asyncio.sleep(0.01)
            notify(tmp_path / "bell")
            while len(listener.calls) < notifications:
                await asyncio.sleep(0)
        listener.notifier.close()

    asyncio.run(listen())


def test_many_notifications_are_few_calls_and_the_last_one_is_handled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_notifier, "_POLL_SECONDS", 3600.0)

    async def listen() -> None:
        listener = Listener(tmp_path / "bell")
        notifications = 0
        while len(listener.calls) < 10:
            notify(tmp_path / "bell")
            notifications += 1
            await asyncio.sleep(0)
        assert notifications >= 2 * len(listener.calls), (
            f"{len(listener.calls)} calls for {notifications} notifications"
        )
        last = time.monotonic()
        notify(tmp_path / "bell")
        while listener.calls[-1] < last:
            await asyncio.sleep(0.001)
        listener.notifier.close()

    asyncio.run(listen())


def test_without_a_pipe_it_calls_often(tmp_path: Path) -> None:
    async def listen() -> None:
        listener = Listener(tmp_path / "nowhere" / "bell")
        notify(tmp_path / "nowhere" / "bell")
        while len(listener.calls) < 5:
            await asyncio.sleep(0.001)
        assert listener.calls[4] - listener.calls[0] > 3 * 0.05  # it rests in between
        listener.notifier.close()

    asyncio.run(listen())


def test_closing_calls_a_last_time_and_leaves_no_file_open(tmp_path: Path) -> None:
    async def listen() -> None:
        before = psutil.Process().num_fds()
        listener = Listener(tmp_path / "bell")
        notify(tmp_path / "bell")
        listener.notifier.close()
        assert listener.notifier.closed
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
        listener.notifier.close()

    asyncio.run(listen())
