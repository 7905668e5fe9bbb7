"""The guard on made-up snapshots and on a changing tree of files below a real supervisor."""

from __future__ import annotations

import asyncio
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import WORKER_ARGV, generate, register
from stepped_sampler import SteppedSampler
from waiting import until_async

from edge_agent.config import Settings
from edge_agent.errors import Overloaded
from edge_agent.monitor.board_sampler import Snapshot
from edge_agent.monitor.pressure_guard import (
    GuardState,
    PressureGuard,
    Thresholds,
    decide,
    judge,
    thresholds,
)
from edge_agent.monitor.sensors.readings import Memory, Power, Thermal
from edge_agent.store.store import Store
from edge_agent.supervisor.supervisor import Supervisor

LIMITS = Thresholds(available_bytes=200 << 20, psi_percent=20.0, celsius=90.0)
GIB = 1 << 30
BOARD = Path(__file__).resolve().parents[1] / "fixtures" / "sysfs" / "jetson-nano_jetpack4"


def snapshot(
    available: int | None = GIB,
    celsius: float | None = 40.0,
    psi: float | None = 0.0,
    trips: dict[str, float] | None = None,
    at_s: float = 0.0,
) -> Snapshot:
    return replace(
        SteppedSampler(Path("/nowhere")).look(),
        at_s=at_s,
        power=Power("none", None),
        memory=Memory(total_bytes=4 * GIB, available_bytes=available, psi_full_percent=psi),
        thermal=Thermal({"CPU-therm": celsius}, trips or {}),
    )


@pytest.fixture(scope="module")
def calm() -> Snapshot:
    return snapshot()


def at(calm: Snapshot, **memory: object) -> Snapshot:
    return replace(calm, memory=replace(calm.memory, **memory))


def walk(verdicts: list[Snapshot], start: GuardState = GuardState()) -> GuardState:  # noqa: B008  (frozen)
    state = start
    for second, seen in enumerate(verdicts):
        state = decide(state, judge(seen, LIMITS), float(second))
    return state


def test_a_single_bad_second_changes_nothing(calm: Snapshot) -> None:
    assert walk([calm, at(calm, available_bytes=150 << 20), calm]).stage == 0


def test_lasting_pressure_refuses_after_two_seconds_and_names_the_figure(calm: Snapshot) -> None:
    state = walk([at(calm, available_bytes=150 << 20)] * 3)
    assert state.stage == 1
    assert state.reason == "memory pressure: 150 MiB available, the guard acts below 200 MiB"


def test_stages_follow_every_ten_seconds_and_faster_when_critical(calm: Snapshot) -> None:
    pressed, critical = at(calm, available_bytes=150 << 20), at(calm, available_bytes=50 << 20)
    assert [walk([pressed] * n).stage for n in (12, 13, 22, 23, 60)] == [1, 2, 2, 3, 3]
    assert walk([critical] * 7).stage == 3


def test_between_threshold_and_margin_the_stage_stays(calm: Snapshot) -> None:
    state = walk([at(calm, available_bytes=150 << 20)] * 3)
    assert walk([at(calm, available_bytes=220 << 20)] * 60, state).stage == 1


def test_calm_takes_back_one_stage_every_ten_seconds(calm: Snapshot) -> None:
    state = GuardState(3, "memory pressure", None, None)
    assert [walk([calm] * n, state).stage for n in (10, 11, 21, 31)] == [3, 2, 1, 0]
    assert walk([calm] * 31, state).reason == ""


def test_missing_sensors_never_trigger_anything(calm: Snapshot) -> None:
    blind = replace(calm, memory=Memory(), thermal=Thermal({"GPU": None}))
    assert walk([blind] * 100).stage == 0


def test_heat_threshold_is_below_the_zones_own_trip_point(calm: Snapshot) -> None:
    warm = replace(calm, thermal=Thermal({"CPU-therm": 80.0}, {"CPU-therm": 84.0}))
    verdict = judge(warm, LIMITS)
    assert verdict.is_pressed and "79.0" in verdict.reason
    assert not judge(replace(calm, thermal=Thermal({"CPU-therm": 80.0})), LIMITS).is_pressed


def test_stalled_tasks_are_pressure(calm: Snapshot) -> None:
    assert "waited 30 %" in judge(at(calm, psi_full_percent=30.0), LIMITS).reason


def test_default_memory_threshold_is_a_share_of_the_board(tmp_path: Path, calm: Snapshot) -> None:
    limits = thresholds(Settings(state_dir=tmp_path))
    assert judge(at(calm, available_bytes=204 << 20), limits).is_pressed
    assert not judge(at(calm, available_bytes=206 << 20), limits).is_pressed


class Events:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def add_event(self, kind: str, detail: str) -> Future[None]:
        self.texts.append(f"{kind}: {detail}")
        return Future()


def set_available(root: Path, mib: int) -> None:
    text = (root / "proc/meminfo").read_text().splitlines()
    lines = [
        f"MemAvailable:   {mib * 1024} kB" if line.startswith("MemAvailable") else line
        for line in text
    ]
    new = root / "proc/meminfo.new"
    new.write_text("\n".join(lines) + "\n")
    new.rename(root / "proc/meminfo")


def feed_until(guard: PressureGuard, sampler: SteppedSampler, stage: int) -> None:
    """One reading a made-up second until the guard is there."""
    for _ in range(60):
        guard.feed(sampler.look())
        if guard.stage == stage:
            return
    raise AssertionError(f"stage {guard.stage} instead of {stage}: {guard.reason}")


def test_changing_tree_goes_through_every_stage_and_back(tmp_path: Path) -> None:
    root = tmp_path / "board"
    shutil.copytree(BOARD, root)
    state = tmp_path / "state"
    state.mkdir()

    async def scenario() -> list[str]:
        store = Store(state / "edge-agent.db")
        store.add_model(register(state))
        settings = Settings(state_dir=state, model="tiny")
        supervisor = Supervisor(settings, store, WORKER_ARGV)
        events, sampler = Events(), SteppedSampler(root)
        guard = PressureGuard(thresholds(settings), supervisor, events)
        try:
            set_available(root, 2000)
            feed_until(guard, sampler, 0)
            assert await ask(supervisor)
            set_available(root, 120)
            feed_until(guard, sampler, 1)
            with pytest.raises(Overloaded, match="120 MiB available"):
                await ask(supervisor)
            assert supervisor.status().info is not None
            feed_until(guard, sampler, 2)
            await until_async(lambda: "guard: the model has one slot already" in events.texts)
            feed_until(guard, sampler, 3)
            await until_async(lambda: "guard: the model was unloaded" in events.texts)
            assert supervisor.status().info is None
            set_available(root, 2000)
            feed_until(guard, sampler, 0)
            assert await ask(supervisor)
        finally:
            await supervisor.close(0)
            store.close()
        return events.texts

    texts = asyncio.run(scenario())
    stages = [text.split(": ")[1] for text in texts if "->" in text and "stage" in text]
    assert stages == [
        f"stage {a} -> {b}" for a, b in [(0, 1), (1, 2), (2, 3), (3, 2), (2, 1), (1, 0)]
    ]


async def ask(supervisor: Supervisor) -> bool:
    return bool([event async for event in supervisor.generate(None, generate())])
