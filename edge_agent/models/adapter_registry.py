"""The adapters of each model on this machine, and which one answers when MODEL is asked.

Flows in: adapter files and the gate's reports. Flows out: rows, and AdapterRefs for the worker.
Files live under STATE/adapters/MODEL/NAME.gguf, written whole and never changed; the rest is rows
of the store (store/adapter_table.py), read from memory. MODEL and MODEL:latest mean the active
adapter or the base, MODEL:base the base, MODEL:NAME that adapter. Methods that change something
wait for the disk: an event loop calls them in a thread. Imports no NumPy: the front uses it. Not
here: the checks of a file (gguf/adapter_file.py), trying an adapter out (adapt/activation.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from edge_agent.errors import AdapterNotFound, AdapterRefused, RequestError
from edge_agent.gguf.adapter_file import check_adapter
from edge_agent.gguf.model_file import read_gguf
from edge_agent.model_names import BASE_TAG, LATEST_TAG, MODEL_NAME
from edge_agent.models.checked_copy import checked_copy, sha256_if_readable, unlink
from edge_agent.records import AdapterRef
from edge_agent.store import adapter_table
from edge_agent.store.rows import ActivationRow, AdapterRow
from edge_agent.store.store import ModelRow, Store

KEEP_ADAPTERS = 3
TRIAL_S = 600.0
"""A worker that dies this soon after an activation, with the adapter at work, takes it back."""
BASE = AdapterRef(path="", sha256="", scale=0.0)
"""The base, whatever adapter is active."""

CheckFile = Callable[[Path, Path, str], None]
"""(adapter file, base file, SHA-256 of the base) -> None. Raises AdapterRefused."""


def check_file(path: Path, base: Path, base_sha256: str) -> None:
    """Names, dimensions, finite values, the base it was made for. Raises AdapterRefused."""
    check_adapter(path, read_gguf(base), base_sha256)


class AdapterRegistry:
    """Adapters by model and name. `clock` gives Unix seconds."""

    def __init__(
        self,
        store: Store,
        state_dir: Path,
        keep: int = KEEP_ADAPTERS,
        *,
        check: CheckFile = check_file,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._state_dir = state_dir
        self._keep = keep
        self._check = check
        self._clock = clock
        self._scales: dict[tuple[str, str], float] = {}
        self._adding = threading.Lock()
        self._passed: set[tuple[str, str]] = set()
        """(SHA-256 of an adapter's file, SHA-256 of its base) that `check` let pass already."""

    # ---- from memory --------------------------------------------------------------------------

    def adapters(self, model: str | None = None) -> list[AdapterRow]:
        """Oldest first; of every model without `model`."""
        book = self._store.adapters()
        return list(book.adapters.values()) if model is None else book.of(model)

    def adapter(self, model: str, name: str) -> AdapterRow:
        """Raises ModelNotFound, AdapterNotFound."""
        self._store.model(model)
        row = self._store.adapters().adapters.get((model, name))
        if row is None:
            raise self._unknown(model, repr(name[:80]))
        return row

    def by_id(self, model: str, adapter_id: int) -> AdapterRow:
        """By the number llama-server's API calls it. Raises AdapterNotFound."""
        for row in self.adapters(model):
            if row.id == adapter_id:
                return row
        raise self._unknown(model, f"with id {adapter_id}")

    def active(self, model: str) -> AdapterRow | None:
        """What MODEL means; None: the base, also while another file has the model's name."""
        row = self._store.adapters().active(model)
        return row if row is not None and self._fits(row) else None

    def chosen(self, model: str, tag: str | None) -> AdapterRow | None:
        """What MODEL:`tag` means; None: the base. Raises AdapterNotFound, AdapterRefused."""
        if tag in (None, LATEST_TAG):
            return self.active(model)
        if tag == BASE_TAG:
            return None
        row = self.adapter(model, str(tag))
        if not self._fits(row):
            raise _other_base(row)
        return row

    def reference(self, row: AdapterRow) -> AdapterRef:
        """For the worker; at the scale that was set, 1 unless one was."""
        path = str(self._state_dir / row.path)
        return AdapterRef(path, row.sha256, self._scales.get((row.model, row.name), 1.0))

    def set_scale(self, row: AdapterRow, scale: float) -> None:
        """For every request that names none, until the daemon ends or activates it anew."""
        self._scales[row.model, row.name] = scale

    def is_proved(self, model: str) -> bool:
        """Whether a canary has answered with what is active; the base needs none."""
        activation = self._store.adapters().activations.get(model)
        return activation is None or activation.adapter is None or activation.is_proved

    def is_on_trial(self, model: str) -> bool:
        """Whether what is active was activated less than TRIAL_S ago."""
        activation = self._store.adapters().activations.get(model)
        return activation is not None and self._clock() - activation.at < TRIAL_S

    def document(self, row: AdapterRow, *, is_brief: bool = False) -> dict[str, Any]:
        """One adapter as the API and the command line show it; brief: its gate's verdict only."""
        is_active = self.active(row.model) == row
        state = {"is_active": is_active, "is_proved": is_active and self.is_proved(row.model)}
        full = {**asdict(row), "path": str(self._state_dir / row.path), **state}
        if is_brief and row.gate is not None:
            full["gate"] = {key: row.gate.get(key) for key in ("passed", "reasons")}
        return full

    def check_name(self, model: str, name: str) -> None:
        """Raises ModelNotFound, and RequestError for a name no new adapter of the model can get."""
        self._store.model(model)
        if not MODEL_NAME.fullmatch(name) or name in (BASE_TAG, LATEST_TAG):
            why = f"names match {MODEL_NAME.pattern} and are not 'base' or 'latest'"
            raise RequestError(f"{name[:80]!r} cannot be an adapter's name", why, "choose another")
        if (model, name) in self._store.adapters().adapters:
            hint = f"choose another name, or `edge-agent adapters rm {name}` first"
            raise RequestError(f"model {model} has an adapter {name}", "names are not reused", hint)

    # ---- on the disk --------------------------------------------------------------------------

    def add(
        self,
        model: str,
        name: str,
        source_path: Path,
        *,
        source: str,
        settings: Mapping[str, Any] | None = None,
        judged_sha256: str | None = None,
    ) -> AdapterRow:
        """Copy the file, check the copy, then name it; it is a candidate until `set_gate`.

        `judged_sha256`: of the file that was judged; any other file is refused. The oldest adapter
        that is not active makes room for the new one. A name that has this very file already keeps
        it. Raises RequestError, AdapterRefused, StoreError.
        """
        with self._adding:
            known = self._store.adapters().adapters.get((model, name))
            if known is None or known.sha256 != (judged_sha256 or sha256_if_readable(source_path)):
                self.check_name(model, name)
                self._add(
                    self._candidate(model, name, source_path, source, settings, judged_sha256)
                )
                self._make_room(model, name)
        return self.adapter(model, name)

    def set_gate(self, model: str, name: str, gate: Mapping[str, Any], passed: bool) -> None:
        """Store the gate's report. Raises AdapterNotFound, StoreError."""
        self.adapter(model, name)
        status = "passed" if passed else "failed"
        self._store.transact(lambda db: adapter_table.judge(db, model, name, gate, status))
        self._store.add_event("adapter_judged", f"{model}:{name}: {status}")

    def activatable(self, model: str, name: str, *, force: bool) -> AdapterRow:
        """The row, if it may be activated. Raises AdapterNotFound, AdapterRefused.

        The file's SHA-256 is computed each time; its values are looked at once in a process,
        because the same SHA-256 means the same values.
        """
        row = self.adapter(model, name)
        if not self._fits(row):
            raise _other_base(row)
        if row.status != "passed" and not force:
            raise _not_passed(row)
        path = self._state_dir / row.path
        if sha256_if_readable(path) != row.sha256:
            raise AdapterRefused(
                f"{path} is not the file that was registered",
                f"its SHA-256 is not {row.sha256}",
                f"`edge-agent adapters rm {name}`, then learn or import it again; check the disk",
            )
        if (row.sha256, row.base_sha256) not in self._passed:
            self._check(path, self._base_path(model), row.base_sha256)
            self._passed.add((row.sha256, row.base_sha256))
        return row

    def activate(self, model: str, name: str, *, force: bool, reason: str) -> AdapterRow:
        """From now on MODEL is this adapter; unproved until `prove`. Raises AdapterRefused."""
        row = self.activatable(model, name, force=force)
        self._scales.pop((model, name), None)
        if self.active(model) != row:
            self._put(ActivationRow(self._clock(), model, name, reason, is_proved=False))
            self._store.add_event("adapter_activated", f"{model}:{name}: {reason}")
        return row

    def prove(self, model: str, name: str) -> None:
        """The canary has answered with it."""
        self._store.transact(lambda db: adapter_table.prove(db, model, name))

    def deactivate(self, model: str, reason: str) -> None:
        """From now on MODEL is the base. Raises ModelNotFound, StoreError."""
        self._store.model(model)
        if self._store.adapters().active(model) is not None:
            self._put(ActivationRow(self._clock(), model, None, reason))
            self._store.add_event("adapter_deactivated", f"{model}: {reason}")

    def previous(self, model: str) -> AdapterRow | None:
        """What a rollback would go back to; None: the base."""
        row = self._store.transact(lambda db: adapter_table.previous(db, model))
        name = row.adapter if row else None
        return self._store.adapters().adapters.get((model, name)) if name else None

    def rollback(
        self, model: str, reason: str, *, leaving: str | None = None, is_bad: bool = True
    ) -> str | None:
        """Go back to what was active before; the name of what is active now, None for the base.

        `leaving`: only if this adapter is active; without it whatever is. `is_bad` marks what was
        left, so that it is not activated again unforced. Raises RequestError when `leaving` is not
        given and there is nothing to go back to.
        """
        self._store.model(model)
        current = self._store.adapters().activations.get(model)
        name = current.adapter if current else None
        now = ActivationRow(self._clock(), model, leaving or name, reason)
        left = self._store.transact(lambda db: adapter_table.roll_back(db, now, is_bad))
        if left is not None:
            detail = f"{model}: {now.adapter or BASE_TAG} -> {left.adapter or BASE_TAG}: {reason}"
            self._store.add_event("adapter_rolled_back", detail)
        elif leaving is None:
            hint = "`edge-agent adapters activate NAME` makes one active"
            raise RequestError(f"model {model} has nothing to go back to", "", hint)
        active = self._store.adapters().active(model)
        return active.name if active else None

    def note_start(self) -> None:
        """A daemon begins. What an earlier one activated and could not prove gets this one chance;
        what had it already is rolled back."""
        for model, activation in self._store.adapters().activations.items():
            if activation.adapter is None or activation.is_proved:
                continue
            if not self._store.transact(partial(adapter_table.mark_start, model=model)):
                why = "the daemon ended twice before its canary had answered"
                self.rollback(model, why, leaving=activation.adapter, is_bad=False)

    def remove(self, model: str, name: str) -> None:
        """The row goes first: a crash may leave a file nobody names, never a name without one.

        Raises AdapterNotFound, and RequestError for the active one.
        """
        row = self.adapter(model, name)
        if self._store.adapters().active(model) == row:
            hint = "`edge-agent adapters deactivate` first, or activate another one"
            raise RequestError(f"adapter {name} of {model} is active", "it cannot be removed", hint)
        self._remove(row)
        self._store.add_event("adapter_removed", f"{model}:{name}")

    def remove_all(self, model: str) -> None:
        """With its model. Raises StoreError."""
        rows = self.adapters(model)
        self._store.transact(lambda db: adapter_table.remove_model(db, model))
        for row in rows:
            unlink(self._state_dir / row.path)

    # ---- parts --------------------------------------------------------------------------------

    def _unknown(self, model: str, which: str) -> AdapterNotFound:
        known = ", ".join(row.name for row in self.adapters(model)) or "none yet"
        hint = "`edge-agent adapters list` shows them; MODEL:base is the model itself"
        return AdapterNotFound(f"model {model} has no adapter {which}", f"it has: {known}", hint)

    def _fits(self, row: AdapterRow) -> bool:
        models = (model for model in self._store.models() if model.name == row.model)
        return any(model.sha256 == row.base_sha256 for model in models)

    def _put(self, row: ActivationRow) -> None:
        self._store.transact(lambda db: adapter_table.activate(db, row))

    def _base_path(self, model: str) -> Path:
        return self._state_dir / self._store.model(model).path

    def _check_new(
        self, path: Path, sha256: str, source: Path, base: ModelRow, judged_sha256: str | None
    ) -> None:
        """Check the copy at `path`; the error names `source`, the file that the user gave."""
        if judged_sha256 not in (None, sha256):
            what = f"{source} is not the file that was judged"
            why = f"its SHA-256 is {sha256}, expected {judged_sha256}"
            raise AdapterRefused(what, why, "learn it again; check the disk")
        try:
            self._check(path, self._state_dir / base.path, base.sha256)
        except AdapterRefused as error:
            what = f"the adapter {source} cannot be used with {base.name}"
            raise AdapterRefused(what, error.why or error.what, error.hint) from error
        self._passed.add((sha256, base.sha256))

    def _candidate(
        self,
        model: str,
        name: str,
        source_path: Path,
        source: str,
        settings: Mapping[str, Any] | None,
        judged_sha256: str | None,
    ) -> AdapterRow:
        """Copy and check the file; its row. Raises AdapterRefused, StoreError."""
        path, base = f"adapters/{model}/{name}.gguf", self._store.model(model)
        check = partial(self._check_new, source=source_path, base=base, judged_sha256=judged_sha256)
        sha256, size_bytes = checked_copy(source_path, self._state_dir / path, check)
        return AdapterRow(
            model=model,
            name=name,
            sha256=sha256,
            path=path,
            size_bytes=size_bytes,
            base_sha256=base.sha256,
            source=source,
            status="candidate",
            gate=None,
            settings=None if settings is None else dict(settings),
            created_at=self._clock(),
        )

    def _add(self, row: AdapterRow) -> None:
        self._store.transact(partial(adapter_table.add, row=row))
        detail = f"{row.model}:{row.name}, {row.source}, SHA-256 {row.sha256}"
        self._store.add_event("adapter_added", detail)

    def _make_room(self, model: str, newest: str) -> None:
        """Remove the oldest ones above the limit: never the active, nor the new one."""
        rows = self.adapters(model)
        kept = {newest, getattr(self._store.adapters().active(model), "name", None)}
        spare = [row for row in rows if row.name not in kept]
        for row in spare[: max(0, len(rows) - self._keep)]:
            self._remove(row)
            why = f"{model}:{row.name}: at most {self._keep} are kept"
            self._store.add_event("adapter_removed", why)

    def _remove(self, row: AdapterRow) -> None:
        self._store.transact(lambda db: adapter_table.remove(db, row.model, row.name))
        unlink(self._state_dir / row.path)


def _not_passed(row: AdapterRow) -> AdapterRefused:
    reasons = {
        "candidate": "no gate has judged it yet",
        "failed": "it failed its gate",
        "rolled_back": "it was rolled back",
    }
    return AdapterRefused(
        f"adapter {row.name} of {row.model} is not activated",
        reasons.get(row.status, f"its status is {row.status}"),
        f"see `edge-agent adapters show {row.name}`; --force activates it all the same",
    )


def _other_base(row: AdapterRow) -> AdapterRefused:
    return AdapterRefused(
        f"adapter {row.name} of {row.model} cannot be used",
        f"it was made for a file with SHA-256 {row.base_sha256}, {row.model} is another one now",
        "pull the model it was made for under that name, or learn it again",
    )
