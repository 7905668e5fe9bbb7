"""What every handler works with, and the one way a generation runs and is recorded.

Flows in: a Generate record from one of the APIs. Flows out: the supervisor's chunks, with the end's
energy and heat filled in, and one GenerationRow in the store and the metrics for every request that
got this far, whether it ended, failed or lost its client. Not here: HTTP (openai.py, ollama.py),
scheduling (supervisor/supervisor.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from edge_agent.adapt.recent_answers import RecentAnswers
from edge_agent.config import Settings
from edge_agent.engine.memory_check import wanted_n_ctx
from edge_agent.models.adapter_registry import AdapterRegistry
from edge_agent.monitor.monitor import Monitor
from edge_agent.server.limits import Limits
from edge_agent.server.metrics import Metrics
from edge_agent.store.store import ModelRow, Store
from edge_agent.supervisor.supervisor import Supervisor

_LOG = logging.getLogger(__name__)


@dataclass
class Requests:
    """Counters since the daemon's start, for /status."""

    total: int = 0
    failed: int = 0
    in_flight: int = 0


@dataclass(frozen=True)
class Service:
    """The parts behind the API. `clock` gives Unix seconds."""

    supervisor: Supervisor
    store: Store
    settings: Settings
    token: str
    clock: Callable[[], float]
    limits: Limits
    monitor: Monitor
    metrics: Metrics = field(default_factory=Metrics)
    requests: Requests = field(default_factory=Requests)
    answers: RecentAnswers = field(default_factory=RecentAnswers)

    @property
    def registry(self) -> AdapterRegistry:
        return self.supervisor.registry

    def n_ctx(self) -> int:
        """Tokens of the largest context that a registered model gets: which one a request means
        stands in its body, and which one is loaded changes."""
        rows = self.store.models()
        return max((wanted_n_ctx(row.n_ctx_train, self.settings.ctx) for row in rows), default=0)

    def slot_n_ctx(self, row: ModelRow) -> int:
        """Tokens of a slot of this model: what it has when it is loaded, else what the settings
        give where memory allows."""
        info = self.supervisor.status().info
        is_loaded = info is not None and (info.name, info.sha256) == (row.name, row.sha256)
        return (
            info.n_ctx if info and is_loaded else wanted_n_ctx(row.n_ctx_train, self.settings.ctx)
        )


SERVICE = web.AppKey("service", Service)
