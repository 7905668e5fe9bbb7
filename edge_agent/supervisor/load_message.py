"""Builds a worker's Load message, remembering what this process has already proved about a file.

Flows in: a registered model. Flows out: records.Load. The first load of a file carries its SHA-256,
so that the worker hashes it and plans its memory; while inode, size and modification time stay the
same, later loads carry the plan instead, and a crashed worker is back sooner. Not here: reading the
file, which only the worker and `pull` do.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from edge_agent.errors import ModelNotFound
from edge_agent.records import EngineSettings, Load, MemoryPlan, ModelInfo
from edge_agent.store.store import ModelRow

Identity = tuple[int, int, int]
"""st_ino, st_size, st_mtime_ns."""


class LoadMessages:
    """Knows, per path, the identity, hash and memory plan of the last successful load."""

    def __init__(self, root: Path, settings: EngineSettings) -> None:
        self._root = root
        self._settings = settings
        self._proved: dict[Path, tuple[Identity, str, MemoryPlan, EngineSettings]] = {}
        self.is_small = False
        """Load with one slot, whatever the settings say: the guard's wish."""
        self.is_shared = False
        """Load without a repacked copy of the weights: a trainer maps the same file."""

    @property
    def settings(self) -> EngineSettings:
        """Those of the next load."""
        slots = 1 if self.is_small else self._settings.slots
        repack = self._settings.repack and not self.is_shared
        return msgspec.structs.replace(self._settings, slots=slots, repack=repack)

    def load_message(self, row: ModelRow) -> tuple[Load, Identity]:
        """Raises ModelNotFound when the file is gone."""
        path = self._root / row.path
        identity = _identity(path, row.name)
        proved = self._proved.get(path)
        is_proved = proved is not None and proved[:2] == (identity, row.sha256)
        plan = proved[2] if proved and is_proved and proved[3] == self.settings else None
        load = Load(
            name=row.name,
            path=str(path),
            settings=self.settings,
            sha256=None if is_proved else row.sha256,
            plan=plan,
        )
        return load, identity

    def remember(self, row: ModelRow, identity: Identity, info: ModelInfo) -> None:
        """The file with this identity, taken before the load, has just been loaded."""
        plan = MemoryPlan(
            n_ctx=info.n_ctx,
            slots=info.slots,
            tensor_bytes=info.tensor_bytes,
            kv_bytes=info.kv_bytes,
            compute_bytes=info.compute_bytes,
        )
        self._proved[self._root / row.path] = (identity, row.sha256, plan, self.settings)

    def forget(self, row: ModelRow) -> None:
        """A load failed: prove everything again next time."""
        self._proved.pop(self._root / row.path, None)


def _identity(path: Path, name: str) -> Identity:
    try:
        found = os.stat(path)
    except OSError as error:
        hint = f"register it again: `edge-agent pull` with --name {name}"
        why = error.strerror or str(error)
        raise ModelNotFound(f"the file of model {name}, {path}, is gone", why, hint) from error
    return found.st_ino, found.st_size, found.st_mtime_ns
