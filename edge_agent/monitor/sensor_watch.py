"""Sensors that may block: each read is timed, and one that does not return is given up.

Flows in: the sensors' `find` functions. Flows out: readings, or a stand-in that says why there is
none. A thread that hangs in a read cannot be ended, so it is left behind and its `turn` is over;
its sensor is left out until that thread has come back. Not here: threads and their rate
(board_sampler.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from edge_agent.monitor.sensors.readings import Looked

READ_LIMIT_S = 0.5
FIND_LIMIT_S = 5.0
"""Looking for a sensor may list directories and import a library, once."""
RETRY_AFTER_S = 60.0

ReadingT = TypeVar("ReadingT")
ReadT = TypeVar("ReadT", covariant=True)


class Sensor(Protocol[ReadT]):
    """What `find` of every file in sensors/ returns."""

    @property
    def looked(self) -> Sequence[Looked]: ...

    def read(self) -> ReadT: ...


class GivenUp(Exception):
    """The calling thread was left behind while it read; it must end and touch nothing."""


class WatchedSensor(Generic[ReadingT]):
    """One subsystem: how to find its sensor, and what to say when it cannot be read."""

    def __init__(
        self,
        name: str,
        find: Callable[[Path], Sensor[ReadingT]],
        without: Callable[[str], ReadingT],
    ) -> None:
        self.name = name
        self.find = find
        self.without = without
        """Makes a reading of nothing but a reason."""
        self.sensor: Sensor[ReadingT] | None = None
        self.reason = ""
        """Why the latest read gave nothing; empty when it did."""
        self.retry_at_s: float | None = None
        """Set while it is blocked."""
        self.is_stuck = False
        """A thread still hangs in it."""


class SensorWatch:
    """Reads sensors for one thread at a time, whose turn it is, and tells when that one hangs."""

    def __init__(self, root: Path, monotonic: Callable[[], float]) -> None:
        self._root = root
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._turn = 0
        self._reading: tuple[WatchedSensor[Any], float, float] | None = None
        """What is being read, since when, and until when it may take."""
        self._blocked: dict[str, str] = {}

    @property
    def turn(self) -> int:
        """Number that a thread passes to `read`; it changes when that thread is given up."""
        return self._turn

    @property
    def blocked(self) -> dict[str, str]:
        """Reason by subsystem that is left out now."""
        with self._lock:
            return dict(self._blocked)

    def read(self, watched: WatchedSensor[ReadingT], turn: int) -> ReadingT:
        """The reading, or its stand-in. Raises GivenUp when this thread's turn is over."""
        if not self._is_ready(watched):
            return watched.without(watched.reason)
        reason = ""
        try:
            reading = self._read(watched, turn)
        except GivenUp:
            raise
        except Exception as error:  # a sensor's bug is one missing value, never the loop's end
            reason = f"{watched.name} could not be read: {type(error).__name__}: {error}"
            reading = watched.without(reason)
        self._now_reading(watched, turn, None)
        watched.reason = reason
        return reading

    def overdue(self) -> float:
        """Give up a read that takes too long (`turn` is then another). Seconds until worth asking.

        Called about twice a second; a read that began since then is asked for again when its time
        is over, so that it is given up then and not up to half a second later.
        """
        with self._lock:
            if self._reading is None:
                return READ_LIMIT_S
            watched, since_s, until_s = self._reading
            now = self._monotonic()
            if now < until_s:
                return min(READ_LIMIT_S, until_s - now)
            watched.reason = f"{watched.name}: a read did not return within {until_s - since_s:g} s"
            watched.retry_at_s = now + RETRY_AFTER_S
            watched.is_stuck = True
            self._blocked[watched.name] = watched.reason
            self._reading = None
            self._turn += 1
            return READ_LIMIT_S

    def _read(self, watched: WatchedSensor[ReadingT], turn: int) -> ReadingT:
        if watched.sensor is None:
            self._now_reading(watched, turn, FIND_LIMIT_S)
            watched.sensor = watched.find(self._root)
        self._now_reading(watched, turn, READ_LIMIT_S)
        return watched.sensor.read()

    def _is_ready(self, watched: WatchedSensor[Any]) -> bool:
        """Whether it may be read; once a minute after it blocked, unless a thread is still in."""
        if watched.retry_at_s is None:
            return True
        now = self._monotonic()
        if now < watched.retry_at_s:
            return False
        with self._lock:
            if watched.is_stuck:
                watched.retry_at_s = now + RETRY_AFTER_S
                return False
            watched.retry_at_s = None
            self._blocked.pop(watched.name, None)
        return True

    def _now_reading(self, watched: WatchedSensor[Any], turn: int, limit_s: float | None) -> None:
        """Note what this thread is about to do; None: it has come back."""
        with self._lock:
            if turn != self._turn:
                watched.is_stuck = False
                raise GivenUp
            now = self._monotonic()
            self._reading = None if limit_s is None else (watched, now, now + limit_s)
