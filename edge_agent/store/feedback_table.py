"""The table of feedback: what users said about answers, and which adapter has learned it.

Flows in: a connection inside store.py's writer thread, rows. Flows out: rows, newest first. A quota
keeps one user from flooding what a model learns: it counts what waits to be learned, by user and
model, in the transaction that adds to it. Not here: what a row may say (adapt/feedback.py),
threads, files.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from edge_agent.store.rows import FeedbackRow

MAX_ROWS = 5_000
"""Beyond it the oldest rows that an adapter has learned are dropped; waiting rows never are."""
MAX_ID = 2**63 - 1

COLUMNS = ", ".join(field.name for field in fields(FeedbackRow))
CORRECTED = "correction IS NOT NULL"
APPROVED = "correction IS NULL AND rating > 0"
TAUGHT = f"({CORRECTED} OR {APPROVED})"
"""What is learned: corrections, and good answers as they were. A bad one alone teaches nothing."""
ASKED = "id < ? AND coalesce(model = ?, 1) AND coalesce(user = ?, 1)"
"""The parameters of `_asked`; coalesce lets NULL mean any."""


@dataclass(frozen=True)
class FeedbackQuery:
    """Which rows. None: of every model, of every user, from the newest on."""

    model: str | None = None
    user: str | None = None
    before: int | None = None
    """Only ids below it."""
    limit: int = 20


@dataclass(frozen=True)
class Waiting:
    """Rows that no adapter has learned."""

    corrections: int
    approved: int
    bad: int
    """Kept, and not learned."""


def add(connection: sqlite3.Connection, rows: Sequence[FeedbackRow], quota: int) -> list[int]:
    """The ids of the rows; [] with nothing stored when a user would have more than `quota` waiting
    for one model.

    A user's newer word on the same question replaces the older one, unless that is learned.
    """
    owners = {(row.user, row.model) for row in rows}
    before = {owner: _waiting_of(connection, *owner) for owner in owners}
    connection.execute("SAVEPOINT feedback")
    ids = [_put(connection, row) for row in rows]
    if any(_waiting_of(connection, *one) > max(quota, before[one]) for one in owners):
        connection.execute("ROLLBACK TO feedback")
        ids = []
    connection.execute("RELEASE feedback")
    _prune(connection)
    return ids


def find(connection: sqlite3.Connection, wanted: FeedbackQuery) -> list[FeedbackRow]:
    """Newest first."""
    query = f"SELECT {COLUMNS} FROM feedback WHERE {ASKED} ORDER BY id DESC LIMIT ?"
    found = connection.execute(query, [*_asked(wanted), wanted.limit])
    return [FeedbackRow(**dict(row)) for row in found]


def taught_ids(connection: sqlite3.Connection, wanted: FeedbackQuery) -> list[int]:
    """What is learned of all wanted rows, oldest first: each user's last word on each question, if
    it teaches anything."""
    last = f"SELECT max(id) FROM feedback WHERE {ASKED} GROUP BY user, model, messages"
    query = f"SELECT id FROM feedback WHERE id IN ({last}) AND {TAUGHT} ORDER BY id"
    return [number for (number,) in connection.execute(query, _asked(wanted))]


def rows_of(connection: sqlite3.Connection, ids: Sequence[int]) -> list[FeedbackRow]:
    """Those that are still there, oldest first."""
    marks = ", ".join("?" * len(ids))
    query = f"SELECT {COLUMNS} FROM feedback WHERE id IN ({marks}) ORDER BY id"
    return [FeedbackRow(**dict(row)) for row in connection.execute(query, list(ids))]


def remove(connection: sqlite3.Connection, number: int, user: str | None) -> bool:
    """False when there is no such row; with `user`, when it is not that user's."""
    delete = "DELETE FROM feedback WHERE id = ? AND coalesce(user = ?, 1)"
    return connection.execute(delete, (number, user)).rowcount > 0


def mark_used(connection: sqlite3.Connection, ids: Sequence[int], adapter: str) -> None:
    mark = "UPDATE feedback SET used_in = ? WHERE id = ?"
    connection.executemany(mark, [(adapter, number) for number in ids])


def waiting(connection: sqlite3.Connection, model: str | None) -> Waiting:
    """Of one model, or of all."""
    cases = (CORRECTED, APPROVED, f"NOT {TAUGHT}")
    counts = ", ".join(f"count(CASE WHEN {case} THEN 1 END)" for case in cases)
    query = f"SELECT {counts} FROM feedback WHERE used_in IS NULL AND coalesce(model = ?, 1)"
    return Waiting(*connection.execute(query, (model,)).fetchone())


def _asked(wanted: FeedbackQuery) -> list[int | str | None]:
    return [MAX_ID if wanted.before is None else wanted.before, wanted.model, wanted.user]


def _put(connection: sqlite3.Connection, row: FeedbackRow) -> int:
    replaced = "used_in IS NULL AND user = ? AND model = ? AND messages = ?"
    connection.execute(
        f"DELETE FROM feedback WHERE {replaced}", (row.user, row.model, row.messages)
    )
    values = asdict(row)
    marks = ", ".join("?" * len(values))
    insert = f"INSERT INTO feedback ({COLUMNS}) VALUES ({marks})"
    return int(connection.execute(insert, list(values.values())).lastrowid or 0)


def _waiting_of(connection: sqlite3.Connection, user: str, model: str) -> int:
    query = "SELECT count(*) FROM feedback WHERE used_in IS NULL AND user = ? AND model = ?"
    return int(connection.execute(query, (user, model)).fetchone()[0])


def _prune(connection: sqlite3.Connection) -> None:
    (count,) = connection.execute("SELECT count(*) FROM feedback").fetchone()
    oldest = "SELECT id FROM feedback WHERE used_in IS NOT NULL ORDER BY id LIMIT ?"
    delete = f"DELETE FROM feedback WHERE id IN ({oldest})"
    connection.execute(delete, (max(0, count - MAX_ROWS),))
