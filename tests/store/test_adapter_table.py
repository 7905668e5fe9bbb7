"""Activations in the database: which one is proved, also in a file of an older schema."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from edge_agent.store import adapter_table, database
from edge_agent.store.rows import ActivationRow
from edge_agent.store.store import Store

OLD = (
    ("proved", "asked for"),
    ("unproved", "unproved: asked for"),
    ("retried", "unproved since the last start: learned at night"),
    ("named", "it stays unproved: nobody asked"),
)
"""(model, reason) of activations as schema 3 kept them."""
NEW = {
    "proved": (True, False, "asked for"),
    "unproved": (False, False, "asked for"),
    "retried": (False, True, "learned at night"),
    "named": (True, False, "it stays unproved: nobody asked"),
}
"""model -> (is_proved, is_retried, reason)."""


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A database of schema 3, the last one in which a reason's beginning said what is proved."""
    path = tmp_path / "edge-agent.db"
    writer = sqlite3.connect(path)
    writer.executescript(";".join(database.MIGRATIONS[:3]) + ";PRAGMA user_version=3;")
    insert = "INSERT INTO activations (at, model, adapter, reason) VALUES (1.0, ?, 'a', ?)"
    writer.executemany(insert, OLD)
    insert = (
        "INSERT INTO adapters (model, name, sha256, path, size_bytes, base_sha256, source, status,"
        " created_at) VALUES (?, 'a', '00', 'a.gguf', 1, '11', 'trained', 'passed', 1.0)"
    )
    writer.executemany(insert, [(model,) for model, _ in OLD])
    writer.commit()
    writer.close()
    return path


def proofs(store: Store) -> dict[str, tuple[bool, bool, str]]:
    rows = store.adapters().activations.values()
    return {row.model: (row.is_proved, row.is_retried, row.reason) for row in rows}


def test_an_older_file_keeps_what_is_proved_in_columns_from_now_on(old_file: Path) -> None:
    for _ in range(2):
        with Store(old_file) as store:
            assert proofs(store) == NEW
    with sqlite3.connect(old_file) as reader:
        assert reader.execute("PRAGMA user_version").fetchone() == (len(database.MIGRATIONS),)
    reader.close()


def test_an_older_file_that_is_damaged_is_rescued_with_what_is_proved(old_file: Path) -> None:
    with sqlite3.connect(old_file) as writer:
        writer.executemany(
            "INSERT INTO events (at, kind, detail) VALUES (1.0, 'x', ?)", [("y" * 3000,)] * 200
        )
    writer.close()
    data = bytearray(old_file.read_bytes())
    data[-100 * 4096 : -99 * 4096] = b"\xff" * 4096
    old_file.write_bytes(data)
    old_file.with_name("edge-agent.db-wal").touch()
    with Store(old_file) as store:
        assert store.recent_events(1)[0].kind == "database_rescued"
        assert proofs(store) == NEW


def test_an_unproved_activation_gets_one_start_to_be_proved_in(old_file: Path) -> None:
    with Store(old_file) as store:
        assert store.transact(lambda db: adapter_table.mark_start(db, "unproved"))
        assert not store.transact(lambda db: adapter_table.mark_start(db, "unproved"))
        assert proofs(store)["unproved"] == (False, True, "asked for")
        store.transact(lambda db: adapter_table.prove(db, "unproved", "another"))
        assert proofs(store)["unproved"] == (False, True, "asked for")
        store.transact(lambda db: adapter_table.prove(db, "unproved", "a"))
        assert proofs(store)["unproved"] == (True, True, "asked for")


def test_a_new_activation_starts_unproved_whatever_its_reason_says(old_file: Path) -> None:
    again = ActivationRow(2.0, "proved", "a", "unproved: so they say", is_proved=False)
    with Store(old_file) as store:
        store.transact(lambda db: adapter_table.activate(db, again))
        assert proofs(store)["proved"] == (False, False, "unproved: so they say")
    with Store(old_file) as store:
        assert proofs(store)["proved"] == (False, False, "unproved: so they say")
