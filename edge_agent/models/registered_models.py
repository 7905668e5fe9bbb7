"""The registered models as documents, and how one is removed: for the daemon and for the CLI alike.

Flows in: the store, the adapter registry, names. Flows out: JSON-ready documents; rows and files
that are gone. Not here: registering one (pull.py), which model is meant (which_model.py), the
adapters themselves (adapter_registry.py).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from edge_agent.models.adapter_registry import AdapterRegistry
from edge_agent.store.store import ModelRow, Store


def model_document(registry: AdapterRegistry, row: ModelRow, tag: str | None) -> dict[str, Any]:
    """The row of MODEL; `adapter` is what answers when MODEL or MODEL:`tag` is asked, None: the
    model itself. Raises AdapterNotFound, AdapterRefused."""
    adapter = registry.chosen(row.name, tag)
    name = row.name if tag is None else f"{row.name}:{tag}"
    return {**asdict(row), "name": name, "adapter": adapter.name if adapter else None}


def remove_model(store: Store, registry: AdapterRegistry, state_dir: Path, name: str) -> None:
    """Remove MODEL, its adapters and its file. Raises ModelNotFound, StoreError.

    Rows go first: a crash leaves a file that nobody names, never a name without its file. A file
    goes only when it lies in STATE/models, is no link, and no other model has it.
    """
    row = store.remove_model(name)
    registry.remove_all(name)
    path = state_dir / row.path
    is_shared = any(state_dir / other.path == path for other in store.models())
    if path.parent == state_dir / "models" and not is_shared and path.is_file():
        path.unlink()
