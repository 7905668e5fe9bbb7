"""Sensors that may block: each read has a time limit, and a read that exceeds it is given up.

Why it exists: a driver or a service may block a read for ever, and Python cannot end the thread
that hangs in it. Such a thread is abandoned: its turn number is no longer the current one. What it
hangs in is left out until it has returned: one file (sensors/kernel_file.py), so that the other
files of its subsystem are read on; a whole subsystem only where no file is to blame (jtop). Flows
in: the sensors' `find` functions. Flows out: readings, or stand-ins that say why there is no
reading. Not here: the threads and their rate (board_sampler.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from edge_agent.monitor.sensors import kernel_file
from edge_agent.monitor.sensors.kernel_file import READ_LIMIT_S, RETRY_AFTER_S, GivenUp
from edge_agent.monitor.sensors.readings import Looked

SENSOR_LIMIT_S = 5.0
"""For a whole subsystem; each file of it has READ_LIMIT_S. Looking for a sensor may list
directories and import a library, once."""

ReadingT = TypeVar("ReadingT")
ReadT = TypeVar("ReadT", covariant=True)


class Sensor(Protocol[ReadT]):
    """The interface of what `find` of each file in sensors/ returns."""

    @property
    def looked(self) -> Sequence[Looked]: ...

    def read(self) -> ReadT: ...


class WatchedSensor(Generic[ReadingT]):
    """One subsystem: how its sensor is found, and what stands in for a reading that failed."""

    def __init__(
        self,
        name: str,
        find: Callable[[Path], Sensor[ReadingT]],
        without: Callable[[str], ReadingT],
    ) -> None:
        self.name = name
        self.find = find
        self.without = without
        """Makes a reading without values from a reason."""
        self.sensor: Sensor[ReadingT] | None = None
        self.reason = ""
        """Why the latest read failed; empty when it succeeded."""
        self.retry_at_s: float | None = None
        """Monotonic seconds of the next try while the sensor is left out, else None."""
        self.is_stuck = False
        """Whether an abandoned thread still hangs in this sensor."""


class SensorWatch:
    """Reads sensors for the one thread that holds the current turn, and detects that it hangs."""

    def __init__(self, root: Path, monotonic: Callable[[], float]) -> None:
        self._root = root
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._turn = 0
        self._reading: tuple[WatchedSensor[Any], float, float] | None = None
        """The sensor that is being read, when the read began, and when it must have ended."""
        self._blocked: dict[str, str] = {}
        self._thread = 0
        """The identifier of the thread that reads."""

    @property
    def turn(self) -> int:
        """The number that a thread passes to `read`; it changes when that thread is given up."""
        return self._turn

    @property
    def blocked(self) -> dict[str, str]:
        """The files and subsystems that are left out now, each with its reason."""
        with self._lock:
            return {**self._blocked, **kernel_file.left_out(self._root)}

    def read(self, watched: WatchedSensor[ReadingT], turn: int) -> ReadingT:
        """The reading, or its stand-in. Raises GivenUp when `turn` is no longer the current one."""
        if not self._is_ready(watched):
            return watched.without(watched.reason)
        reason = ""
        try:
            reading = self._read(watched, turn)
        except GivenUp:
            raise
        except Exception as error:  # a bug in one sensor must not end the sampling of the others
            reason = f"{watched.name} could not be read: {type(error).__name__}: {error}"
            reading = watched.without(reason)
        self._now_reading(watched, turn, None)
        watched.reason = reason
        return reading

    def overdue(self) -> float:
        """Give up a read that has exceeded its limit; `turn` is another number afterwards.

        Returns the seconds after which to call again: the end of the limit of the read under way,
        at most READ_LIMIT_S.
        """
        with self._lock:
            if self._reading is None:
                return READ_LIMIT_S
            watched, since_s, until_s = self._reading
            left_s = kernel_file.give_up(self._thread)
            if left_s is None:
                self._reading = None
                self._turn += 1
                return READ_LIMIT_S
            now = self._monotonic()
            if now < until_s:
                return min(left_s, until_s - now)
            watched.reason = f"{watched.name}: a read did not return within {until_s - since_s:g} s"
            watched.retry_at_s = now + RETRY_AFTER_S
            watched.is_stuck = True
            self._blocked[watched.name] = watched.reason
            self._reading = None
            self._turn += 1
            return READ_LIMIT_S

    def _read(self, watched: WatchedSensor[ReadingT], turn: int) -> ReadingT:
        if watched.sensor is None:
            self._now_reading(watched, turn, SENSOR_LIMIT_S)
            watched.sensor = watched.find(self._root)
        self._now_reading(watched, turn, SENSOR_LIMIT_S)
        return watched.sensor.read()

    def _is_ready(self, watched: WatchedSensor[Any]) -> bool:
        """Whether the sensor may be read. One that blocked is tried again every RETRY_AFTER_S, but
        not while a thread still hangs in it."""
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
        """Record that this thread begins a read with a limit; `limit_s` None: it has returned.

        Raises GivenUp when the thread was abandoned meanwhile.
        """
        with self._lock:
            if turn != self._turn:
                watched.is_stuck = False
                raise GivenUp
            self._thread = threading.get_ident()
            now = self._monotonic()
            self._reading = None if limit_s is None else (watched, now, now + limit_s)
