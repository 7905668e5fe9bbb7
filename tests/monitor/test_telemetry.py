"""One point a second for ten minutes, one row per ten seconds, one transaction a minute."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from fake_sampler import NOTHING, FakeSampler

from edge_agent.errors import StoreError
from edge_agent.monitor.board_sampler import BoardSampler
from edge_agent.monitor.sensors.readings import Alarms, Thermal
from edge_agent.monitor.telemetry import KEEP_POINTS, KEEP_S, Telemetry
from edge_agent.store.rows import SampleRow
from edge_agent.store.store import Store

START = 1_000_000.0


@dataclass
class Rig:
    """A telemetry whose unix clock is START + the monotonic one."""

    sampler: FakeSampler = field(default_factory=FakeSampler)
    flushed: list[list[SampleRow]] = field(default_factory=list)
    tokens: int = 0
    now_s: float = 0.0
    failure: StoreError | None = None

    def __post_init__(self) -> None:
        self.telemetry = Telemetry(
            cast(Store, self),
            cast(BoardSampler, self.sampler),
            lambda: self.tokens,
            lambda: START + self.now_s,
        )

    def add_samples(self, rows: list[SampleRow]) -> Future[None]:
        """Stands in for the store."""
        self.flushed.append(list(rows))
        written: Future[None] = Future()
        if self.failure:
            written.set_exception(self.failure)
        else:
            written.set_result(None)
        return written

    def second(self, watts: tuple[float, ...] = (), **changed: Any) -> None:
        self.now_s += 1.0
        self.sampler.tell(self.now_s, watts, **changed)


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield Rig()


def test_a_point_holds_what_the_sampler_saw(rig: Rig) -> None:
    rig.second((4.0, 5.0, 6.0), alarms=Alarms(("over_current:VDD_IN", "thermal:CPU")))
    (point,) = rig.telemetry.points(10.0)
    assert (point.at, point.span_s) == (START + 1.0, 1.0)
    assert (point.watts, point.peak_w, point.celsius) == (5.0, 6.0, 47.25)
    assert (point.mem_available_bytes, point.cpu_load, point.gpu_load) == (10**9, 0.75, 0.5)
    assert (point.worker_rss_anon_bytes, point.front_rss_anon_bytes) == (90_000_000, 37_000_000)
    assert (point.cpu_clock_hz, point.gpu_clock_hz) == (1.5e9, 3e8)
    assert point.throttle == "over_current:VDD_IN,thermal:CPU"


def test_watts_of_another_second_are_not_counted_twice(rig: Rig) -> None:
    rig.second((2.0, 2.0))
    rig.second((8.0, 8.0))
    assert [point.watts for point in rig.telemetry.points(10.0)] == [2.0, 8.0]


def test_what_cannot_be_read_is_unknown(rig: Rig) -> None:
    changed = {name: value for name, value in vars(NOTHING).items() if name != "at_s"}
    rig.second(**changed)
    (point,) = rig.telemetry.points(10.0)
    figures = {name: value for name, value in vars(point).items() if name not in ("at", "span_s")}
    assert figures.pop("throttle") == ""
    assert set(figures.values()) == {None}


def test_tokens_per_second_are_the_growth_of_the_counter(rig: Rig) -> None:
    rig.tokens = 500
    rig.second()
    rig.second()
    rig.tokens = 530
    rig.second()
    assert [point.tok_s for point in rig.telemetry.points(10.0)] == [None, 0.0, 30.0]


def test_tokens_after_a_silence_are_spread_over_it(rig: Rig) -> None:
    rig.second()
    rig.now_s += 9.0
    rig.tokens = 100
    rig.second()
    assert rig.telemetry.points(1.5)[-1].tok_s == 10.0


def test_memory_is_bounded_and_points_are_cut_by_age(rig: Rig) -> None:
    for _ in range(KEEP_POINTS + 50):
        rig.second()
    assert len(rig.telemetry.points(1e9)) == KEEP_POINTS
    assert [point.at - START for point in rig.telemetry.points(3.0)] == [648.0, 649.0, 650.0]


def test_an_answer_sees_the_points_of_its_own_seconds_only(rig: Rig) -> None:
    for celsius in (90.0, 50.0, 60.0, 55.0, 95.0):
        rig.second(thermal=Thermal({"CPU": celsius}))
    assert [point.celsius for point in rig.telemetry.between(1.5, 4.2)] == [50.0, 60.0, 55.0]


def test_an_answer_shorter_than_a_second_gets_the_latest_point_before_its_end(rig: Rig) -> None:
    assert rig.telemetry.between(0.1, 0.4) == []
    for celsius in (50.0, 60.0, 70.0):
        rig.second(thermal=Thermal({"CPU": celsius}))
    assert [point.celsius for point in rig.telemetry.between(2.1, 2.4)] == [60.0]


def test_an_answer_of_more_than_half_an_hour_is_measured_over_the_last_one(rig: Rig) -> None:
    for _ in range(KEEP_S + 50):
        rig.second()
    found = rig.telemetry.between(0.0, 1e9)
    assert (len(found), found[0].at - START) == (KEEP_S, 51.0)


def test_a_minute_is_written_at_once_in_rows_of_ten_seconds(rig: Rig) -> None:
    for second in range(119):
        rig.second((float(second), float(second)))
    (minute,) = rig.flushed
    assert [row.at - START for row in minute] == [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
    assert (minute[0].span_s, minute[0].watts, minute[0].peak_w) == (10.0, 4.5, 9.0)
    rig.second()
    assert len(rig.flushed) == 2


def test_closing_writes_the_rest_once_and_ends_it(rig: Rig) -> None:
    for _ in range(13):
        rig.second()
    rig.telemetry.close()
    rig.telemetry.close()
    rig.second()
    assert [[row.span_s for row in rows] for rows in rig.flushed] == [[10.0, 3.0]]
    assert len(rig.telemetry.points(1e9)) == 13


def test_a_row_does_not_reach_over_a_silence(rig: Rig) -> None:
    for _ in range(4):
        rig.second()
    rig.now_s += 1000.0
    for _ in range(6):
        rig.second()
    rig.telemetry.close()
    assert [(row.at - START, row.span_s) for row in rig.flushed[0]] == [(4.0, 4.0), (1010.0, 6.0)]


def test_a_disk_that_fails_is_logged_and_outlived(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.failure = StoreError("the database could not be written", "disk full")
    with caplog.at_level(logging.ERROR):
        for _ in range(121):
            rig.second()
    assert len(rig.flushed) == 2
    assert "disk full" in caplog.text


def test_readers_in_other_threads_see_whole_lists(rig: Rig) -> None:
    stop, failures = threading.Event(), list[BaseException]()

    def read() -> None:
        try:
            while not stop.is_set():
                found = [point.at for point in rig.telemetry.points(1e9)]
                assert found == sorted(found)
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(1000):
        rig.second()
    stop.set()
    reader.join()
    assert failures == []


def test_history_arrives_in_the_real_store(tmp_path: Path) -> None:
    sampler, now = FakeSampler(), START
    with Store(tmp_path / "x.db", clock=lambda: now) as store:
        telemetry = Telemetry(store, cast(BoardSampler, sampler), lambda: 0, lambda: now)
        for second in range(65):
            now = START + second
            sampler.tell(float(second), (2.0,) * 10)
        telemetry.close()
        found = store.samples(START - 1, START + 100)
    assert [row.span_s for row in found] == [10.0] * 6 + [5.0]
    assert {row.watts for row in found} == {2.0}
