"""The adapters on this machine, for the CLI, with or without a daemon.

Flows in: the daemon or the state directory (local_state.py). Flows out: plain documents, as the API
has them (server/adapters.py). Without a daemon no engine can try an adapter out: an adapter that is
activated then is asked its canary questions when the daemon starts. Not here: the rules
(models/adapter_registry.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edge_agent.client.connection import ANSWER_TIMEOUT_S, Client
from edge_agent.client.local_state import LocalState, open_state
from edge_agent.errors import AdapterRefused
from edge_agent.model_names import DEFAULT_NAME

PIECE_BYTES = 64 * 1024
REASON = "a user asked for it"


@contextmanager
def open_adapters(
    state_dir: Path | None, environ: Mapping[str, str], timeout_s: float = ANSWER_TIMEOUT_S
) -> Iterator[Adapters]:
    """The daemon's adapters if one answers, else the state directory's. Raises DaemonRunning."""
    with open_state(state_dir, environ, timeout_s) as found:
        yield DaemonAdapters(found) if isinstance(found, Client) else LocalAdapters(found)


@dataclass(frozen=True)
class DaemonAdapters:
    """Through /adapters of the running daemon.

    `model` None: the model that is meant (models/which_model.py), in `adapters` every model.
    Methods raise ModelNotFound, AdapterNotFound, AdapterRefused, and what the daemon answers.
    """

    client: Client
    is_tried_out: bool = True
    """Whether `activate` returns when the canary questions are answered."""

    def adapters(self, model: str | None) -> list[dict[str, Any]]:
        query = f"?model={quote(model, safe='')}" if model else ""
        return list(self.client.get(f"/adapters{query}").get("adapters") or [])

    def adapter(self, model: str | None, name: str) -> dict[str, Any]:
        return self.client.get(_path(model, name))

    def activate(self, model: str | None, name: str, force: bool) -> dict[str, Any]:
        return self._post("activate", model, {"name": name, "force": force})

    def deactivate(self, model: str | None) -> dict[str, Any]:
        return self._post("deactivate", model, {})

    def rollback(self, model: str | None) -> dict[str, Any]:
        return self._post("rollback", model, {})

    def remove(self, model: str | None, name: str) -> None:
        self.client.delete(_path(model, name), {})

    def add(self, model: str | None, name: str, path: Path) -> dict[str, Any]:
        return self._post("import", model, {"name": name, "path": str(path)})

    def export(self, model: str | None, name: str) -> Iterator[bytes]:
        return self.client.pieces(f"{_path(model, name)}/file")

    def _post(self, verb: str, model: str | None, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.client.post(f"/adapters/{verb}", {**body, "model": model})


def _path(model: str | None, name: str) -> str:
    return f"/adapters/{quote(model or DEFAULT_NAME, safe='')}/{quote(name, safe='')}"


@dataclass(frozen=True)
class LocalAdapters:
    """The same, directly."""

    local: LocalState
    is_tried_out: bool = False

    def adapters(self, model: str | None) -> list[dict[str, Any]]:
        registry = self.local.registry
        rows = registry.adapters(self.local.model(model) if model else None)
        return [registry.document(row, is_brief=True) for row in rows]

    def adapter(self, model: str | None, name: str) -> dict[str, Any]:
        registry = self.local.registry
        return registry.document(registry.adapter(self.local.model(model), name))

    def activate(self, model: str | None, name: str, force: bool) -> dict[str, Any]:
        found = self.local.model(model)
        self.local.registry.activate(found, name, force=force, reason=REASON)
        return self._active(found)

    def deactivate(self, model: str | None) -> dict[str, Any]:
        found = self.local.model(model)
        self.local.registry.deactivate(found, REASON)
        return self._active(found)

    def rollback(self, model: str | None) -> dict[str, Any]:
        found = self.local.model(model)
        self.local.registry.rollback(found, REASON)
        return self._active(found)

    def remove(self, model: str | None, name: str) -> None:
        self.local.registry.remove(self.local.model(model), name)

    def add(self, model: str | None, name: str, path: Path) -> dict[str, Any]:
        registry = self.local.registry
        return registry.document(
            registry.add(self.local.model(model), name, path, source="imported")
        )

    def export(self, model: str | None, name: str) -> Iterator[bytes]:
        row = self.local.registry.adapter(self.local.model(model), name)
        path = self.local.state.path / row.path
        try:
            with path.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece
        except OSError as error:
            hint = f"`edge-agent adapters rm {name}`, then learn or import it again"
            why = error.strerror or str(error)
            raise AdapterRefused(f"the adapter {path} cannot be read", why, hint) from error

    def _active(self, model: str) -> dict[str, Any]:
        row = self.local.registry.active(model)
        return {"model": model, "active": row.name if row else None}


Adapters = DaemonAdapters | LocalAdapters
