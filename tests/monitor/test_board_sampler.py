"""The sampling thread on small trees: rate, history, blocked files, whatever else goes wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hanging_file import hanging
from stepped_sampler import SteppedSampler
from waiting import DEADLINE_S, ManualClock, until

from edge_agent.measured import Span
from edge_agent.monitor import board_sampler as sampler_module
from edge_agent.monitor.board_sampler import BoardSampler, Snapshot, TickSchedule
from edge_agent.monitor.energy import energy_of, integrate
from edge_agent.monitor.power_history import KEEP_S, PowerHistory
from edge_agent.monitor.pressure_guard import Thresholds, judge
from edge_agent.monitor.sensor_watch import SENSOR_LIMIT_S, SensorWatch, WatchedSensor
from edge_agent.monitor.sensors import kernel_file
from edge_agent.monitor.sensors.kernel_file import READ_LIMIT_S, GivenUp
from edge_agent.monitor.sensors.readings import Looked, Power

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "sysfs"
HWMON = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
ZONE = "sys/devices/virtual/thermal/thermal_zone8"
RAPL = "sys/class/powercap/intel-rapl:0"


@contextmanager
def running(root: Path, **options: object) -> Iterator[BoardSampler]:
    """A started sampler, closed at the end."""
    sampler = BoardSampler(root, **options)  # type: ignore[arg-type]
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.close()


def count(sampler: BoardSampler) -> int:
    return len(sampler.trace(0.0, float("inf")).times_s)


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    root = tmp_path / "orin"
    shutil.copytree(FIXTURES / "jetson-orin-nano_jetpack6", root)
    power(root, 5.0)
    (root / ZONE).mkdir(parents=True, exist_ok=True)
    (root / ZONE / "type").write_text("tj-thermal\n")
    (root / ZONE / "temp").write_text("48500\n")
    return root


def power(root: Path, watts: float) -> None:
    """What the total rail of the Orin's tree shows."""
    (root / HWMON / "in1_input").write_text("5000\n")
    (root / HWMON / "curr1_input").write_text(f"{watts * 200:.0f}\n")


@pytest.fixture
def pc(tmp_path: Path) -> Path:
    root = tmp_path / "pc"
    (root / RAPL).mkdir(parents=True)
    (root / RAPL / "name").write_text("package-0\n")
    (root / RAPL / "max_energy_range_uj").write_text("1000000\n")
    (root / RAPL / "energy_uj").write_text("0\n")
    return root


# ---- schedule ----


def test_ticks_stay_on_their_grid_and_missed_ones_are_skipped_and_counted() -> None:
    schedule = TickSchedule(0.1, 100.0)
    taken = [now for now in (100.0, 100.05, 100.101, 100.45, 100.46, 100.5) if schedule.take(now)]
    assert taken == [100.0, 100.101, 100.45, 100.5]
    assert (schedule.taken, schedule.missed) == (4, 2)
    assert schedule.due_s == pytest.approx(100.6)


def test_late_ticks_never_make_the_schedule_drift() -> None:
    schedule, now = TickSchedule(0.1, 0.0), 0.0
    for _ in range(1000):
        assert schedule.take(now)
        now = schedule.due_s + 0.0007
    assert schedule.due_s == pytest.approx(100.0, abs=1e-6) and schedule.missed == 0


def test_a_long_stall_is_logged_and_not_made_up_for(caplog: pytest.LogCaptureFixture) -> None:
    schedule = TickSchedule(0.1, 0.0)
    with caplog.at_level(logging.INFO):
        assert schedule.take(30.05) and not schedule.take(30.06)
    assert schedule.missed == 300 and "300 ticks skipped" in caplog.text


# ---- history ----


def test_a_counter_has_watts_from_its_second_reading_on() -> None:
    history = PowerHistory(20.0, 0.3, 0.3)
    assert history.add_joules(1.0, 7.0, is_idle=False) is None
    sample = history.add_joules(1.1, 8.0, is_idle=False)
    assert sample is not None and sample.watts == pytest.approx(10.0)


def test_a_counters_watts_are_never_the_mean_of_a_moment() -> None:
    history = PowerHistory(20.0, 0.3, 0.3)
    for at_s, joules in ((1.0, 0.0), (1.1, 1.0), (1.2, 2.0), (1.201, 2.1)):
        sample = history.add_joules(at_s, joules, is_idle=False)
    assert sample is not None and sample.watts == pytest.approx(1.1 / 0.101)
    assert list(history.trace(0, 9, "rapl", "package-0").joules) == [1.0, 2.0, 2.1]


def test_a_window_comes_with_one_sample_either_side() -> None:
    history = PowerHistory(20.0, 0.3, 0.3)
    for at_s in range(10):
        history.add_watts(float(at_s), 1.0, is_idle=False)
    assert list(history.trace(2.5, 4.5, "ina3221", "VDD_IN").times_s) == [2, 3, 4, 5]
    assert list(history.trace(3.0, 4.0, "ina3221", "VDD_IN").times_s) == [2, 3, 4, 5]
    assert list(history.trace(20.0, 21.0, "ina3221", "VDD_IN").times_s) == [9]


def test_half_an_hour_is_kept_and_not_much_more() -> None:
    history = PowerHistory(1.0, 3.0, 3.0)
    for at_s in range(6000):
        history.add_watts(float(at_s), 1.0, is_idle=False)
    kept = history.trace(0, 6000, "ina3221", "VDD_IN").times_s
    assert KEEP_S <= kept[-1] - kept[0] <= 1.25 * KEEP_S + 1


def test_idle_watts_are_the_median_of_the_last_idle_minute() -> None:
    history = PowerHistory(10.0, 0.3, 0.3)
    for tick in range(300):
        history.add_watts(tick / 10, 9.0, is_idle=True)
    for tick in range(300, 400):
        history.add_watts(tick / 10, 20.0, is_idle=False)
    assert history.idle_w(40.0)[0] is None
    for tick in range(400, 1011):
        history.add_watts(tick / 10, 2.0 if tick % 5 else 3.0, is_idle=True)
    assert history.idle_w(101.1) == (2.0, "")


def test_idle_watts_need_a_minute_within_ten_and_say_how_much_there_was() -> None:
    history = PowerHistory(10.0, 0.3, 0.3)
    for tick in range(121):
        history.add_watts(tick / 10, 2.0, is_idle=True)
    watts, reason = history.idle_w(12.0)
    assert watts is None and "only 12 s of idle time seen" in reason and "60 are needed" in reason
    for tick in range(121, 700):
        history.add_watts(tick / 10, 2.0, is_idle=True)
    assert history.idle_w(70.0)[0] == 2.0
    assert history.idle_w(70.0 + 590.0)[0] is None, "most of it was longer ago than ten minutes"


# ---- the thread on trees ----


def test_a_snapshot_tells_everything_the_board_has(orin: Path) -> None:
    with running(orin, pids=lambda: {"front": os.getpid()}, monotonic=ManualClock()) as sampler:
        until(sampler.snapshot)
        seen = sampler.snapshot()
        assert seen is not None
        assert (seen.power.source, seen.power.total_rail) == ("ina3221", "VDD_IN")
        assert seen.total_w == pytest.approx(5.0) and seen.total_reason == ""
        assert seen.thermal.hottest_celsius is not None and seen.memory.available_bytes
        assert seen.board.model and "Orin" in seen.board.model
        assert (seen.rss_anon_bytes["front"] or 0) > 1e6
        assert seen.idle_w is None and "of idle time seen" in seen.idle_reason
        assert (seen.rate_hz, dict(seen.blocked)) == (10.0, {})
        assert any(place.what.startswith("power rails") for place in sampler.looked())


def test_a_machine_with_nothing_gives_reasons_and_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, idle_hz=50.0) as sampler:
        until(sampler.snapshot)
        seen = sampler.snapshot()
        trace = sampler.trace(0.0, float("inf"))
    assert seen is not None and seen.total_w is None and "no power sensor" in seen.total_reason
    assert seen.thermal.hottest_celsius is None and seen.cpu_load is None
    energy = energy_of([Span(1.0, 2.0, "decode", 1.0, 9)], trace, None, 9)
    assert energy.total_j is None and energy.reason == seen.total_reason


def test_the_rate_follows_the_work(orin: Path) -> None:
    sampler = SteppedSampler(orin, idle_hz=2.0, busy_hz=64.0)
    sampler.step()
    taken = [count(sampler)]
    for is_busy in (False, True, True, False, False):
        sampler.set_busy(is_busy)
        sampler.step(1 / 128, ticks=128)
        taken.append(count(sampler))
    assert [b - a for a, b in zip(taken, taken[1:], strict=False)] == [2, 64, 64, 2, 2]


def test_work_wakes_a_thread_whose_next_tick_is_far_away(orin: Path) -> None:
    with running(orin, idle_hz=0.001, busy_hz=50.0) as sampler:
        until(sampler.snapshot)
        for _ in range(3):
            sampler.set_busy(False)
            before = count(sampler)
            sampler.set_busy(True)
            until(lambda: count(sampler) > before + 1)  # noqa: B023  (called here)


def test_subscribers_are_called_once_a_second_and_their_errors_are_theirs(
    orin: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Snapshot] = []

    def broken(_: Snapshot) -> None:
        raise ValueError("a bug")

    sampler = SteppedSampler(orin, idle_hz=64.0)
    sampler.subscribe(broken)
    sampler.subscribe(seen.append)
    sampler.step()
    sampler.step(1 / 64, ticks=3 * 64)
    assert [one.at_s for one in seen] == [0.0, 1.0, 2.0, 3.0]
    assert seen[1].ticks == 65 and caplog.text.count("ValueError: a bug") == 4


def test_load_is_the_share_of_time_not_idle_between_two_snapshots(orin: Path) -> None:
    stat = orin / "proc" / "stat"
    stat.write_text("cpu 100 0 0 900 0 0 0 0 0 0\n")
    sampler = SteppedSampler(orin)
    sampler.step()
    stat.write_text("cpu 175 0 0 925 0 0 0 0 0 0\n")
    assert sampler.look().cpu_load == pytest.approx(0.75)


def test_a_sensor_that_fails_is_none_with_a_reason_and_comes_back(orin: Path) -> None:
    sampler = SteppedSampler(orin)
    sampler.step()
    current = orin / HWMON / "curr1_input"
    for garbage in ("65535\n", "nonsense\n", "", "-7\n", None):
        current.unlink() if garbage is None else current.write_text(garbage)
        sampler.step(0.1)
        trace = sampler.trace(0.0, 1.0)
        assert trace.reason, garbage
        assert list(trace.watts) == [5.0], "a missing value is no sample and never 0"
    power(orin, 7.0)
    sampler.step(0.1)
    assert list(sampler.trace(0.0, 1.0).watts) == [5.0, 7.0]
    assert sampler.trace(0.0, 1.0).reason == ""


def test_a_counter_that_wraps_around_loses_no_joule(pc: Path) -> None:
    counter, uj = pc / RAPL / "energy_uj", 400_000
    sampler = SteppedSampler(pc, idle_hz=10.0)
    sampler.step()
    for step in range(1, 9):
        counter.write_text(f"{(step * uj) % 1_000_000}\n")
        sampler.step(0.1)
    trace = sampler.trace(0.0, 1.0)
    part = integrate(trace, trace.times_s[0], trace.times_s[-1])
    assert (trace.source, trace.rail) == ("rapl", "package-0")
    assert part.joules == pytest.approx(trace.joules[-1] - trace.joules[0])
    assert part.joules == pytest.approx(7 * 0.4), "the first reading of the eight begins the count"
    assert min(trace.watts) >= 0.0


# ---- covering ----


def test_covering_takes_a_sample_at_once(orin: Path) -> None:
    with running(orin, idle_hz=0.001) as sampler:
        until(sampler.snapshot)
        for _ in range(3):
            at_s = time.monotonic()
            asyncio.run(sampler.covering(at_s, DEADLINE_S))
            assert sampler.trace(0.0, float("inf")).times_s[-1] >= at_s


def test_many_who_wait_share_few_samples(orin: Path) -> None:
    async def all_at_once(sampler: BoardSampler) -> None:
        now = time.monotonic()
        await asyncio.gather(*(sampler.covering(now, DEADLINE_S) for _ in range(50)))

    with running(orin, idle_hz=0.001) as sampler:
        until(lambda: count(sampler))
        before = count(sampler)
        asyncio.run(all_at_once(sampler))
        assert 1 <= count(sampler) - before <= 2


def test_covering_returns_at_once_where_no_power_is_read(tmp_path: Path) -> None:
    def cover(sampler: BoardSampler) -> None:
        covering = sampler.covering(time.monotonic(), timeout_s=3600.0)
        asyncio.run(asyncio.wait_for(covering, DEADLINE_S))

    cover(BoardSampler(tmp_path))
    with running(tmp_path) as sampler:
        until(sampler.snapshot)
        cover(sampler)
    cover(sampler)


# ---- what blocks ----


def no_thread_hangs() -> bool:
    return not any(thread.name == "sampler" for thread in threading.enumerate())


def test_a_zone_that_blocks_is_left_out_and_the_guard_sees_the_others(orin: Path) -> None:
    zone, hot, clock = orin / ZONE / "temp", orin / ZONE.replace("8", "0") / "temp", ManualClock()
    with hanging(zone), running(orin, idle_hz=64.0, monotonic=clock) as sampler:
        until(lambda: str(zone) in sampler._watch.blocked)
        hot.write_text("97000\n")
        clock.now_s = 2.0
        until(lambda: (seen := sampler.snapshot()) and seen.at_s == 2.0)
        seen = sampler.snapshot()
        hanging_threads = [t for t in threading.enumerate() if t.name == "sampler"]
    until(no_thread_hangs)
    assert seen is not None and list(seen.blocked) == [str(zone)]
    assert seen.thermal.zones_celsius["tj-thermal.8"] is None
    assert seen.thermal.reasons["zones_celsius.tj-thermal.8"] == seen.blocked[str(zone)]
    assert seen.thermal.hottest_celsius == 97.0 and seen.total_w == pytest.approx(5.0)
    verdict = judge(seen, Thresholds(None, 20.0, 90.0))
    assert verdict.is_pressed and "97.0 C" in verdict.reason
    assert len(hanging_threads) == 2, "one is left behind, one goes on"


def test_a_rail_that_blocks_costs_its_own_watts_only(orin: Path) -> None:
    with hanging(orin / HWMON / "curr2_input"), running(orin, idle_hz=50.0) as sampler:
        until(lambda: count(sampler) > 3)
        seen = until(sampler.snapshot)
    until(no_thread_hangs)
    assert seen.total_w == pytest.approx(5.0) and seen.power.watts["VDD_CPU_GPU_CV"] is None
    assert "did not return" in seen.power.reasons["watts.VDD_CPU_GPU_CV"]


def test_a_total_rail_that_blocks_is_named_and_closing_is_quick(orin: Path) -> None:
    current, clock = orin / HWMON / "curr1_input", ManualClock()
    with running(orin, idle_hz=50.0, monotonic=clock) as sampler:
        until(sampler.snapshot)
        with hanging(current):
            clock.now_s = 0.1
            until(lambda: str(current) in sampler._watch.blocked)
            clock.now_s = 2.0
            until(lambda: (seen := sampler.snapshot()) and seen.at_s == 2.0)
            seen = sampler.snapshot()
            trace = sampler.trace(0.0, float("inf"))
            asyncio.run(sampler.covering(clock.now_s))
        until(lambda: len([t for t in threading.enumerate() if t.name == "sampler"]) == 1)
    assert seen is not None and seen.total_w is None
    assert seen.total_reason == seen.blocked[str(current)] == trace.reason
    assert seen.power.total_rail == "VDD_IN" and seen.power.watts["VDD_IN"] is None


def test_closing_does_not_wait_for_a_read_that_hangs(orin: Path) -> None:
    current, clock = orin / HWMON / "curr1_input", ManualClock()
    sampler = BoardSampler(orin, idle_hz=50.0, monotonic=clock)
    sampler.start()
    until(sampler.snapshot)
    with hanging(current):
        clock.now_s = 0.1
        until(lambda: str(current) in dict(kernel_file._under_way.copy().values()))
        began_s = time.monotonic()
        sampler.close()
        closed_s = time.monotonic() - began_s
        assert not no_thread_hangs()
    until(no_thread_hangs)
    assert closed_s < 10.0, "the promise is one second"


class Hanging:
    """A sensor whose read returns when it is let go."""

    looked: tuple[Looked, ...] = ()

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.reads = 0

    def read(self) -> Power:
        self.reads += 1
        assert self.goes_on.wait(DEADLINE_S)
        return Power("ina3221", "VDD_IN", {"VDD_IN": 1.0})


def dark(reason: str) -> Power:
    return Power("none", None, reasons={"total": reason})


def test_a_blocked_sensor_is_tried_again_after_a_minute_and_never_by_two_threads() -> None:
    clock, sensor = ManualClock(), Hanging()
    watch = SensorWatch(Path("/"), clock)
    watched = WatchedSensor("power", lambda _: sensor, dark)
    ended: list[bool] = []

    def read(turn: int) -> None:
        try:
            watch.read(watched, turn)
        except GivenUp:
            ended.append(True)

    thread = threading.Thread(target=read, args=(0,))
    thread.start()
    until(lambda: sensor.reads)
    assert watch.overdue() == READ_LIMIT_S and watch.turn == 0
    clock.now_s = SENSOR_LIMIT_S
    watch.overdue()
    assert watch.turn == 1 and list(watch.blocked) == ["power"]
    for clock.now_s in (6.0, 65.0, 66.0, 127.0):
        assert "did not return" in watch.read(watched, 1).reasons["total"]
    assert sensor.reads == 1, "a thread is stuck in it still"
    sensor.goes_on.set()
    thread.join(DEADLINE_S)
    assert ended == [True] and list(watch.blocked) == ["power"]
    clock.now_s = 200.0
    assert watch.read(watched, 1).total_rail == "VDD_IN" and watch.blocked == {}


def test_an_exception_in_a_sensor_is_a_reason() -> None:
    def broken(_: Path) -> Hanging:
        raise RuntimeError("a bug")

    watch = SensorWatch(Path("/"), ManualClock())
    reading = watch.read(WatchedSensor("power", broken, dark), 0)
    assert reading.reasons["total"] == "power could not be read: RuntimeError: a bug"
    assert watch.blocked == {} and watch.overdue() == READ_LIMIT_S


def test_a_service_that_refreshes_slowly_gives_no_sample_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow:
        looked: tuple[Looked, ...] = ()

        def read(self) -> Power:
            return Power("jtop", "VDD_IN", {"VDD_IN": 4.0})

    monkeypatch.setattr(sampler_module.power, "find", lambda *_: Slow())
    sampler = SteppedSampler(tmp_path, source="jtop", idle_hz=64.0)
    sampler.step()
    sampler.step(1 / 64, ticks=3 * 64)
    trace = sampler.trace(0.0, float("inf"))
    assert list(trace.times_s) == [0.0, 1.0, 2.0, 3.0] and trace.max_gap_s == 3.0
