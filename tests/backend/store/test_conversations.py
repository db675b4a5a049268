"""Stored conversations are what the setting of their deployment says, to the line."""

from __future__ import annotations

import json
import os
import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from arkor.backend.store.conversations import ConversationStore
from arkor.protocol.deployments import Deployment
from arkor.protocol.events import format_timestamp

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=timezone.utc)
KEEPING = Deployment("d" * 32, "bot", {}, "none", run_retention_mode="unlimited")
WEEK = evolve(KEEPING, run_retention_mode="days", run_retention_days=7)
NOTHING = evolve(KEEPING, run_retention_mode="disabled")


@pytest.fixture
def conversations(tmp_path: Path) -> ConversationStore:
    return ConversationStore(tmp_path)


def folder(tmp_path: Path) -> Path:
    return tmp_path / "conversations" / KEEPING.id


def stored(tmp_path: Path) -> list[dict[str, Any]]:
    files = sorted(folder(tmp_path).glob("*.jsonl")) if folder(tmp_path).exists() else []
    return [json.loads(line) for file in files for line in file.read_text().split("\n") if line.startswith("{")]


def lay_down(tmp_path: Path, *ages: timedelta) -> None:
    """Lines of these ages, as of `NOW`."""
    folder(tmp_path).mkdir(parents=True, exist_ok=True)
    for age in sorted(ages, reverse=True):
        moment = NOW - age
        with (folder(tmp_path) / f"{moment:%Y-%m-%d}.jsonl").open("a") as file:
            file.write(json.dumps({"createdAt": format_timestamp(moment), "age": str(age)}) + "\n")


def test_what_is_kept_is_a_line_of_today_for_the_owner_alone(conversations: ConversationStore, tmp_path: Path) -> None:
    conversations.append(lambda: KEEPING, {"id": "1", "text": "Zeile\nzwei \u2028 ✓"})
    conversations.append(lambda: WEEK, {"id": "2"})
    first, second = stored(tmp_path)
    assert first["text"] == "Zeile\nzwei \u2028 ✓"
    assert second["id"] == "2"
    age = datetime.now(timezone.utc) - datetime.fromisoformat(first["createdAt"].replace("Z", "+00:00"))
    assert timedelta(0) <= age < timedelta(minutes=1)
    (file,) = folder(tmp_path).iterdir()
    assert file.name == f"{first['createdAt'][:10]}.jsonl"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_deployment_that_keeps_nothing_has_no_folder(conversations: ConversationStore, tmp_path: Path) -> None:
    conversations.append(lambda: NOTHING, {"text": "secret"})
    conversations.append(lambda: None, {"text": "secret"})
    assert list(tmp_path.iterdir()) == []


def test_days_go_by(conversations: ConversationStore, tmp_path: Path) -> None:
    week = timedelta(days=7)
    second = timedelta(seconds=1)
    lay_down(tmp_path, timedelta(days=40), week + 12 * timedelta(hours=1), week + second, week - second, timedelta(0))
    conversations.apply_retention(WEEK, NOW)
    assert [line["age"] for line in stored(tmp_path)] == [str(week - second), "0:00:00"]
    for file in folder(tmp_path).iterdir():
        assert file.suffix == ".jsonl"
    conversations.apply_retention(WEEK, NOW + timedelta(days=30))
    assert stored(tmp_path) == []


def test_what_was_cut_off_keeps_its_mode(conversations: ConversationStore, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        lay_down(tmp_path, timedelta(days=7, seconds=1), timedelta(days=6, hours=23))
        conversations.apply_retention(WEEK, NOW)
    finally:
        os.umask(before)
    (file,) = folder(tmp_path).iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_is_unlimited_stays(conversations: ConversationStore, tmp_path: Path) -> None:
    lay_down(tmp_path, timedelta(days=4000), timedelta(0))
    conversations.apply_retention(KEEPING, NOW)
    assert len(stored(tmp_path)) == 2


def test_who_keeps_nothing_any_more_has_nothing(conversations: ConversationStore, tmp_path: Path) -> None:
    lay_down(tmp_path, timedelta(0))
    conversations.apply_retention(NOTHING, NOW)
    assert not folder(tmp_path).exists()


def test_a_torn_line_costs_itself_alone(conversations: ConversationStore, tmp_path: Path) -> None:
    conversations.append(lambda: KEEPING, {"id": "1"})
    (file,) = folder(tmp_path).iterdir()
    with file.open("ab") as torn:
        torn.write(b'{"createdAt":"2026-')
    conversations.append(lambda: KEEPING, {"id": "2"})
    lines = file.read_bytes().splitlines()
    assert [line.startswith(b"{") for line in lines] == [True] * 3
    assert json.loads(lines[2])["id"] == "2"


def test_a_rewriting_that_was_killed_leaves_nothing_behind(conversations: ConversationStore, tmp_path: Path) -> None:
    lay_down(tmp_path, timedelta(days=1))
    torn = folder(tmp_path) / ".2026-03-03.jsonl"
    torn.write_text('{"createdAt":"2026-03-03T00:00:00.000Z","text":"old secret"}\n')
    conversations.apply_retention(WEEK, NOW)
    assert not torn.exists()
    assert len(stored(tmp_path)) == 1


def test_a_sweep_leaves_the_folders_of_others_alone(conversations: ConversationStore, tmp_path: Path) -> None:
    lay_down(tmp_path, timedelta(days=100))
    stranger = tmp_path / "conversations" / ("e" * 32)
    stranger.mkdir()
    (stranger / "2020-01-01.jsonl").write_text("{}\n")
    conversations.purge([WEEK], NOW)
    assert stored(tmp_path) == []
    assert (stranger / "2020-01-01.jsonl").exists()


def test_what_cannot_be_removed_is_told(
    conversations: ConversationStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder(tmp_path) / "2020-01-01.jsonl").mkdir(parents=True)
    conversations.purge([WEEK], NOW)
    assert "Expired conversations of bot could not be removed" in caplog.text


def test_forgotten_is_forgotten(conversations: ConversationStore, tmp_path: Path) -> None:
    conversations.append(lambda: KEEPING, {"text": "secret"})
    conversations.delete(KEEPING.id)
    conversations.delete(KEEPING.id)
    assert not folder(tmp_path).exists()
