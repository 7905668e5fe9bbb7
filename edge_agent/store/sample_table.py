"""The table of samples: ten-second rows for a day, five-minute rows after it, then nothing.

Flows in: a connection inside store.py's writer thread, rows and the time. Flows out: rows, merged
to any coarser step by SQLite itself, so that a month costs the front no memory. `at` (whole Unix
seconds) is the primary key: there is no index to write, and neighbours in time share a page. Work
is done in small steps, each inside the transaction that adds a minute of rows anyway: an SD card
erases far more than it is told to write, so commits are what wears it. Not here: threads, files.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, fields

from edge_agent.store.rows import MERGED_BY, SampleRow, alarm_list

FINE_S = 24 * 3600
"""Age up to which rows stay as they were written."""
FINE_ROW_S = 10.0
"""Length of a row as monitor/telemetry.py writes it."""
COARSE_S = 300
MERGES_A_STEP = 4
"""Five-minute stretches merged a transaction: the backlog of a day takes 72 minutes."""
DELETES_A_STEP = 120
DAY_S = 86_400.0
MAX_ROWS = 2_000
"""Rows that leave in one answer."""

COLUMNS = tuple(field.name for field in fields(SampleRow))


def add(connection: sqlite3.Connection, rows: Sequence[SampleRow]) -> None:
    """A clock that was set back overwrites what it had written for the same seconds."""
    marks = ", ".join("?" * len(COLUMNS))
    insert = f"INSERT OR REPLACE INTO samples ({', '.join(COLUMNS)}) VALUES ({marks})"
    for row in rows:
        connection.execute(insert, list({**asdict(row), "at": round(row.at)}.values()))


def thin(connection: sqlite3.Connection, now: float, keep_days: float, merged_to: int) -> int:
    """One small step of retention: delete what is too old, merge what is older than FINE_S.

    `merged_to`: Unix seconds up to which nothing is left to merge, as the last call returned it
    (0 at first); it saves reading the whole table once a minute.
    """
    delete = "DELETE FROM samples WHERE at IN (SELECT at FROM samples WHERE at <= ? LIMIT ?)"
    connection.execute(delete, (now - keep_days * DAY_S, DELETES_A_STEP))
    # A stretch ends at a multiple of COARSE_S and is merged once all of it is old enough.
    old_enough = int(now - FINE_S) // COARSE_S * COARSE_S
    since = min(merged_to, old_enough)
    several = (
        "SELECT (at - 1) / ? AS stretch FROM samples WHERE at > ? AND at <= ?"
        " GROUP BY stretch HAVING count(*) > 1 ORDER BY stretch LIMIT ?"
    )
    due = connection.execute(several, (COARSE_S, since, old_enough, MERGES_A_STEP)).fetchall()
    for (stretch,) in due:
        _merge(connection, stretch * COARSE_S, (stretch + 1) * COARSE_S)
    return (due[-1][0] + 1) * COARSE_S if len(due) == MERGES_A_STEP else old_enough


def _merge(connection: sqlite3.Connection, start: int, end: int) -> None:
    rows = between(connection, start, end, COARSE_S)
    connection.execute("DELETE FROM samples WHERE at > ? AND at <= ?", (start, end))
    add(connection, rows)


def step_s(seconds: float, limit: int) -> float:
    """How coarse a stretch must be merged to have about `limit` rows: 1 s (not at all) or tens."""
    most_rows = seconds / FINE_ROW_S
    return 1.0 if most_rows <= limit else FINE_ROW_S * math.ceil(most_rows / limit)


def between(
    connection: sqlite3.Connection, since: float, until: float, step_s: float
) -> list[SampleRow]:
    """Rows with since < at <= until, oldest first, those of one step merged (rows.merged's rules).

    Steps end at multiples of `step_s`. At most MAX_ROWS, the newest.
    """
    merged = ", ".join(f"{_SQL_OF[how].format(name)} AS {name}" for name, how in MERGED_BY.items())
    query = (
        f"SELECT max(at) AS at, sum(span_s) AS span_s, {merged},"
        " group_concat(throttle) AS throttle FROM samples WHERE at > ? AND at <= ?"
        " GROUP BY CAST((at - 1) / ? AS INTEGER) ORDER BY at DESC LIMIT ?"
    )
    found = connection.execute(query, (since, until, float(step_s), MAX_ROWS)).fetchall()
    return [_row(dict(row)) for row in reversed(found)]


_SQL_OF = {
    "max": "max({0})",
    "min": "min({0})",
    # sum() leaves NULL products out, so the weights of NULLs must be left out too.
    "mean": "sum({0} * span_s) / sum(CASE WHEN {0} IS NULL THEN NULL ELSE span_s END)",
}


def _row(values: dict[str, object]) -> SampleRow:
    throttle = alarm_list([str(values["throttle"])])
    return SampleRow(**{**values, "throttle": throttle})  # type: ignore[arg-type]
