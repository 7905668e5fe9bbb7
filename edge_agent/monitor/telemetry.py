"""The last half hour of the board in memory, one point a second, and its history in the store.

Flows in: the sampler's snapshots, in the sampler's thread, and a counter of generated tokens. Flows
out: points for /telemetry and for the Measured of an answer (monitor.py), and rows of ten seconds
for the store. Six rows are written together once a minute, because each commit wears an SD card.
Not here: reading sensors (board_sampler.py), power samples (power_history.py), joules (energy.py),
how long rows are kept (store/sample_table.py).
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
"""The board over one second: a row whose `span_s` is 1."""

KEEP_S = 1800
"""Points kept, as long as power_history.py keeps power samples: an answer that takes longer is
measured over its last half hour."""
KEEP_POINTS = 600
"""Points that `points` gives at most."""
POINTS_A_ROW = 10
ROWS_A_FLUSH = 6
GAP_S = 3.0
"""Seconds without a snapshot after which a new row begins, so that no row spans a gap."""

_LOG = logging.getLogger(__name__)


class Telemetry:
    """Thread-safe. `tokens` gives the number of tokens generated since the start of the daemon,
    `unix` the Unix time in seconds.

        telemetry = Telemetry(store, sampler, lambda: tokens.total)
        telemetry.points(60.0)[-1].celsius
    """

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
        self._points: deque[tuple[float, Point]] = deque(maxlen=KEEP_S)
        """Monotonic seconds of the snapshot, and its point."""
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
            newest = list(self._points)[-KEEP_POINTS:]
        return [point for _, point in newest if point.at > since]

    def between(self, start_s: float, end_s: float) -> list[Point]:
        """The points of a window of monotonic seconds, oldest first.

        A window that holds none (a request shorter than a second) gets the latest point before its
        end, if there is one.
        """
        with self._lock:
            earlier = [(at_s, point) for at_s, point in self._points if at_s <= end_s]
        inside = [point for at_s, point in earlier if at_s >= start_s]
        return inside or [point for _, point in earlier[-1:]]

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
            self._points.append((snapshot.at_s, point))
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
