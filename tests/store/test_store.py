"""Rows that were acknowledged stay, whatever dies; a damaged file costs as little as possible."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import fakes
import pytest
from waiting import DEADLINE_S

from edge_agent.errors import ModelNotFound, RequestError, StoreError
from edge_agent.store import database, store
from edge_agent.store.rows import SampleRow
from edge_agent.store.store import GenerationRow, ModelRow, Store

DAY_S = 86_400.0


def document(number: int = 0, **members: Any) -> dict[str, Any]:
    head = {"v": 1, "run_id": "r1", "model": "tiny", "scenario": "decode", "avg_ts": 0.5 + number}
    return {**head, **members}


def generation(number: int = 0, **fields: object) -> GenerationRow:
    row = GenerationRow(started_at=float(number), duration_s=0.5, model="tiny", api="openai.chat")
    return replace(row, **fields)  # type: ignore[arg-type]


def model(root: Path, name: str) -> ModelRow:
    return fakes.register(root, name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edge-agent.db"


def test_models_survive_a_restart(path: Path) -> None:
    row = model(path.parent, "a")
    with Store(path) as first:
        first.add_model(row)
        assert first.model("a") == row
    with Store(path) as second:
        assert second.models() == [row]
        assert second.remove_model("a") == row
        assert second.models() == []
    with Store(path) as third, pytest.raises(ModelNotFound, match="none yet"):
        third.model("a")


def test_adding_a_model_again_replaces_its_row(path: Path) -> None:
    row = model(path.parent, "a")
    with Store(path) as store:
        store.add_model(row)
        store.add_model(replace(row, sha256="cd" * 32))
        assert [found.sha256 for found in store.models()] == ["cd" * 32]


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", "-a", "a\n", "a" * 65, "ä", "a b", "a\0"])
def test_names_outside_the_alphabet_are_refused(path: Path, name: str) -> None:
    row = replace(model(path.parent, "a"), name=name)
    with Store(path) as store, pytest.raises(RequestError, match="name"):
        store.add_model(row)


def test_generations_come_back_newest_first_and_complete(path: Path) -> None:
    rows = [generation(n, prompt_tokens=n, ttft_s=0.1, finish_reason="stop") for n in range(5)]
    with Store(path) as store:
        for row in rows:
            store.add_generation(row)
        assert store.recent_generations(3) == rows[:1:-1]


def test_every_column_of_a_generation_comes_back_as_it_was(path: Path) -> None:
    by_type = {"str": "x", "float": 1.5, "int": 7, "bool": True}
    values = {
        field.name: by_type[str(field.type).removesuffix(" | None")]
        for field in fields(GenerationRow)
    }
    row = GenerationRow(**values)
    with Store(path, log_text=True) as store:
        store.add_generation(row)
        (found,) = store.recent_generations(1)
    assert found == row
    assert found.energy_shared is True


def test_benchmarks_come_back_newest_first_in_pages(path: Path) -> None:
    with Store(path, clock=lambda: 50.0) as store:
        assert store.add_benchmarks([document(n) for n in range(5)]).result() == 5
        assert store.benchmarks(2) == [document(4), document(3)]
        first = store.benchmark_rows(2)
        rest = store.benchmark_rows(9, first[-1].id)
    assert [json.loads(row.document)["avg_ts"] for row in rest] == [2.5, 1.5, 0.5]
    assert (rest[0].at, rest[0].run_id, rest[0].scenario) == (50.0, "r1", "decode")


def test_a_batch_with_one_wrong_document_stores_none(path: Path) -> None:
    with Store(path) as store:
        with pytest.raises(RequestError, match="v is 2"):
            store.add_benchmarks([document(), document(v=2)])
        assert store.benchmarks(9) == []


def test_benchmarks_are_pruned_above_the_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "KEEP_BENCHMARKS", 3)
    with Store(path) as kept:
        for number in range(5):
            kept.add_benchmarks([document(number)])
        assert [found["avg_ts"] for found in kept.benchmarks(9)] == [4.5, 3.5, 2.5]


def test_samples_are_merged_after_a_day_and_deleted_after_their_time(path: Path) -> None:
    now = 100 * DAY_S
    with Store(path, keep_samples_days=2.0, clock=lambda: now) as store:
        for minute in range(3 * 24 * 60):
            now = 100 * DAY_S + minute * 60.0
            rows = [SampleRow(at=now - 50.0 + n * 10.0, span_s=10.0, watts=2.0) for n in range(6)]
            store.add_samples(rows)
    with sqlite3.connect(path) as reader:
        rows_kept = reader.execute("SELECT at, span_s, watts FROM samples ORDER BY at").fetchall()
    reader.close()
    spans_by_age = [(now - at, span_s) for at, span_s, _ in rows_kept]
    assert 2 * DAY_S - 900.0 < spans_by_age[0][0] <= 2 * DAY_S
    assert {span_s for age_s, span_s in spans_by_age if age_s < DAY_S} == {10.0}
    # The oldest stretch may have lost its first minutes already.
    assert {span_s for age_s, span_s in spans_by_age[1:] if age_s > DAY_S + 900.0} == {300.0}
    assert len(rows_kept) == pytest.approx(8640 + 288, abs=60)
    assert {watts for _, _, watts in rows_kept} == {2.0}


def test_no_samples_are_written_when_none_are_kept(path: Path) -> None:
    with Store(path, clock=lambda: 1000.0) as store:
        store.add_samples([SampleRow(at=float(n)) for n in range(300)]).result()
    wal = path.with_name(path.name + "-wal")
    with Store(path, keep_samples_days=0.0, clock=lambda: 2000.0) as store:
        for number in range(3):  # what an earlier setting left is deleted in steps
            store.add_samples([SampleRow(at=1000.0 + number)]).result()
        assert store.samples(0.0, 1e9) == []
        before = wal.stat().st_size
        store.add_samples([SampleRow(at=1500.0)]).result()
        assert wal.stat().st_size == before, "an empty minute must not touch the disk"


def test_a_minute_of_samples_costs_few_pages(path: Path) -> None:
    """4 KiB pages in the WAL: the one the rows go to, and now and then its parent and a new one."""
    wal = path.with_name(path.name + "-wal")
    now = 1000.0
    sizes = []
    with Store(path, clock=lambda: now) as store:
        for _ in range(120):
            now += 60.0
            rows = [SampleRow(now - 10.0 * n, 10.0, 2.5, 3.0, 45.5, 10**9) for n in range(6)]
            before = wal.stat().st_size if wal.exists() else 0
            store.add_samples(rows).result()
            sizes.append(wal.stat().st_size - before)
    assert 0 < sum(sizes) / len(sizes) / 4096 <= 2.0


def test_a_clock_set_back_overwrites_and_goes_on(path: Path) -> None:
    now = 10 * DAY_S
    with Store(path, clock=lambda: now) as store:
        store.add_samples([SampleRow(at=now, watts=1.0)]).result()
        now -= 3 * DAY_S
        store.add_samples([SampleRow(at=now, watts=2.0)]).result()
        now += 3 * DAY_S
        store.add_samples([SampleRow(at=now, watts=3.0)]).result()
        found = store.samples(0.0, now)
    assert [row.watts for row in found] == [2.0, 3.0]


def test_text_is_stored_only_when_enabled(path: Path) -> None:
    row = generation(prompt_text="secret question", completion_text="secret answer")
    with Store(path) as store:
        store.add_generation(row).result()
        assert store.recent_generations(1) == [generation()]
    on_disk = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"secret" not in on_disk
    with Store(path, log_text=True) as store:
        store.add_generation(row).result()
        assert store.recent_generations(1) == [row]


def test_history_is_pruned_above_the_limit(path: Path) -> None:
    with Store(path, keep_generations=10) as kept:
        for number in range(store.PRUNE_EVERY * 2):
            kept.add_generation(generation(number))
        kept.recent_generations(1)
        with sqlite3.connect(path) as reader:
            (count,) = reader.execute("SELECT count(*) FROM generations").fetchone()
        reader.close()
    assert 10 <= count <= 10 + store.PRUNE_EVERY


def test_the_database_is_private_durable_and_in_wal_mode(path: Path) -> None:
    previous = os.umask(0)
    try:
        with Store(path) as store:
            store.add_event("test", "x").result()
            files = sorted(path.parent.glob("edge-agent.db*"))
            assert len(files) == 3
            assert [file.stat().st_mode & 0o777 for file in files] == [0o600] * 3
            assert store._connection is not None
            assert store._connection.execute("PRAGMA synchronous").fetchone()[0] == 2
            assert store._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    finally:
        os.umask(previous)


def test_many_threads_write_through_one_connection(path: Path) -> None:
    with Store(path) as store:

        def write(start: int) -> None:
            for number in range(start, start + 50):
                store.add_generation(generation(number))

        threads = [threading.Thread(target=write, args=(n * 50,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = store.recent_generations(1000)
    assert sorted(row.started_at for row in found) == [float(n) for n in range(200)]


def test_one_bad_row_does_not_take_its_batch_along(path: Path) -> None:
    gate = threading.Event()
    with Store(path) as store:
        blocker = store._submit(lambda connection: gate.wait(DEADLINE_S))
        good = store.add_generation(generation(1))
        bad = store.add_generation(generation(2, prompt_tokens=2**70))
        also_good = store.add_generation(generation(3))
        gate.set()
        blocker.result()
        good.result(), also_good.result()
        with pytest.raises(StoreError, match="OverflowError"):
            bad.result()
        assert [row.started_at for row in store.recent_generations(9)] == [3.0, 1.0]


def test_a_stuck_disk_bounds_memory_and_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_PENDING", 3)
    gate = threading.Event()
    started = threading.Event()
    with Store(path) as stuck:
        stuck._submit(lambda connection: started.set() or gate.wait(DEADLINE_S))
        started.wait(DEADLINE_S)
        futures = [stuck.add_generation(generation(n)) for n in range(4)]
        with pytest.raises(StoreError, match="wait for the disk"):
            futures[3].result(0)
        gate.set()
        assert [future.result() for future in futures[:3]] == [None] * 3


def test_a_closed_store_refuses(path: Path) -> None:
    with Store(path) as store:
        pass
    with pytest.raises(StoreError, match="closed"):
        store.add_event("late", "x").result(1)


def test_a_disk_that_fails_is_typed_and_recovered_from(path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel refuse to grow the file, as a full disk does."""
    with Store(path) as store:
        store.add_generation(generation(1)).result()
        # Pytest's own output files are short; EFBIG instead of a signal.
        previous_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(StoreError, match="could not be written"):
                store.add_generation(generation(2)).result()
            assert store.last_error
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, previous_handler)
        store.add_generation(generation(3)).result()
        assert [row.started_at for row in store.recent_generations(9)] == [3.0, 1.0]
        assert store.last_error is None


# ---- files from elsewhere ----------------------------------------------------------------------


def test_a_newer_schema_is_refused_untouched(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as writer:
        writer.execute("PRAGMA user_version=99")
    writer.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="schema 99"):
        Store(path)
    assert path.read_bytes() == before


def test_migrations_run_once_in_order_and_keep_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(path) as store:
        store.add_generation(generation(7)).result()
    longer = (*database.MIGRATIONS, "CREATE TABLE extra (x INTEGER); INSERT INTO extra VALUES (1);")
    monkeypatch.setattr(database, "MIGRATIONS", longer)
    for _ in range(2):
        with Store(path) as store:
            assert store.recent_generations(1) == [generation(7)]
    with sqlite3.connect(path) as reader:
        assert reader.execute("SELECT count(*) FROM extra").fetchone() == (1,)
    reader.close()


def first_version(path: Path, rows: int = 1) -> None:
    """A file as the first release wrote it."""
    writer = sqlite3.connect(path)
    writer.executescript(f"{database.MIGRATIONS[0]};PRAGMA user_version=1;")
    insert = "INSERT INTO generations (started_at, duration_s, model, api) VALUES (?, 0.5, ?, ?)"
    writer.executemany(insert, [(float(n), "tiny", "openai.chat") for n in range(rows)])
    writer.commit()
    writer.close()


def test_a_file_of_the_first_version_gets_the_new_columns_and_tables(path: Path) -> None:
    first_version(path)
    with Store(path, clock=lambda: 100.0) as store:
        store.add_generation(generation(1, total_j=2.5, energy_shared=False))
        store.add_samples([SampleRow(at=50.0, watts=3.0)])
        store.add_benchmarks([document()])
        assert store.recent_generations(9) == [
            generation(1, total_j=2.5, energy_shared=False),
            generation(0),
        ]
        assert [row.watts for row in store.samples(0.0, 100.0)] == [3.0]
        assert store.benchmarks(9) == [document()]


def test_a_damaged_file_of_the_first_version_is_rescued_into_the_new_schema(path: Path) -> None:
    first_version(path, rows=2000)
    data = bytearray(path.read_bytes())
    page = len(data) // 4096 // 2
    data[page * 4096 : (page + 1) * 4096] = b"\xff" * 4096
    path.write_bytes(data)
    path.with_name("edge-agent.db-wal").touch()
    with Store(path) as store:
        kept = store.recent_generations(5000)
        (event,) = store.recent_events(9)
    assert event.kind == "database_rescued"
    assert 1500 < len(kept) < 2000 and kept[0].total_j is None


def test_samples_and_benchmarks_are_rescued_too(path: Path) -> None:
    with Store(path, clock=lambda: 1e6) as store:
        store.add_samples([SampleRow(at=1e6 - 10 * n, watts=1.0) for n in range(4000)])
        store.add_benchmarks([document(n, notes=["x" * 3000]) for n in range(200)])
        store.add_model(model(path.parent, "a"))
    data = bytearray(path.read_bytes())
    for page in (len(data) // 4096 // 8, len(data) // 4096 - 20):
        data[page * 4096 : (page + 1) * 4096] = b"\xff" * 4096
    path.write_bytes(data)
    path.with_name("edge-agent.db-wal").touch()
    with Store(path, clock=lambda: 1e6) as store:
        samples = len(store.samples(1e6 - 40_000, 1e6, limit=400))
        benchmarks = len(store.benchmarks(999))
        (event,) = store.recent_events(9)
    assert event.kind == "database_rescued"
    assert 300 < samples <= 401
    assert 150 < benchmarks <= 200
    assert "benchmarks" in event.detail and "samples" in event.detail


def test_a_failing_migration_leaves_the_old_schema(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(path).close()
    broken = (*database.MIGRATIONS, "CREATE TABLE extra (x INTEGER); SELECT nonsense;")
    monkeypatch.setattr(database, "MIGRATIONS", broken)
    with pytest.raises(StoreError, match="nonsense"):
        Store(path)
    monkeypatch.undo()
    Store(path).close()


def test_a_file_that_is_no_database_is_moved_aside_and_reported(path: Path) -> None:
    path.write_bytes(b"not a database, but somebody's bytes" * 200)
    with Store(path, clock=lambda: 1234.0) as store:
        store.add_model(model(path.parent, "a"))
        (event,) = store.recent_events(9)
    assert event.kind == "database_rescued"
    moved = path.with_name("edge-agent.db.corrupt-1234")
    assert str(moved) in event.detail
    assert moved.read_bytes().startswith(b"not a database")


def test_a_damaged_page_loses_only_the_rows_on_it(path: Path) -> None:
    with Store(path) as store:
        store.add_model(model(path.parent, "a"))
        for number in range(2000):
            store.add_generation(generation(number))
    data = bytearray(path.read_bytes())
    page = len(data) // 4096 // 2
    data[page * 4096 : (page + 1) * 4096] = b"\xff" * 4096
    path.write_bytes(data)
    # An unclean end is what makes the next start read every page.
    path.with_name("edge-agent.db-wal").touch()
    with Store(path) as store:
        assert [row.name for row in store.models()] == ["a"]
        (event,) = store.recent_events(9)
        kept = {row.started_at for row in store.recent_generations(5000)}
    assert event.kind == "database_rescued"
    assert {0.0, 1999.0} <= kept and 1500 < len(kept) < 2000


def test_damage_found_while_running_is_rescued_at_the_next_write(path: Path) -> None:
    with Store(path) as store:
        store.add_model(model(path.parent, "a"))
        for number in range(2000):
            store.add_generation(generation(number))
    data = bytearray(path.read_bytes())
    for page in range(len(data) // 4096 // 2, len(data) // 4096):
        data[page * 4096 : (page + 1) * 4096] = b"\xff" * 4096
    path.write_bytes(data)
    with Store(path) as store:
        with pytest.raises(StoreError, match="malformed"):
            for number in range(3000):
                store.add_generation(generation(number)).result()
        store.add_generation(generation(9999)).result()
        assert [row.name for row in store.models()] == ["a"]
        assert store.recent_generations(1) == [generation(9999)]


def test_an_unwritable_place_is_typed(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "missing" / "x.db")
    (tmp_path / "directory.db").mkdir()
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "directory.db")


# ---- kill -9 -----------------------------------------------------------------------------------

HONEST_WRITER = """
    import sys
    from pathlib import Path
    from edge_agent.store.store import GenerationRow, Store
    store = Store(Path(sys.argv[1]))
    number = 1_000 * int(sys.argv[2])
    while True:
        rows = [GenerationRow(float(number + i), 0.0, "m", "t", prompt_tokens=number + i)
                for i in range(3)]
        for row, future in [(row, store.add_generation(row)) for row in rows]:
            future.result()
            print(int(row.started_at), flush=True)
        number += 3
"""

# Acknowledges before the commit: the oracle below must catch it.
LYING_WRITER = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    number = 1_000 * int(sys.argv[2])
    while True:
        connection.execute("BEGIN")
        for i in range(20):
            connection.execute(
                "INSERT INTO generations (started_at, duration_s, model, api, prompt_tokens)"
                " VALUES (?, 0, 'm', 't', ?)", (float(number + i), number + i))
            print(number + i, flush=True)
        connection.execute("COMMIT")
        number += 20
"""


def lost_rows(path: Path, program: str, kills: int) -> int:
    """Kill a writer `kills` times at random moments; count acknowledged rows that are gone."""
    rng = random.Random(7)
    acknowledged: set[int] = set()
    for round_number in range(kills):
        command = [sys.executable, "-c", textwrap.dedent(program), str(path), str(round_number)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(rng.randint(1, 25)):
            acknowledged.add(int(writer.stdout.readline()))
        writer.kill()
        acknowledged |= {
            int(line) for line in writer.stdout.read().splitlines(True) if line[-1:] == b"\n"
        }
        writer.stdout.close()
        assert writer.wait() == -signal.SIGKILL
    with sqlite3.connect(path) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = reader.execute("SELECT started_at, prompt_tokens FROM generations").fetchall()
    reader.close()
    assert all(started_at == tokens for started_at, tokens in found), "a torn row"
    return len(acknowledged - {tokens for _, tokens in found})


def test_thirty_kills_lose_no_acknowledged_row(path: Path) -> None:
    Store(path).close()
    assert lost_rows(path, HONEST_WRITER, kills=30) == 0
    with Store(path) as store:
        assert store.recent_events(9) == [], "a kill must not look like damage"


def test_the_kill_test_catches_a_writer_that_acknowledges_too_early(path: Path) -> None:
    Store(path).close()
    assert lost_rows(path, LYING_WRITER, kills=5) > 0
