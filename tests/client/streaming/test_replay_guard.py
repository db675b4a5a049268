"""`ReplayGuard` with opaque ids: numeric or not, ascending or not."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from arkor.client.streaming.event_stream import ReplayGuard

IDS = st.one_of(st.integers(-50, 50).map(str), st.text(min_size=1, max_size=3), st.integers(10**18, 10**20).map(str))


def taken(guard: ReplayGuard, ids: list[str]) -> list[str]:
    """Return the events of one connection that are not replays."""
    guard.connected()
    return [event_id for event_id in ids if not guard.is_replay(event_id, f"data of {event_id}")]


@given(st.lists(IDS, unique=True, max_size=40), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=8))
def test_each_event_is_accepted_once_whatever_is_replayed(ids: list[str], connections: list[tuple[int, int]]) -> None:
    """Connections that go back and forward by any number of events."""
    guard, seen, reached = ReplayGuard(), list[str](), 0
    for back, forward in connections:
        begin, reached = max(0, reached - back), min(len(ids), reached + forward)
        seen += taken(guard, ids[begin:reached])
    assert seen == ids[:reached]


def test_descending_ids_are_not_replays() -> None:
    guard = ReplayGuard()
    assert taken(guard, ["5", "3"]) == ["5", "3"]
    assert taken(guard, ["3", "4", "1"]) == ["4", "1"]
    assert taken(guard, ["1", "5", "2"]) == ["2"]


def test_a_repeated_sequence_on_one_connection_is_a_replay() -> None:
    assert taken(ReplayGuard(), ["1", "2", "3", "2", "3", "4"]) == ["1", "2", "3", "4"]


def test_a_duplicate_id_does_not_lose_the_second_event() -> None:
    guard = ReplayGuard()
    assert not guard.is_replay("same", "first")
    assert guard.is_replay("same", "first")
    assert not guard.is_replay("same", "second")


def test_events_without_ids_are_identified_by_their_data() -> None:
    guard = ReplayGuard()
    assert [guard.is_replay(None, data) for data in ("a", "b")] == [False, False]
    guard.connected()
    assert [guard.is_replay(id_, data) for id_, data in ((None, "a"), ("", "b"), (None, "c"))] == [True, True, False]


def test_a_million_events_take_at_most_16_megabytes() -> None:
    guard = ReplayGuard()
    tracemalloc.start()
    for number in range(200_000):
        guard.is_replay(f"event-{number}", "")
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 200_000 * 16
