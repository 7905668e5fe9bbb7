"""The latest events in memory, so that a status can show them when the disk does not answer.

Why it exists: what went wrong (a crash, a rollback, the guard, a rescued database) must be readable
at once, also when the failing disk is what went wrong. Flows in: EventRows as they happen, and
those of the database when it is opened. Flows out: the newest ones. Not here: writing them
(store.py).
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Collection

from edge_agent.store.rows import EventRow

KEEP_RECENT = 200
SHOWN = 5
"""As many as `edge-agent status` and `doctor` show."""
ROUTINE = frozenset({"model_loaded", "model_unloaded"})
"""Kinds of events that are normal work and would hide the others."""


class RecentEvents:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: deque[EventRow] = deque(maxlen=KEEP_RECENT)

    def load(self, connection: sqlite3.Connection) -> None:
        """Take over the newest stored rows, unless there are rows already."""
        query = "SELECT at, kind, detail FROM events ORDER BY id DESC LIMIT ?"
        stored = [EventRow(**dict(row)) for row in connection.execute(query, (KEEP_RECENT,))]
        with self._lock:
            if not self._rows:
                self._rows.extend(reversed(stored))

    def add(self, row: EventRow) -> None:
        with self._lock:
            self._rows.append(row)

    def newest(self, n: int, leave_out: Collection[str] = ()) -> list[EventRow]:
        """At most n rows whose kind is not in `leave_out`, newest first."""
        with self._lock:
            rows = [row for row in reversed(self._rows) if row.kind not in leave_out]
        return rows[:n]
