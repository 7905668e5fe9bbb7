"""The last ten minutes of the board in memory, one point a second, and its history in the store.

Flows in: the sampler's snapshots, in the sampler's thread, and a counter of generated tokens. Flows
out: points for /telemetry and the answers, and ten-second rows for the store, handed over once a
minute so that an SD card sees one commit. Not here: reading sensors (board_sampler.py), joules
(energy.py), how long rows are kept (store/sample_table.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeAlias

from edge_agent.store.rows import SampleRow, merged

if TYPE_CHECKING:
    from edge_agent.monitor.board_sampler import BoardSampler, Snapshot
    from edge_agent.store.store import Store

Point: TypeAlias = SampleRow
"""What is seen once a second is a row of one second."""

KEEP_POINTS = 600
POINTS_A_ROW = 10
ROWS_A_FLUSH = 6
GAP_S = 3.0
"""A row does not reach over a longer silence of the sampler."""

_LOG = logging.getLogger(__name__)


class Telemetry:
    """Thread-safe. `tokens` counts all tokens generated since the start; `unix` gives seconds."""

    def __init__(
        self,
        store: Store,
        sampler: BoardSampler,
        tokens: Callable[[], int],
        unix: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._sampler = sampler
        self._tokens = tokens
        self._unix = unix
        self._lock = threading.Lock()
        self._points: deque[Point] = deque(maxlen=KEEP_POINTS)
        self._row: list[Point] = []
        """Points of the row that is not full yet."""
        self._rows: list[SampleRow] = []
        """Rows that wait for the next flush."""
        self._last: tuple[float, int] | None = None
        """Monotonic seconds and token count of the latest snapshot."""
        self._is_closed = False
        sampler.subscribe(self._see)

    def points(self, seconds: float) -> list[Point]:
        """The last `seconds`, at most KEEP_POINTS of them, oldest first."""
        since = self._unix() - seconds
        with self._lock:
            return [point for point in self._points if point.at > since]

    def close(self) -> None:
        """Hand everything to the store, the unfinished row too; later snapshots are ignored."""
        with self._lock:
            self._is_closed = True
            self._finish_row()
            rows, self._rows = self._rows, []
        self._write(rows)

    # ---- in the sampler's thread --------------------------------------------------------------

    def _see(self, snapshot: Snapshot) -> None:
        tokens = self._tokens()
        point = self._point(snapshot, tokens)
        with self._lock:
            if self._is_closed:
                return
            if self._last is not None and snapshot.at_s - self._last[0] > GAP_S:
                self._finish_row()
            self._last = (snapshot.at_s, tokens)
            self._points.append(point)
            self._row.append(point)
            if len(self._row) >= POINTS_A_ROW:
                self._finish_row()
            if len(self._rows) < ROWS_A_FLUSH:
                return
            rows, self._rows = self._rows, []
        self._write(rows)

    def _point(self, snapshot: Snapshot, tokens: int) -> Point:
        watts = self._watts(snapshot.at_s)
        return Point(
            at=self._unix(),
            watts=sum(watts) / len(watts) if watts else None,
            peak_w=max(watts, default=None),
            celsius=snapshot.thermal.hottest_celsius,
            mem_available_bytes=snapshot.memory.available_bytes,
            worker_rss_anon_bytes=snapshot.rss_anon_bytes.get("worker"),
            front_rss_anon_bytes=snapshot.rss_anon_bytes.get("front"),
            cpu_load=snapshot.cpu_load,
            gpu_load=snapshot.gpu.load,
            gpu_clock_hz=snapshot.gpu.clock_hz,
            cpu_clock_hz=snapshot.cpu.clock_hz,
            tok_s=self._tok_s(snapshot.at_s, tokens),
            throttle=",".join(snapshot.alarms.active),
        )

    def _watts(self, at_s: float) -> Sequence[float]:
        """The power samples since the last snapshot; of the last second after a silence."""
        since_s = at_s - 1.0
        if self._last is not None and at_s - self._last[0] <= GAP_S:
            since_s = self._last[0]
        trace = self._sampler.trace(since_s, at_s)
        pairs = zip(trace.times_s, trace.watts, strict=True)
        return [watts for time_s, watts in pairs if since_s < time_s <= at_s]

    def _tok_s(self, at_s: float, tokens: int) -> float | None:
        """None for the first snapshot, which has nothing to compare with."""
        if self._last is None or at_s <= self._last[0]:
            return None
        before_s, before = self._last
        return (tokens - before) / (at_s - before_s)

    def _finish_row(self) -> None:
        if self._row:
            self._rows.append(merged(self._row))
            self._row = []

    def _write(self, rows: Sequence[SampleRow]) -> None:
        if rows:
            self._store.add_samples(rows).add_done_callback(_log_failure)


def _log_failure(written: Future[None]) -> None:
    if not written.cancelled() and written.exception():
        _LOG.error("a minute of samples was not recorded: %s", written.exception())
