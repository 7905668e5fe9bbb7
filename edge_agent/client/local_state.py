"""Where a command finds what it asks for: the running daemon, else the state directory itself.

Flows in: a state directory. Flows out: a Client, or a LocalState that holds STATE/lock for as long
as it is open, so that one process writes. Not here: what is asked (models.py, adapters.py,
feedback.py), learning (lessons.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.client.connection import ANSWER_TIMEOUT_S, Client, find_daemon, state_dir_of
from edge_agent.errors import DaemonNotRunning
from edge_agent.state_dir import StateDir

if TYPE_CHECKING:
    from edge_agent.config import Settings
    from edge_agent.models.adapter_registry import AdapterRegistry
    from edge_agent.store.store import ModelRow, Store


@dataclass(frozen=True)
class LocalState:
    """The state directory while no daemon runs. What is slow to import is imported when needed."""

    state: StateDir
    store: Store

    @cached_property
    def settings(self) -> Settings:
        from edge_agent.config import load_settings

        return load_settings({"state_dir": self.state.path})

    @cached_property
    def registry(self) -> AdapterRegistry:
        from edge_agent.models.adapter_registry import AdapterRegistry

        return AdapterRegistry(self.store, self.state.path, self.settings.keep_adapters)

    def which_model(self, named: str | None) -> tuple[ModelRow, str | None]:
        """The model that is meant, and its tag; none is loaded here. Raises ModelNotFound,
        UsageError."""
        from edge_agent.models.which_model import which_model

        return which_model(self.store, named, self.settings.model)

    def model(self, named: str | None) -> str:
        """The name of the model that is meant. Raises ModelNotFound, UsageError."""
        return self.which_model(named)[0].name


@contextmanager
def open_state(
    state_dir: Path | None, environ: Mapping[str, str], timeout_s: float = ANSWER_TIMEOUT_S
) -> Iterator[Client | LocalState]:
    """The daemon, if one answers, else the state directory. Raises DaemonRunning."""
    try:
        client = find_daemon(state_dir, environ, timeout_s)
    except DaemonNotRunning:
        pass
    else:
        yield client
        return
    from edge_agent.store.store import Store

    state = StateDir(state_dir_of(state_dir, environ))
    state.acquire()
    try:
        with Store(state.database) as store:
            yield LocalState(state, store)
    finally:
        state.release()
