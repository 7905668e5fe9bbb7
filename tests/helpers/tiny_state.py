"""Puts the tiny model into a store."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edge_agent.gguf.model_file import read_gguf
from edge_agent.models.pull import model_row
from edge_agent.store.store import Store


def register_tiny(store: Store, base: Path) -> None:
    sha256 = hashlib.sha256(base.read_bytes()).hexdigest()
    gguf = read_gguf(base)
    store.add_model(model_row(gguf, name="tiny", sha256=sha256, source="test", added_at=1.0))
