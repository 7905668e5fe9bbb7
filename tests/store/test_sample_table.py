"""SQLite's merging equals ours, and thinning out is done in small steps that never repeat."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from itertools import groupby

import pytest

from edge_agent.store import database, sample_table
from edge_agent.store.rows import SampleRow, merged

DAY_S = 86_400.0
NOW = 1_000 * DAY_S


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:")
    opened.row_factory = sqlite3.Row
    for script in database.MIGRATIONS:
        opened.executescript(script)
    yield opened
    opened.close()


def noisy(at: float, rng: random.Random) -> SampleRow:
    """Every figure is sometimes unknown."""

    def maybe(value: float) -> float | None:
        return value if rng.random() < 0.7 else None

    whole = rng.randrange(10**9)
    return SampleRow(
        at=at, span_s=rng.choice([1.0, 10.0]), watts=maybe(rng.random()), peak_w=maybe(2.0),
        celsius=maybe(rng.uniform(30, 90)), mem_available_bytes=whole,
        cpu_load=maybe(rng.random()), gpu_clock_hz=maybe(1e9), tok_s=maybe(rng.uniform(0, 50)),
        throttle=rng.choice(["", "a", "b,a"]),
    )  # fmt: skip


def known(rows: list[SampleRow]) -> list[dict[str, object]]:
    return [
        {
            name: value if value is None else pytest.approx(value)
            for name, value in vars(row).items()
        }
        for row in rows
    ]


def test_sqlite_merges_as_we_do(connection: sqlite3.Connection) -> None:
    rng = random.Random(3)
    rows = [noisy(float(at), rng) for at in range(1, 3000, 7)]
    sample_table.add(connection, rows)
    groups = groupby(rows, key=lambda row: (row.at - 1) // 300)
    expected = [merged(list(group)) for _, group in groups]
    found = sample_table.between(connection, 0.0, 3000.0, 300.0)
    assert [vars(row) for row in found] == known(expected)
    one_by_one = sample_table.between(connection, 0.0, 3000.0, 1.0)
    assert [vars(row) for row in one_by_one] == known([merged([row]) for row in rows])


def test_an_answer_is_bounded_and_keeps_the_newest(connection: sqlite3.Connection) -> None:
    sample_table.add(connection, [SampleRow(at=float(n)) for n in range(1, 3001)])
    found = sample_table.between(connection, 0.0, 1e9, 1.0)
    assert (len(found), found[0].at, found[-1].at) == (sample_table.MAX_ROWS, 1001.0, 3000.0)


def fill(connection: sqlite3.Connection, start: float, end: float) -> None:
    rows = [SampleRow(at=at, span_s=10.0) for at in range(int(start) + 10, int(end) + 1, 10)]
    sample_table.add(connection, rows)


def ages_days(connection: sqlite3.Connection) -> list[float]:
    return [(NOW - at) / DAY_S for (at,) in connection.execute("SELECT at FROM samples")]


def test_a_step_is_small_whatever_the_backlog(connection: sqlite3.Connection) -> None:
    fill(connection, NOW - 5 * DAY_S, NOW)
    before = len(ages_days(connection))
    sample_table.thin(connection, NOW, 4.0, 0)
    removed = before - len(ages_days(connection))
    per_stretch = 300 // 10 - 1
    most = sample_table.DELETES_A_STEP + sample_table.MERGES_A_STEP * per_stretch
    assert 0 < removed <= most


def test_a_backlog_is_worked_off(connection: sqlite3.Connection) -> None:
    fill(connection, NOW - 2 * DAY_S, NOW)
    merged_to, steps = 0, 0
    while (left := sample_table.thin(connection, NOW, 30.0, merged_to)) > merged_to:
        merged_to, steps = left, steps + 1
    assert 70 <= steps <= 75
    spans = connection.execute("SELECT span_s, count(*) FROM samples GROUP BY span_s").fetchall()
    assert [tuple(row) for row in spans] == [(10.0, 8640), (300.0, 288)]


def test_what_is_merged_is_not_written_again(connection: sqlite3.Connection) -> None:
    """Also when a stretch has gaps, so that its row is shorter than five minutes."""
    sample_table.add(connection, [SampleRow(at=NOW - 3 * DAY_S + n, span_s=1.0) for n in (1, 9)])
    sample_table.thin(connection, NOW, 30.0, 0)
    changes = connection.total_changes
    for merged_to in (0, 0, int(NOW)):
        sample_table.thin(connection, NOW, 30.0, merged_to)
    assert connection.total_changes == changes
    assert len(ages_days(connection)) == 1


def test_rows_leave_when_their_time_is_over(connection: sqlite3.Connection) -> None:
    fill(connection, NOW - 2.01 * DAY_S, NOW - 1.99 * DAY_S)
    for _ in range(10):
        sample_table.thin(connection, NOW, 2.0, int(NOW))
    assert 0 < len(ages_days(connection)) < 173 / 2 + 3
    assert max(ages_days(connection)) < 2.0
