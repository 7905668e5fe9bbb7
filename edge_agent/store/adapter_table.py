"""The tables of adapters and activations: which adapters there are, and which one answers.

Flows in: a connection inside the store's writer thread (store.py), and rows. Flows out: rows, and
the `Book` that store.py keeps in memory, because every request asks which adapter is active. An
activation is one row and the newest row of a model counts: a switch is durable or has not happened,
and rolling back is as quick as any switch. Not here: files, rules about which adapter may be
activated (models/adapter_registry.py), threads.

>>> Book().active("m") is None
True
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from edge_agent.store.rows import ActivationRow, AdapterRow

KEEP_ACTIVATIONS = 100
"""Rows kept of each model; nobody rolls back to an older one."""

ADAPTER_COLUMNS = tuple(field.name for field in fields(AdapterRow))
ACTIVATION_COLUMNS = tuple(field.name for field in fields(ActivationRow))


@dataclass(frozen=True)
class Book:
    """Every adapter by (model, name), and the newest activation of each model."""

    adapters: Mapping[tuple[str, str], AdapterRow] = field(default_factory=dict)
    activations: Mapping[str, ActivationRow] = field(default_factory=dict)

    def of(self, model: str) -> list[AdapterRow]:
        """Oldest first."""
        return [row for (owner, _), row in self.adapters.items() if owner == model]

    def active(self, model: str) -> AdapterRow | None:
        """None: the base."""
        activation = self.activations.get(model)
        if activation is None or activation.adapter is None:
            return None
        return self.adapters.get((model, activation.adapter))


def read(connection: sqlite3.Connection) -> Book:
    """Both tables; a handful of rows."""
    adapters = connection.execute(f"SELECT {', '.join(ADAPTER_COLUMNS)} FROM adapters ORDER BY id")
    newest = "SELECT max(id) FROM activations GROUP BY model"
    columns = ", ".join(ACTIVATION_COLUMNS)
    activations = connection.execute(f"SELECT {columns} FROM activations WHERE id IN ({newest})")
    rows = [_adapter(row) for row in adapters]
    return Book(
        {(row.model, row.name): row for row in rows},
        {row["model"]: _activation(row) for row in activations},
    )


def add(connection: sqlite3.Connection, row: AdapterRow) -> None:
    """Raises sqlite3.IntegrityError when the model has an adapter of this name."""
    values = {**asdict(row), "gate": _text(row.gate), "settings": _text(row.settings)}
    marks = ", ".join("?" * len(values))
    insert = f"INSERT INTO adapters ({', '.join(values)}) VALUES ({marks})"
    connection.execute(insert, list(values.values()))


def judge(
    connection: sqlite3.Connection, model: str, name: str, gate: Mapping[str, Any], status: str
) -> None:
    """Store the gate's report and the status that follows from it."""
    update = "UPDATE adapters SET gate = ?, status = ? WHERE model = ? AND name = ?"
    connection.execute(update, (_text(gate), status, model, name))


def remove(connection: sqlite3.Connection, model: str, name: str) -> None:
    """Delete the adapter and its activations: another one may get its name, and no rollback may
    take that one for this one."""
    connection.execute("DELETE FROM adapters WHERE model = ? AND name = ?", (model, name))
    connection.execute("DELETE FROM activations WHERE model = ? AND adapter = ?", (model, name))


def remove_model(connection: sqlite3.Connection, model: str) -> None:
    """Delete every adapter of a model, and every activation."""
    for table in ("adapters", "activations"):
        connection.execute(f"DELETE FROM {table} WHERE model = ?", (model,))


def activate(connection: sqlite3.Connection, row: ActivationRow) -> None:
    """From now on the model is answered with `row.adapter`."""
    values = {**asdict(row), "id": None}
    marks = ", ".join("?" * len(values))
    insert = f"INSERT INTO activations ({', '.join(values)}) VALUES ({marks})"
    connection.execute(insert, list(values.values()))
    newest = "SELECT id FROM activations WHERE model = ? ORDER BY id DESC LIMIT ?"
    prune = f"DELETE FROM activations WHERE model = ? AND id NOT IN ({newest})"
    connection.execute(prune, (row.model, row.model, KEEP_ACTIVATIONS))


def prove(connection: sqlite3.Connection, model: str, adapter: str) -> None:
    """The canary has answered with `adapter`. Does nothing when another one is active by now."""
    newest = _newest(connection, model)
    if newest is not None and newest.adapter == adapter:
        connection.execute("UPDATE activations SET is_proved = 1 WHERE id = ?", (newest.id,))


def mark_start(connection: sqlite3.Connection, model: str) -> bool:
    """A daemon starts with an activation that is not proved. False: an earlier one did already."""
    newest = _newest(connection, model)
    if newest is None or newest.is_retried:
        return False
    connection.execute("UPDATE activations SET is_retried = 1 WHERE id = ?", (newest.id,))
    return True


def previous(connection: sqlite3.Connection, model: str) -> ActivationRow | None:
    """The newest activation of another adapter, or of the base, than the active one. It is proved,
    and its adapter is still there and was never rolled back. None: there is no such row."""
    rows = _history(connection, model)
    now = rows[0].adapter if rows else None
    usable = _usable(connection, model)
    for row in rows[1:]:
        if row.adapter != now and row.is_proved and row.adapter in usable:
            return row
    return None


def roll_back(
    connection: sqlite3.Connection, now: ActivationRow, is_bad: bool = True
) -> ActivationRow | None:
    """Go back from the adapter that `now` names to the one active before it, else to the base.

    `now` holds when and why. The new activation; None when another adapter is active meanwhile, and
    then nothing changes. `is_bad` marks the adapter that was left, so that no later rollback
    returns to it.
    """
    newest = _newest(connection, now.model)
    if newest is None or newest.adapter != now.adapter:
        return None
    before = previous(connection, now.model)
    target = replace(now, adapter=before.adapter if before else None)
    if target.adapter == now.adapter:
        return None
    if is_bad:
        update = "UPDATE adapters SET status = 'rolled_back' WHERE model = ? AND name = ?"
        connection.execute(update, (now.model, now.adapter))
    activate(connection, target)
    return target


def _history(connection: sqlite3.Connection, model: str) -> list[ActivationRow]:
    """Newest first."""
    columns = ", ".join(ACTIVATION_COLUMNS)
    query = f"SELECT {columns} FROM activations WHERE model = ? ORDER BY id DESC"
    return [_activation(row) for row in connection.execute(query, (model,))]


def _newest(connection: sqlite3.Connection, model: str) -> ActivationRow | None:
    return next(iter(_history(connection, model)), None)


def _usable(connection: sqlite3.Connection, model: str) -> set[str | None]:
    query = "SELECT name FROM adapters WHERE model = ? AND status != 'rolled_back'"
    return {None, *(row["name"] for row in connection.execute(query, (model,)))}


def _adapter(row: sqlite3.Row) -> AdapterRow:
    values = dict(row)
    for name in ("gate", "settings"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return AdapterRow(**values)


def _activation(row: sqlite3.Row) -> ActivationRow:
    flags = {name: bool(row[name]) for name in ("is_proved", "is_retried")}
    return ActivationRow(**{**dict(row), **flags})


def _text(document: Mapping[str, Any] | None) -> str | None:
    return None if document is None else json.dumps(document, ensure_ascii=False)
