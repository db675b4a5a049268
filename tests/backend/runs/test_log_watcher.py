"""Followers of a log inside the server: what they clean up, and when they end."""

from __future__ import annotations

import asyncio
from pathlib import Path

from arkor.backend.runs.event_log import LogWriter
from arkor.backend.runs.log_notifier import LogNotifier
from arkor.backend.runs.log_watcher import LogWatcher
from arkor.backend.runs.sse import END
from arkor.protocol.events import TrainingCompleted, TrainingLog

TIME = "2026-01-02T03:04:05.678Z"


def test_a_generator_that_is_closed_leaves_no_log_watched(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with LogWriter(path) as log:
        log.append(TrainingLog("job", TIME, 1, 1.5))

    async def watch() -> None:
        watcher = LogWatcher(LogNotifier(tmp_path / "bell"))
        followers = [watcher.follow(path, 0, over=False) for _ in range(3)]
        for follower in followers:
            assert b"training.log" in await anext(follower)
        waiting = asyncio.ensure_future(anext(followers[0]))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        for follower in followers:
            await follower.aclose()
        assert watcher.watched == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(watch())


def test_the_end_is_not_told_before_the_last_event(tmp_path: Path) -> None:
    """The run is known to be over, and nobody has looked at its log since."""
    path = tmp_path / "events.jsonl"
    with LogWriter(path) as log:
        end = log.append(TrainingLog("job", TIME, 1, 1.5))

    async def watch() -> list[bytes]:
        watcher = LogWatcher(LogNotifier(tmp_path / "bell"))
        early = watcher.follow(path, 0, over=False)
        await anext(early)
        with LogWriter(path) as log:
            log.append(TrainingCompleted("job", TIME))
        seen = [part async for part in watcher.follow(path, end, over=True)]
        await early.aclose()
        return seen

    completed, *rest = asyncio.run(watch())
    assert b"event: training.completed\n" in completed
    assert rest == [END]


def test_a_log_is_read_once_for_all_who_are_at_the_same_place(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with LogWriter(path) as log:
        log.append(TrainingLog("job", TIME, 1, 1.5))

    async def watch() -> list[bytes]:
        watcher = LogWatcher(LogNotifier(tmp_path / "bell"))
        followers = [watcher.follow(path, 0, over=False) for _ in range(5)]
        pieces = [await anext(follower) for follower in followers]
        for follower in followers:
            await follower.aclose()
        return pieces

    pieces = asyncio.run(watch())
    assert all(piece is pieces[0] for piece in pieces)
