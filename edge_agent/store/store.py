"""What the daemon remembers: models, adapters, generations, events, samples, benchmarks.

Flows in: frozen rows (rows.py) from server, supervisor, telemetry, bench. Flows out: the same. One
thread owns the only connection. Callers queue work for it and get a Future, so an event loop never
waits for a disk, and many small writes share one commit. When a Future has resolved, its row is on
the disk (SQLite WAL, synchronous=FULL); when it failed, nothing was written. Models and adapters
are also kept in memory, because every request looks one up. Prompts and answers are stored only
with `log_text`. Not here: opening, migrating and rescuing the file (database.py), the SQL of
samples and adapters (sample_table.py, adapter_table.py), which events are shown (event_log.py).

>>> import tempfile
>>> with Store(Path(tempfile.mkdtemp(), "x.db")) as store:
...     store.models()
[]
"""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from edge_agent.errors import ModelNotFound, RequestError, StoreError
from edge_agent.model_names import MODEL_NAME
from edge_agent.store import adapter_table, sample_table
from edge_agent.store.adapter_table import Book
from edge_agent.store.database import is_corruption, is_disk_fault, open_database
from edge_agent.store.event_log import ROUTINE, SHOWN, RecentEvents
from edge_agent.store.rows import (
    BenchmarkRow,
    EventRow,
    GenerationRow,
    ModelRow,
    SampleRow,
    benchmark_row,
)

__all__ = ["BenchmarkRow", "EventRow", "GenerationRow", "ModelRow", "SampleRow", "Store"]

MAX_PENDING = 10_000
"""Rows waiting for a stuck disk; more are refused, so that memory stays bounded."""
MAX_BATCH = 256
KEEP_EVENTS = 10_000
KEEP_BENCHMARKS = 10_000
PRUNE_EVERY = 256
"""Generations between two prunings: one DELETE then touches few pages of an SD card."""
WAIT_S = 60.0
MAX_ID = 2**63 - 1

Result = TypeVar("Result")
_Row: TypeAlias = ModelRow | GenerationRow | EventRow | BenchmarkRow


@dataclass(frozen=True)
class _Job(Generic[Result]):
    work: Callable[[sqlite3.Connection], Result]
    future: Future[Result]


class Store:
    """Thread-safe. `models`, `model`, `adapters`, `recent_events` and `health` read memory; `add_*`
    return a Future, apart from `add_model`; every other method waits for the disk."""

    def __init__(
        self,
        path: Path,
        *,
        log_text: bool = False,
        keep_generations: int = 100_000,
        keep_samples_days: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open or create the file. Raises StoreError."""
        self.path = path
        self.last_error: str | None = None
        """Why the latest commit failed; None when it went well."""
        self._events = RecentEvents()
        self._log_text = log_text
        self._keep_generations = keep_generations
        self._keep_samples_days = keep_samples_days
        self._merged_to = 0
        self._clock = clock
        self._unpruned = PRUNE_EVERY
        self._suspect = False
        self._closed = False
        self._jobs: queue.Queue[_Job[Any] | None] = queue.Queue(MAX_PENDING)
        self._models: dict[str, ModelRow] = {}
        self._book = Book()
        self._is_book_old = True
        self._connection: sqlite3.Connection | None = None
        self._open()
        self._writer = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._writer.start()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- for callers in any thread -----------------------------------------------------------

    def models(self) -> list[ModelRow]:
        """Every registered model, oldest first."""
        return sorted(self._models.values(), key=lambda row: (row.added_at, row.name))

    def model(self, name: str) -> ModelRow:
        """Raises ModelNotFound."""
        row = self._models.get(name)
        if row is None:
            known = ", ".join(sorted(self._models)) or "none yet"
            hint = "`edge-agent pull` registers one; `edge-agent list` shows them"
            raise ModelNotFound(f"no model named {name[:80]!r}", f"registered: {known}", hint)
        return row

    def add_model(self, row: ModelRow) -> None:
        """Register a model, or replace the row of this name; durable on return.

        Raises RequestError for a name outside MODEL_NAME, StoreError.
        """
        if not MODEL_NAME.fullmatch(row.name):
            raise RequestError(
                f"{row.name[:80]!r} cannot be a model's name",
                f"names match {MODEL_NAME.pattern}",
                "choose another with --name",
            )
        self._wait(self._submit(lambda connection: _insert(connection, "models", row)))

    def remove_model(self, name: str) -> ModelRow:
        """Delete the row, not the file; durable on return. Raises ModelNotFound, StoreError."""
        row = self.model(name)
        delete = "DELETE FROM models WHERE name = ?"
        self._wait(self._submit(lambda connection: connection.execute(delete, (name,))))
        return row

    def adapters(self) -> Book:
        """Every registered adapter and which ones are active, from memory."""
        return self._book

    def add_generation(self, row: GenerationRow) -> Future[None]:
        """Durable once the Future has resolved; its exception is a StoreError."""
        if not self._log_text:
            row = replace(row, prompt_text=None, completion_text=None)
        return self._submit(lambda connection: self._insert_generation(connection, row))

    def add_event(self, kind: str, detail: str) -> Future[None]:
        """As `add_generation`."""
        row = EventRow(self._clock(), kind, detail)
        self._events.add(row)
        return self._submit(lambda connection: _insert(connection, "events", row))

    def add_samples(self, rows: Sequence[SampleRow]) -> Future[None]:
        """Write all in one transaction, which also does one step of retention (sample_table.thin).
        Nothing is written if 0 days are kept. Else as `add_generation`.
        """
        return self._submit(lambda connection: self._insert_samples(connection, rows))

    def samples(self, since: float, until: float, limit: int = 1000) -> list[SampleRow]:
        """Rows of since < at <= until (Unix seconds), oldest first. More than `limit` are merged.

        Raises StoreError.
        """
        between = sample_table.between
        step_s = sample_table.step_s(until - since, limit)
        return self._wait(self._submit(lambda db: between(db, since, until, step_s)))

    def add_benchmarks(self, documents: Sequence[Mapping[str, Any]]) -> Future[int]:
        """All or none, in one transaction; resolves to their number. Raises RequestError for one
        that cannot be stored; else as `add_generation`."""
        rows = [benchmark_row(document, self._clock()) for document in documents]
        return self._submit(lambda connection: _insert_benchmarks(connection, rows))

    def benchmarks(self, n: int) -> list[dict[str, Any]]:
        """The last n documents, newest first. Raises StoreError."""
        return [json.loads(row.document) for row in self.benchmark_rows(n)]

    def benchmark_rows(self, n: int, before: int | None = None) -> list[BenchmarkRow]:
        """The last n rows with an id below `before`, newest first. Raises StoreError."""
        found = self._select("benchmarks", BenchmarkRow, n, before)
        return [BenchmarkRow(**row) for row in found]

    def recent_generations(self, n: int) -> list[GenerationRow]:
        """The last n rows, newest first. Raises StoreError."""
        return [_generation(row) for row in self._select("generations", GenerationRow, n)]

    def recent_events(self, n: int, leave_out: Collection[str] = ()) -> list[EventRow]:
        """At most n of the newest events, newest first, from memory."""
        return self._events.newest(n, leave_out)

    def health(self) -> dict[str, Any]:
        """{events, storage_error}: the last events that are not routine, newest first, and why the
        latest commit failed; None: it went well. Never waits for the disk."""
        events = [asdict(event) for event in self.recent_events(SHOWN, ROUTINE)]
        return {"events": events, "storage_error": self.last_error}

    def transact(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Call `work` in the writer thread, in one transaction; durable on return. Tables with a
        module of their own (adapters, feedback) are written this way. Raises StoreError."""

        def change(connection: sqlite3.Connection) -> Result:
            self._is_book_old = True
            return work(connection)

        return self._wait(self._submit(change))

    def is_alive(self) -> bool:
        """Whether the writer thread still runs."""
        return self._writer.is_alive()

    def close(self) -> None:
        """Write what is queued, then end the thread. Idempotent."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        self._writer.join()

    # ---- between the two ----------------------------------------------------------------------

    def _submit(self, work: Callable[[sqlite3.Connection], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        try:
            if self._closed:
                raise self._is_closed()
            self._jobs.put_nowait(_Job(work, future))
        except queue.Full:
            why = f"{MAX_PENDING} rows wait for the disk already"
            future.set_exception(StoreError(f"a row for {self.path} was dropped", why))
        except StoreError as error:
            future.set_exception(error)
        return future

    def _is_closed(self) -> StoreError:
        return StoreError(f"the database {self.path} is closed", "the daemon is stopping")

    def _select(
        self, table: str, row_type: type, n: int, before: int | None = None
    ) -> list[dict[str, Any]]:
        columns = ", ".join(field.name for field in fields(row_type))
        query = f"SELECT {columns} FROM {table} WHERE id < ? ORDER BY id DESC LIMIT ?"
        limits = (MAX_ID if before is None else before, n)
        found = self._wait(self._submit(lambda db: db.execute(query, limits).fetchall()))
        return [dict(row) for row in found]

    def _wait(self, future: Future[Result]) -> Result:
        try:
            return future.result(WAIT_S)
        except FutureTimeoutError as error:
            why = f"the disk did not answer for {WAIT_S:.0f} s"
            raise StoreError(f"the database {self.path} is stuck", why) from error

    # ---- in the writer thread -----------------------------------------------------------------

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._write(batch)
        if self._connection is not None:
            self._connection.close()
        while not self._jobs.empty():
            late = self._jobs.get()
            if late is not None:
                late.future.set_exception(self._is_closed())

    def _next_batch(self) -> list[_Job[Any]] | None:
        """The jobs that are queued now, at most MAX_BATCH; None when the store is closed and the
        queue is empty."""
        job = self._jobs.get()
        batch: list[_Job[Any]] = []
        while job is not None:
            if job.future.set_running_or_notify_cancel():
                batch.append(job)
            if self._jobs.empty() or len(batch) >= MAX_BATCH:
                return batch
            job = self._jobs.get()
        if batch:
            self._jobs.put(None)
            return batch
        return None

    def _write(self, batch: list[_Job[Any]]) -> None:
        """Run all jobs in one transaction; when one of them fails, each in its own."""
        try:
            results = self._commit(batch)
        except StoreError as error:
            for job in batch:
                job.future.set_exception(error)
        except Exception as error:
            if len(batch) > 1:
                for job in batch:
                    self._write([job])
            else:
                batch[0].future.set_exception(_refused(error))
        else:
            for job, result in zip(batch, results, strict=True):
                job.future.set_result(result)

    def _commit(self, batch: list[_Job[Any]]) -> list[Any]:
        """Results of each job after COMMIT. Raises StoreError when the disk is at fault."""
        connection = self._connection or self._open()
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = [job.work(connection) for job in batch]
            models = _read_models(connection)
            book = adapter_table.read(connection) if self._is_book_old else self._book
            connection.execute("COMMIT")
        except Exception as error:
            if isinstance(error, sqlite3.Error) and is_disk_fault(error):
                raise self._give_up(connection, error) from error
            connection.rollback()
            raise
        self._models, self._book, self._is_book_old = models, book, False
        self.last_error = None
        return results

    def _give_up(self, connection: sqlite3.Connection, error: sqlite3.Error) -> StoreError:
        """Close the file; the next batch opens it again. After a failed fsync the kernel may report
        success for pages that it lost, so the same descriptor cannot be trusted."""
        self._connection = None
        self._suspect = is_corruption(error)
        connection.close()
        self.last_error = str(error)
        hint = "free some space or check the disk; the daemon goes on and tries again"
        return StoreError(f"the database {self.path} could not be written", str(error), hint)

    def _open(self) -> sqlite3.Connection:
        try:
            connection, rescue = open_database(self.path, self._clock, check=self._suspect)
        except StoreError as error:
            self.last_error = str(error)
            raise
        self._suspect = False
        try:
            if rescue is not None:
                event = EventRow(self._clock(), "database_rescued", str(rescue))
                _insert(connection, "events", event)
                self._events.add(event)
            self._events.load(connection)
            self._models, self._book = _read_models(connection), adapter_table.read(connection)
        except sqlite3.Error as error:
            raise self._give_up(connection, error) from error
        self._connection = connection
        return connection

    def _insert_generation(self, connection: sqlite3.Connection, row: GenerationRow) -> None:
        _insert(connection, "generations", row)
        self._unpruned += 1
        if self._unpruned >= PRUNE_EVERY:
            self._unpruned = 0
            _prune(connection, "generations", self._keep_generations)
            _prune(connection, "events", KEEP_EVENTS)

    def _insert_samples(self, connection: sqlite3.Connection, rows: Sequence[SampleRow]) -> None:
        days = self._keep_samples_days
        if days > 0:
            sample_table.add(connection, rows)
        # After the clock was set back, rows may be older than what was merged already.
        merged_to = min([self._merged_to, *(int(row.at) - 1 for row in rows)])
        self._merged_to = sample_table.thin(connection, self._clock(), days, merged_to)


def _insert(connection: sqlite3.Connection, table: str, row: _Row) -> None:
    values = asdict(row)
    marks = ", ".join("?" * len(values))
    insert = f"INSERT OR REPLACE INTO {table} ({', '.join(values)}) VALUES ({marks})"
    connection.execute(insert, list(values.values()))


def _insert_benchmarks(connection: sqlite3.Connection, rows: Sequence[BenchmarkRow]) -> int:
    for row in rows:
        _insert(connection, "benchmarks", row)
    _prune(connection, "benchmarks", KEEP_BENCHMARKS)
    return len(rows)


def _generation(row: dict[str, Any]) -> GenerationRow:
    """SQLite has no truth values."""
    shared = row["energy_shared"]
    return GenerationRow(**{**row, "energy_shared": None if shared is None else bool(shared)})


def _prune(connection: sqlite3.Connection, table: str, keep: int) -> None:
    newest = f"(SELECT max(id) FROM {table})"
    connection.execute(f"DELETE FROM {table} WHERE id <= {newest} - ?", (keep,))


def _read_models(connection: sqlite3.Connection) -> dict[str, ModelRow]:
    names = [field.name for field in fields(ModelRow)]
    rows = connection.execute(f"SELECT {', '.join(names)} FROM models")
    return {row["name"]: ModelRow(**dict(row)) for row in rows}


def _refused(error: Exception) -> StoreError:
    return StoreError("a row could not be stored", f"{type(error).__name__}: {error}")
