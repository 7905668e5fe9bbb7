"""The adapters on this machine, for the CLI, with or without a daemon.

Flows in: a state directory. Flows out: plain documents, as the API has them (server/adapters.py).
While a daemon runs everything goes through it; without one, STATE/lock is held for as long as the
library is open, as models.py does. Without a daemon no engine can try an adapter out: what is
activated then gets its canary when the daemon starts. Not here: the rules
(models/adapter_registry.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from edge_agent.client.connection import ANSWER_TIMEOUT_S, Client, find_daemon, state_dir_of
from edge_agent.errors import AdapterRefused, DaemonNotRunning
from edge_agent.models.which_model import ABSENT, which_model
from edge_agent.state_dir import StateDir

if TYPE_CHECKING:
    from edge_agent.models.adapter_registry import AdapterRegistry
    from edge_agent.store.store import Store

PIECE_BYTES = 64 * 1024
REASON = "a user asked for it"
DEFAULT_MODEL = "default"
"""What the API calls the model nobody names."""


class Adapters(Protocol):
    """`model` None: the default model, in `adapters` every model. Methods raise ModelNotFound,
    AdapterNotFound, AdapterRefused, and what the daemon answers."""

    @property
    def is_tried_out(self) -> bool:
        """Whether `activate` returns when the canary has answered."""
        ...

    def adapters(self, model: str | None) -> list[dict[str, Any]]: ...
    def adapter(self, model: str | None, name: str) -> dict[str, Any]: ...
    def activate(self, model: str | None, name: str, force: bool) -> dict[str, Any]: ...
    def deactivate(self, model: str | None) -> dict[str, Any]: ...
    def rollback(self, model: str | None) -> dict[str, Any]: ...
    def remove(self, model: str | None, name: str) -> None: ...
    def add(self, model: str | None, name: str, path: Path) -> dict[str, Any]: ...
    def export(self, model: str | None, name: str) -> Iterator[bytes]: ...


@contextmanager
def open_adapters(
    state_dir: Path | None, environ: Mapping[str, str], timeout_s: float = ANSWER_TIMEOUT_S
) -> Iterator[Adapters]:
    """The daemon's adapters if one answers, else the state directory's. Raises DaemonRunning."""
    try:
        client = find_daemon(state_dir, environ, timeout_s)
    except DaemonNotRunning:
        pass
    else:
        yield DaemonAdapters(client)
        return
    from edge_agent.config import load_settings
    from edge_agent.models.adapter_registry import AdapterRegistry
    from edge_agent.store.store import Store

    state = StateDir(state_dir_of(state_dir, environ))
    state.acquire()
    try:
        settings = load_settings({"state_dir": state.path})
        with Store(state.database) as store:
            registry = AdapterRegistry(store, state.path, settings.keep_adapters)
            yield LocalAdapters(state, store, registry, settings.model)
    finally:
        state.release()


@dataclass(frozen=True)
class DaemonAdapters:
    """Through /adapters of the running daemon."""

    client: Client
    is_tried_out: bool = True

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
        named = {"model": model} if model else {}
        return self.client.post(f"/adapters/{verb}", {**body, **named})


def _path(model: str | None, name: str) -> str:
    return f"/adapters/{quote(model or DEFAULT_MODEL, safe='')}/{quote(name, safe='')}"


@dataclass(frozen=True)
class LocalAdapters:
    """Directly; STATE/lock is held by open_adapters. `default`: the model the settings name."""

    state: StateDir
    store: Store
    registry: AdapterRegistry
    default: str | None
    is_tried_out: bool = False

    def adapters(self, model: str | None) -> list[dict[str, Any]]:
        name = None if model is None or model in ABSENT else self._model(model)
        rows = self.registry.adapters(name)
        return [self.registry.document(row, is_brief=True) for row in rows]

    def adapter(self, model: str | None, name: str) -> dict[str, Any]:
        return self.registry.document(self.registry.adapter(self._model(model), name))

    def activate(self, model: str | None, name: str, force: bool) -> dict[str, Any]:
        self.registry.activate(self._model(model), name, force=force, reason=REASON)
        return self._active(model)

    def deactivate(self, model: str | None) -> dict[str, Any]:
        self.registry.deactivate(self._model(model), REASON)
        return self._active(model)

    def rollback(self, model: str | None) -> dict[str, Any]:
        self.registry.rollback(self._model(model), REASON)
        return self._active(model)

    def remove(self, model: str | None, name: str) -> None:
        self.registry.remove(self._model(model), name)

    def add(self, model: str | None, name: str, path: Path) -> dict[str, Any]:
        row = self.registry.add(self._model(model), name, path, source="imported")
        return self.registry.document(row)

    def export(self, model: str | None, name: str) -> Iterator[bytes]:
        path = self.state.path / self.registry.adapter(self._model(model), name).path
        try:
            with path.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece
        except OSError as error:
            hint = f"`edge-agent adapters rm {name}`, then learn or import it again"
            why = error.strerror or str(error)
            raise AdapterRefused(f"the adapter {path} cannot be read", why, hint) from error

    def _active(self, model: str | None) -> dict[str, Any]:
        name = self._model(model)
        row = self.registry.active(name)
        return {"model": name, "active": row.name if row else None}

    def _model(self, named: str | None) -> str:
        """Raises ModelNotFound, UsageError."""
        return which_model(self.store, named, self.default)[0].name
