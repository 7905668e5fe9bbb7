"""What happened last is shown without a disk, survives a restart, and routine does not hide it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.store.event_log import KEEP_RECENT, SHOWN
from edge_agent.store.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edge-agent.db"


def kinds(store: Store) -> list[str]:
    return [event["kind"] for event in store.health()["events"]]


def test_routine_does_not_hide_what_went_wrong(path: Path) -> None:
    with Store(path) as store:
        store.add_event("worker_crashed", "tiny: signal 11")
        for _ in range(SHOWN + 1):
            store.add_event("model_loaded", "tiny in 1 s")
            store.add_event("model_unloaded", "tiny")
        assert kinds(store) == ["worker_crashed"]


def test_the_newest_events_come_first_and_survive_a_restart(path: Path) -> None:
    names = [f"kind_{number}" for number in range(SHOWN + 2)]
    with Store(path) as store:
        for name in names:
            store.add_event(name, "")
        assert kinds(store) == names[:1:-1]
    with Store(path) as store:
        assert kinds(store) == names[:1:-1]
        store.add_event("adapter_rolled_back", "tiny:a: NaN")
        assert kinds(store)[:2] == ["adapter_rolled_back", names[-1]]


def test_memory_is_bounded(path: Path) -> None:
    with Store(path) as store:
        for number in range(KEEP_RECENT + 5):
            store.add_event("guard", str(number))
        assert len(store.recent_events(10_000)) == KEEP_RECENT


def test_a_closed_store_still_tells_what_happened(path: Path) -> None:
    with Store(path) as store:
        store.add_event("guard", "stage 0 -> 1")
    late = store.add_event("late", "the write fails")
    assert late.exception() is not None
    assert kinds(store) == ["late", "guard"]
