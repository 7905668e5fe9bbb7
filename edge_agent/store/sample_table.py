"""The table of samples: rows of ten seconds for a day, then rows of five minutes, then deletion.

Flows in: a connection inside store.py's writer thread, rows and the time. Flows out: rows. SQLite
merges them to the step that is asked for, so that a month of samples needs no memory in the front.
`at` (whole Unix seconds) is the primary key, so no other index is written, and rows that are
neighbours in time share a page. Merging and deleting go in small steps, each inside the transaction
that adds a minute of rows: an SD card erases whole blocks, so each extra commit wears it. Not here:
threads, files (store.py).
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, fields

from edge_agent.store.rows import MERGED_BY, SampleRow, alarm_list

FINE_S = 24 * 3600
"""Seconds that rows stay as they were written; older rows are merged."""
FINE_ROW_S = 10.0
"""Seconds of a row as monitor/telemetry.py writes it."""
COARSE_S = 300
"""Seconds of a merged row."""
MERGES_A_STEP = 4
"""Merged rows made in one transaction. The backlog of a day, 288 rows, takes 72 of them."""
DELETES_A_STEP = 120
DAY_S = 86_400.0
MAX_ROWS = 2_000
"""Rows that `between` returns at most."""

COLUMNS = tuple(field.name for field in fields(SampleRow))


def add(connection: sqlite3.Connection, rows: Sequence[SampleRow]) -> None:
    """Insert the rows. After a clock was set back, they replace the rows of the same seconds."""
    marks = ", ".join("?" * len(COLUMNS))
    insert = f"INSERT OR REPLACE INTO samples ({', '.join(COLUMNS)}) VALUES ({marks})"
    for row in rows:
        connection.execute(insert, list({**asdict(row), "at": round(row.at)}.values()))


def thin(connection: sqlite3.Connection, now: float, keep_days: float, merged_to: int) -> int:
    """One step of retention: delete rows older than `keep_days`, merge rows older than FINE_S.

    `merged_to` is the Unix time up to which nothing is left to merge: 0 at first, then the result
    of the call before. It saves reading the whole table once a minute.
    """
    delete = "DELETE FROM samples WHERE at IN (SELECT at FROM samples WHERE at <= ? LIMIT ?)"
    connection.execute(delete, (now - keep_days * DAY_S, DELETES_A_STEP))
    # A merged row ends at a multiple of COARSE_S; it is made when all its rows are old enough.
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
    """Seconds of a row so that `seconds` give about `limit` rows: a multiple of ten, or 1 for rows
    that need not be merged."""
    most_rows = seconds / FINE_ROW_S
    return 1.0 if most_rows <= limit else FINE_ROW_S * math.ceil(most_rows / limit)


def between(
    connection: sqlite3.Connection, since: float, until: float, step_s: float
) -> list[SampleRow]:
    """Rows with since < at <= until, oldest first, at most the newest MAX_ROWS.

    The rows of one step, which ends at a multiple of `step_s`, are merged as rows.merged does it.
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
    # sum() leaves out NULL products, so the weights of NULL values must be left out as well.
    "mean": "sum({0} * span_s) / sum(CASE WHEN {0} IS NULL THEN NULL ELSE span_s END)",
}


def _row(values: dict[str, object]) -> SampleRow:
    throttle = alarm_list([str(values["throttle"])])
    return SampleRow(**{**values, "throttle": throttle})  # type: ignore[arg-type]
