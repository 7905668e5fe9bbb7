"""What the outside may know about the engine at one moment.

Flows in: nothing. Flows out: the frozen record that /status, /health and `edge-agent ps` show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_agent.records import ModelInfo

State = Literal["idle", "loading", "ready", "restarting", "quarantined", "stopping"]


@dataclass(frozen=True)
class EngineStatus:
    """`state` is for programs, `reason` for people."""

    state: State
    model: str | None = None
    """The loaded model, or the one a load, a restart or a quarantine is about."""
    info: ModelInfo | None = None
    worker_pid: int | None = None
    reason: str = ""
    crashes: int = 0
    """Of `model`, inside the crash window."""
    in_flight: int = 0
    queued: int = 0
    expires_at: float | None = None
    """Unix seconds at which an unused model is unloaded; None: never, or none is loaded."""
    last_load_s: float | None = None
    restarts: int = 0
    """Workers started in place of a crashed one, since the daemon's start."""
    adapter: str | None = None
    """What `model` is answered with unless a request says otherwise; None: the base."""
