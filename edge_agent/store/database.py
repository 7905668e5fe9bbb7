"""Opens the SQLite file: durable settings, numbered migrations, and rescue of a corrupt one.

Flows in: a path. Flows out: a connection in WAL mode with synchronous=FULL whose schema is the
newest. WAL with NORMAL would be faster and lost every acknowledged row in a simulated power cut
(dev/log). A corrupt file is never deleted: it is renamed to `.corrupt-<unix time>`, a fresh one
is begun, and every row that can still be read is copied over; losing least beats refusing to start,
because the registry of models is in there. A file written by a newer version is refused untouched.
Not here: what the rows mean (rows.py), threads (store.py).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent import atomic_file
from edge_agent.errors import StoreError

BUSY_TIMEOUT_S = 5.0
CACHE_KIB = 512
"""SQLite's default of 2 MB a connection is a thirtieth of the front's whole memory budget."""
WAL_LIMIT_BYTES = 4 * 1024 * 1024

PROOF_FROM_REASON = """
    UPDATE activations SET is_proved = 0, reason = substr(reason, length('unproved: ') + 1)
        WHERE reason GLOB 'unproved: *';
    UPDATE activations SET is_proved = 0, is_retried = 1,
        reason = substr(reason, length('unproved since the last start: ') + 1)
        WHERE reason GLOB 'unproved since the last start: *';
"""
"""Schemas up to 3 kept it in front of the reason that an activation was not proved."""

MIGRATIONS = (
    """
    CREATE TABLE models (
        name TEXT PRIMARY KEY, sha256 TEXT NOT NULL, path TEXT NOT NULL,
        size_bytes INTEGER NOT NULL, source TEXT NOT NULL, architecture TEXT NOT NULL,
        description TEXT NOT NULL, n_params INTEGER NOT NULL, n_ctx_train INTEGER NOT NULL,
        quantization TEXT NOT NULL, chat_template TEXT, added_at REAL NOT NULL
    );
    CREATE TABLE generations (
        id INTEGER PRIMARY KEY AUTOINCREMENT, started_at REAL NOT NULL, duration_s REAL NOT NULL,
        model TEXT NOT NULL, api TEXT NOT NULL, adapter TEXT, prompt_tokens INTEGER,
        cached_tokens INTEGER, completion_tokens INTEGER, queued_s REAL, prefill_s REAL,
        decode_s REAL, ttft_s REAL, finish_reason TEXT, error_code TEXT,
        prompt_text TEXT, completion_text TEXT
    );
    CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, kind TEXT NOT NULL,
        detail TEXT NOT NULL
    );
    """,
    """
    ALTER TABLE generations ADD COLUMN prefill_j REAL;
    ALTER TABLE generations ADD COLUMN decode_j REAL;
    ALTER TABLE generations ADD COLUMN total_j REAL;
    ALTER TABLE generations ADD COLUMN marginal_j REAL;
    ALTER TABLE generations ADD COLUMN j_per_token REAL;
    ALTER TABLE generations ADD COLUMN mean_w REAL;
    ALTER TABLE generations ADD COLUMN peak_w REAL;
    ALTER TABLE generations ADD COLUMN idle_w REAL;
    ALTER TABLE generations ADD COLUMN energy_samples INTEGER;
    ALTER TABLE generations ADD COLUMN energy_rail TEXT;
    ALTER TABLE generations ADD COLUMN energy_source TEXT;
    ALTER TABLE generations ADD COLUMN energy_shared INTEGER;
    ALTER TABLE generations ADD COLUMN energy_reason TEXT;
    ALTER TABLE generations ADD COLUMN temperature_celsius REAL;
    ALTER TABLE generations ADD COLUMN memory_peak_bytes INTEGER;
    ALTER TABLE generations ADD COLUMN throttle TEXT;
    CREATE TABLE samples (
        at INTEGER PRIMARY KEY, span_s REAL NOT NULL, watts REAL, peak_w REAL, celsius REAL,
        mem_available_bytes INTEGER, worker_rss_anon_bytes INTEGER, front_rss_anon_bytes INTEGER,
        cpu_load REAL, gpu_load REAL, gpu_clock_hz REAL, cpu_clock_hz REAL, tok_s REAL,
        throttle TEXT NOT NULL
    );
    CREATE TABLE benchmarks (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, run_id TEXT NOT NULL,
        model TEXT NOT NULL, scenario TEXT NOT NULL, document TEXT NOT NULL
    );
    """,
    """
    CREATE TABLE adapters (
        id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, name TEXT NOT NULL,
        sha256 TEXT NOT NULL, path TEXT NOT NULL, size_bytes INTEGER NOT NULL,
        base_sha256 TEXT NOT NULL, source TEXT NOT NULL, status TEXT NOT NULL,
        gate TEXT, settings TEXT, created_at REAL NOT NULL, UNIQUE (model, name)
    );
    CREATE TABLE activations (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, model TEXT NOT NULL,
        adapter TEXT, reason TEXT NOT NULL
    );
    CREATE TABLE feedback (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, model TEXT NOT NULL, adapter TEXT,
        user TEXT NOT NULL, source TEXT NOT NULL, rating INTEGER, messages TEXT NOT NULL,
        answer TEXT NOT NULL, correction TEXT, used_in TEXT
    );
    """,
    f"""
    ALTER TABLE activations ADD COLUMN is_proved INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE activations ADD COLUMN is_retried INTEGER NOT NULL DEFAULT 0;
    {PROOF_FROM_REASON}
    """,
)
"""Append only: entry n takes user_version n to n + 1, and shipped entries never change."""

TABLES = (
    *("models", "generations", "events", "samples", "benchmarks"),
    *("adapters", "activations", "feedback"),
)


@dataclass(frozen=True)
class Rescue:
    """What became of a corrupt file: where it is now, and how many rows of each table came over."""

    moved_to: Path
    reason: str
    rows: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        kept = ", ".join(f"{count} {table}" for table, count in self.rows.items())
        return f"{self.reason}; kept {kept}; the damaged file is {self.moved_to}"


class _Corrupt(Exception):
    """The file is not, or no longer, a sound database."""


def is_corruption(error: sqlite3.Error) -> bool:
    """Whether SQLite says the file is damaged (SQLITE_CORRUPT, SQLITE_NOTADB).

    CPython raises exactly DatabaseError for those two and a subclass for everything else; the
    numeric code is available from Python 3.11 only.
    """
    return type(error) is sqlite3.DatabaseError


def is_disk_fault(error: sqlite3.Error) -> bool:
    """Whether disk or file are at fault, and not the row: I/O error, full, locked, damaged."""
    return isinstance(error, sqlite3.OperationalError) or is_corruption(error)


def open_database(
    path: Path, clock: Callable[[], float], *, check: bool = False
) -> tuple[sqlite3.Connection, Rescue | None]:
    """A ready connection, and what was rescued when the file was damaged. Raises StoreError.

    With `check`, or when the last process did not close the file, every page is read first.
    """
    try:
        return _open(path, check=check or _wal_of(path).exists()), None
    except _Corrupt as error:
        return _rescue(path, str(error), clock)
    except (sqlite3.Error, OSError) as error:
        raise _store_error(path, error) from error


def _open(path: Path, *, check: bool) -> sqlite3.Connection:
    _create(path)
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        _configure(connection)
        if check:
            _check(connection)
        _migrate(connection, path)
    except sqlite3.Error as error:
        connection.close()
        if is_corruption(error):
            raise _Corrupt(str(error)) from error
        raise
    except (StoreError, _Corrupt):
        connection.close()
        raise
    return connection


def _create(path: Path) -> None:
    """Make the file ourselves: SQLite would give it the umask's permissions."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        atomic_file.sync_directory(path.parent)


def _configure(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    connection.execute(f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES}")


def _check(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _Corrupt(" ".join(str(verdict).split()))


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} has schema {version}",
            f"this version of edge-agent knows schemas up to {len(MIGRATIONS)}",
            "use the newer version that wrote it, or another --state-dir",
        )
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN;{script};PRAGMA user_version={number};COMMIT;")


def _rescue(
    path: Path, reason: str, clock: Callable[[], float]
) -> tuple[sqlite3.Connection, Rescue]:
    """Move the damaged file and its WAL aside under matching names, then copy what reads."""
    moved = path.with_name(f"{path.name}.corrupt-{int(clock())}")
    try:
        _wal_of(path).with_name(f"{path.name}-shm").unlink(missing_ok=True)
        for old, new in ((_wal_of(path), _wal_of(moved)), (path, moved)):
            if old.exists():
                old.rename(new)
        connection = _open(path, check=False)
        rows = {table: _salvage(moved, connection, table) for table in TABLES}
        connection.executescript(PROOF_FROM_REASON)
    except (sqlite3.Error, OSError, _Corrupt) as error:
        raise _store_error(path, error) from error
    return connection, Rescue(moved, reason, rows)


def _salvage(damaged: Path, target: sqlite3.Connection, table: str) -> int:
    """Copy rows from both ends until the damage stops each pass. Returns the rows now there."""
    target.execute("BEGIN IMMEDIATE")
    for order in ("ASC", "DESC"):
        with (
            contextlib.suppress(sqlite3.Error, UnicodeDecodeError, OverflowError),
            contextlib.closing(sqlite3.connect(damaged)) as source,
        ):
            _copy(source.execute(f"SELECT * FROM {table} ORDER BY rowid {order}"), target, table)
    (count,) = target.execute(f"SELECT count(*) FROM {table}").fetchone()
    target.execute("COMMIT")
    return int(count)


def _copy(source: sqlite3.Cursor, target: sqlite3.Connection, table: str) -> None:
    """INSERT OR IGNORE drops a row whose NOT NULL columns the damage has emptied."""
    known = {row["name"] for row in target.execute(f"PRAGMA table_info({table})")}
    names = [column[0] for column in source.description]
    kept = [index for index, name in enumerate(names) if name in known]
    columns = ", ".join(names[index] for index in kept)
    marks = ", ".join("?" * len(kept))
    insert = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"
    for row in source:
        target.execute(insert, [row[index] for index in kept])


def _wal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _store_error(path: Path, error: Exception) -> StoreError:
    hint = "check free space, owner and permissions of that directory"
    return StoreError(f"the database {path} cannot be opened", str(error), hint)
