"""Watches the board at a fixed rate: power at every tick, everything else once a second.

Flows in: sensor files below a root, through sensor_watch.py. Flows out: the latest Snapshot, a
call per second to each subscriber, and the power samples of any window of the last half hour, on
the monotonic clock that the worker uses for its tokens. One thread samples. A second thread checks
twice a second whether the first one hangs in a read, and starts another one if so. A tick that is
late is skipped and counted; it is not made up for. Not here: joules (energy.py), the points of each
second and their history (telemetry.py), limits (pressure_guard.py).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.monitor.energy import Trace
from edge_agent.monitor.power_history import PowerHistory, PowerSample
from edge_agent.monitor.sensor_watch import SensorWatch, WatchedSensor
from edge_agent.monitor.sensors import power
from edge_agent.monitor.sensors.kernel_file import GivenUp
from edge_agent.monitor.sensors.readings import Looked, Power
from edge_agent.monitor.snapshot import Pids, PowerState, Pulse, SlowSensors, Snapshot
from edge_agent.records import PowerChoice

__all__ = ["BoardSampler", "PowerSample", "Snapshot", "TickSchedule"]

SECOND_S = 1.0
MIN_GAP_S = 0.3
GAP_PERIODS = 3.0
MIN_APART_S = 0.01
"""Least seconds between samples that somebody waits for (`covering`)."""
REFRESH_S = {"jtop": 1.0}
"""Sources that update their value only so often. An equal reading within that time is the old
value, not a new sample."""
_CLOSE_S = 0.4
_NOTABLE_TICKS = 10
_NEVER = float("-inf")

_LOG = logging.getLogger(__name__)


class TickSchedule:
    """Due times at a fixed period. Due times that pass unused are skipped and counted."""

    def __init__(self, period_s: float, now_s: float) -> None:
        self.period_s = period_s
        self.due_s = now_s
        self.taken = 0
        self.missed = 0

    def take(self, now_s: float) -> bool:
        """Whether a tick is due now. If so, the next one is a whole number of periods later and
        after `now_s`."""
        if now_s < self.due_s:
            return False
        late = int((now_s - self.due_s) / self.period_s)
        if late >= _NOTABLE_TICKS:
            _LOG.info("no samples for %.1f s: %d ticks skipped", now_s - self.due_s, late)
        self.taken += 1
        self.missed += late
        self.due_s += (late + 1) * self.period_s
        return True

    def restart(self, period_s: float, now_s: float) -> None:
        """Set another period; its first tick is at `now_s`."""
        self.period_s, self.due_s = period_s, now_s


@dataclass(frozen=True)
class _Waiter:
    """A coroutine of an event loop that waits for a sample of `at_s` or later."""

    at_s: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]

    def wake(self) -> None:
        """End the wait; called in the sampler's thread."""
        try:
            self.loop.call_soon_threadsafe(self._resolve)
        except RuntimeError:
            _LOG.debug("the event loop that waited for a sample has ended")

    def _resolve(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class BoardSampler:
    """Call `start` and `close`; every other method may be called from any thread.

    `pids` gives the processes whose memory is read, by name. `idle_hz` and `busy_hz` are ticks a
    second.

        sampler = BoardSampler(Path("/"))
        sampler.subscribe(lambda snapshot: print(snapshot.total_w))
        sampler.start()
    """

    def __init__(
        self,
        root: Path,
        *,
        source: PowerChoice = "auto",
        idle_hz: float = 10.0,
        busy_hz: float = 20.0,
        pids: Pids = dict,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._hz = {False: idle_hz, True: busy_hz}
        self._watch = SensorWatch(root, monotonic)
        self._slow = SlowSensors(self._watch, pids)
        self._power = WatchedSensor("power", lambda at: power.find(at, source), self._no_power)
        self._last_power = Power("none", None, reasons={"total": "nothing was read yet"})
        self._sample: PowerSample | None = None
        """The sample of the latest reading; None when that reading gave no watts."""
        refresh_s = REFRESH_S.get(source, 0.0)
        self._history = PowerHistory(
            max(idle_hz, busy_hz),
            max(MIN_GAP_S, GAP_PERIODS / busy_hz, GAP_PERIODS * refresh_s),
            max(MIN_GAP_S, GAP_PERIODS / idle_hz, GAP_PERIODS * refresh_s),
        )
        self._ticks = TickSchedule(1.0 / idle_hz, monotonic())
        self._seconds = TickSchedule(SECOND_S, monotonic())
        self._lock = threading.Lock()
        """Guards the two schedules, `_is_busy`, `_tried_at_s` and `_waiters`."""
        self._is_busy = False
        self._tried_at_s = _NEVER
        self._waiters: list[_Waiter] = []
        self._snapshot: Snapshot | None = None
        self._subscribers: list[Callable[[Snapshot], None]] = []
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._watchdog = threading.Thread(
            target=self._guard_reads, name="sampler-watch", daemon=True
        )

    # ---- for everybody ----

    def start(self) -> None:
        """Begin to sample. Call once."""
        now = self._monotonic()
        self._ticks.restart(self._ticks.period_s, now)
        self._seconds.restart(SECOND_S, now)
        self._start_thread()
        self._watchdog.start()

    def close(self) -> None:
        """Stop within a second. A thread that hangs in a read is left behind."""
        self._closing.set()
        self._wake.set()
        for thread in (self._thread, self._watchdog):
            if thread is not None and thread.is_alive():
                thread.join(_CLOSE_S)
        self._wake_waiters(float("inf"))

    def set_busy(self, is_busy: bool) -> None:
        """Sample at the busy or the idle rate. The first sample at the busy rate is taken now."""
        with self._lock:
            if is_busy == self._is_busy:
                return
            self._is_busy = is_busy
            period_s = 1.0 / self._hz[is_busy]
            now = self._monotonic()
            first = max(now, self._tried_at_s + MIN_APART_S) if is_busy else now + period_s
            self._ticks.restart(period_s, first)
        self._wake.set()

    def snapshot(self) -> Snapshot | None:
        """The latest snapshot, at most about a second old; None before the first."""
        return self._snapshot

    def subscribe(self, callback: Callable[[Snapshot], None]) -> None:
        """Call `callback` with every snapshot in the sampler's thread; exceptions are logged."""
        self._subscribers.append(callback)

    async def covering(self, at_s: float, timeout_s: float = 0.1) -> None:
        """Wait until power has been read at `at_s` or later. The sampler reads it at once.

        Returns after `timeout_s` in any case, and immediately where no power can be read.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._tried_at_s >= at_s or not self._can_cover():
                return
            waiter = _Waiter(at_s, loop, loop.create_future())
            self._waiters.append(waiter)
        self._wake.set()
        try:
            await asyncio.wait({waiter.future}, timeout=timeout_s)
        finally:
            with self._lock:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    def trace(self, start_s: float, end_s: float) -> Trace:
        """A copy of the power samples of a window, and of one sample before and after it. The last
        half hour is kept."""
        reading = self._last_power
        trace = self._history.trace(start_s, end_s, reading.source, reading.total_rail)
        return replace(trace, reason=self._total()[1])

    def idle_w(self) -> tuple[float | None, str]:
        """Median watts of the last 60 s without work, or None and the reason."""
        return self._history.idle_w(self._monotonic())

    def looked(self) -> list[Looked]:
        """Every place where a sensor was looked for so far."""
        found = self._power.sensor.looked if self._power.sensor else ()
        return [*found, *self._slow.looked()]

    # ---- the threads ----

    def _start_thread(self) -> None:
        turn = self._watch.turn
        self._thread = threading.Thread(target=self._run, args=(turn,), name="sampler", daemon=True)
        self._thread.start()

    def _guard_reads(self) -> None:
        """The watchdog's loop: when the sampling thread hangs in a read, start another one, which
        leaves that sensor out."""
        turn, delay_s = self._watch.turn, 0.0
        while not self._closing.wait(delay_s):
            delay_s = self._watch.overdue()
            if self._watch.turn != turn:
                turn = self._watch.turn
                _LOG.warning("%s", "; ".join(self._watch.blocked.values()))
                self._start_thread()

    def _run(self, turn: int) -> None:
        try:
            while not self._closing.is_set():
                self._work(turn)
                self._wake.wait(max(0.0, self._next_s() - self._monotonic()))
                self._wake.clear()
        except GivenUp:
            return

    def _work(self, turn: int) -> None:
        """Do what is due now: read power, and once a second everything else."""
        with self._lock:
            now = self._monotonic()
            is_tick = self._ticks.take(now)
            is_asked = now >= self._asked_s()
            is_second = is_tick and self._seconds.take(now)
        if is_tick or is_asked:
            self._read_power(turn)
        if is_second:
            self._publish(self._look_around(turn))

    def _next_s(self) -> float:
        with self._lock:
            return min(self._ticks.due_s, self._asked_s())

    def _asked_s(self) -> float:
        """When the earliest waiter's sample may be taken. Call it with the lock held."""
        asked = min((waiter.at_s for waiter in self._waiters), default=float("inf"))
        return max(asked, self._tried_at_s + MIN_APART_S)

    def _can_cover(self) -> bool:
        thread = self._thread
        is_running = thread is not None and thread.is_alive() and not self._closing.is_set()
        return is_running and self._last_power.total_rail is not None

    # ---- power, in the sampler's thread ----

    def _read_power(self, turn: int) -> None:
        began = self._monotonic()
        reading = self._watch.read(self._power, turn)
        at_s = (began + self._monotonic()) / 2.0
        is_repeated = (
            reading.watts == self._last_power.watts
            and self._sample is not None
            and at_s - self._sample.at_s < REFRESH_S.get(reading.source, 0.0)
        )
        self._last_power = reading
        if not is_repeated:
            self._sample = self._record(reading, at_s)
        self._tried_at_s = began
        self._wake_waiters(began)

    def _record(self, reading: Power, at_s: float) -> PowerSample | None:
        rail, is_idle = reading.total_rail, not self._is_busy
        if rail is None:
            return None
        watts, joules = reading.watts.get(rail), reading.joules.get(rail)
        if joules is not None:
            return self._history.add_joules(at_s, joules, is_idle=is_idle)
        return None if watts is None else self._history.add_watts(at_s, watts, is_idle=is_idle)

    def _no_power(self, reason: str) -> Power:
        """A reading of the last known rails without values."""
        last = self._last_power
        watts: dict[str, float | None] = dict.fromkeys(last.watts)
        joules: dict[str, float | None] = dict.fromkeys(last.joules)
        return Power(last.source, last.total_rail, watts, joules, {"total": reason})

    def _wake_waiters(self, tried_at_s: float) -> None:
        with self._lock:
            served = [waiter for waiter in self._waiters if waiter.at_s <= tried_at_s]
            self._waiters = [waiter for waiter in self._waiters if waiter.at_s > tried_at_s]
        for waiter in served:
            waiter.wake()

    # ---- snapshots, in the sampler's thread ----

    def _total(self) -> tuple[float | None, str]:
        sample, reading = self._sample, self._last_power
        if sample is not None:
            return sample.watts, ""
        rail = reading.total_rail
        keys = ("total", f"watts.{rail}", f"joules.{rail}")
        known = (reading.reasons[key] for key in keys if key in reading.reasons)
        return None, next(known, "a counter gives watts from its second reading on")

    def _look_around(self, turn: int) -> Snapshot:
        state = PowerState(self._last_power, *self._total(), *self.idle_w())
        return self._slow.read(turn, self._monotonic(), state, self._pulse)

    def _pulse(self) -> Pulse:
        ticks = self._ticks
        return Pulse(ticks.taken, ticks.missed, 1.0 / ticks.period_s, self._watch.blocked)

    def _publish(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        for callback in self._subscribers:
            try:
                callback(snapshot)
            except Exception:
                _LOG.exception("what follows the board failed once; sampling goes on")
