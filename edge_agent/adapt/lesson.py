"""What one lesson is asked for, and how far it has come.

Flows in: a LessonRequest from the command line or HTTP; the trainer's records, through
lesson_runner.py. Flows out: `LessonState.as_json`, the one JSON form of a lesson (GET /adapt,
`adapt status`, `adapt run --json`). Not here: carrying it out (lesson_runner.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from edge_agent.adapt.gate.gate import GateReport
from edge_agent.adapt.messages import Finished, Planned, TrainingProgress
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.errors import EdgeAgentError, UsageError
from edge_agent.model_names import BASE_TAG, LATEST_TAG

LessonPhase = Literal["idle", "running", "paused", "judging", "finished", "failed", "stopped"]


class LessonRequest(msgspec.Struct, frozen=True):
    """What to learn. `data`: a path of JSONL, or "feedback"."""

    name: str
    model: str
    data: str
    settings: RunSettings = RunSettings()
    activate: bool = True


@dataclass
class LessonState:
    """The lesson under way, or the last one. `started_at` is Unix seconds, `joules` those of the
    whole board while it was trained."""

    request: LessonRequest
    state: LessonPhase = "running"
    started_at: float = 0.0
    pause_reason: str = ""
    progress: TrainingProgress | None = None
    planned: Planned | None = None
    finished: Finished | None = None
    gate: GateReport | None = None
    is_active: bool = False
    error: EdgeAgentError | None = None
    joules: float | None = None
    """None as well when a part of the lesson was not measured."""
    rows: int | None = None
    """Taught and validated on."""
    listeners: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)
    watchers: list[asyncio.Queue[dict[str, Any] | None]] = field(default_factory=list)

    def publish(self, event: str, fields: dict[str, Any]) -> None:
        """Hand an event to every listener and watcher."""
        for tell in self.listeners:
            tell({"event": event, **fields})
        for watcher in self.watchers:
            _tell(watcher, {"event": event, **fields})

    @contextmanager
    def watched(self, tell: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """Hands every event to `tell` as it is published."""
        self.listeners.append(tell)
        try:
            yield
        finally:
            self.listeners.remove(tell)

    def end(self) -> None:
        """End every watcher's stream."""
        for watcher in self.watchers:
            _tell(watcher, None)

    def as_json(self) -> dict[str, Any]:
        """For GET /adapt and `adapt status`; null where nothing is known yet."""
        finished = self.finished
        return {
            "state": self.state,
            "name": self.request.name,
            "model": self.request.model,
            "data": self.request.data,
            "started_at": self.started_at,
            "pause_reason": self.pause_reason or None,
            "planned": msgspec.to_builtins(self.planned),
            "progress": msgspec.to_builtins(self.progress),
            "result": None if finished is None else self._result(finished),
            "error": None if self.error is None else _error_json(self.error),
        }

    def outcome(self, ended_at: float) -> dict[str, Any]:
        """How it ended, for later: the result's members, if there is one, beside the state."""
        document = self.as_json()
        kept = ("state", "name", "model", "data", "started_at", "error")
        head = {key: document[key] for key in kept}
        return {**(document["result"] or {}), **head, "ended_at": ended_at}

    def _result(self, finished: Finished) -> dict[str, Any]:
        return {
            "name": self.request.name,
            "model": self.request.model,
            "adapter_path": finished.adapter_path,
            "adapter_sha256": finished.adapter_sha256,
            "layers": finished.layers,
            "losses": finished.losses,
            "tok_s": finished.tok_s,
            "train_s": finished.train_s,
            "steps": finished.steps,
            "rows": self.rows,
            "peak_rss_anon_bytes": finished.peak_rss_anon_bytes,
            "joules": self.joules,
            "influence": finished.influence,
            "trials": finished.trials,
            "gate": self.gate.as_json() if self.gate else None,
            "is_active": self.is_active,
        }


def _error_json(error: EdgeAgentError) -> dict[str, str]:
    return {"code": error.code, "what": error.what, "why": error.why, "hint": error.hint}


def _tell(watcher: asyncio.Queue[dict[str, Any] | None], event: dict[str, Any] | None) -> None:
    """Queue an event, or None for the end. A watcher that does not read loses its oldest event."""
    if watcher.full():
        watcher.get_nowait()
    watcher.put_nowait(event)


def taught_model(model: str, tag: str | None) -> str:
    """MODEL, when a lesson may be asked for as MODEL:`tag`. Raises UsageError for an adapter: a
    lesson begins at the base."""
    if tag in (None, BASE_TAG, LATEST_TAG):
        return model
    raise UsageError(
        f"{model}:{tag} cannot be taught",
        "a lesson makes a new adapter beside the base; it does not go on from another adapter",
        f"name {model}; train on the rows of both lessons to keep what {tag} knows",
    )
