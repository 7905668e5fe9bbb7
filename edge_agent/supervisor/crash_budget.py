"""Counts worker crashes per model and says when one has crashed too often.

Flows in: crashes with their reason and time. Flows out: the crashes inside the window, and
ModelQuarantined once the budget is spent. A quarantine stays until somebody lifts it, because a
model that kills its worker five times in five minutes does so again; the other models are not
touched. Pure: the clocks are given. Not here: restarting (supervisor.py).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from edge_agent.clocks import Clocks
from edge_agent.errors import ModelQuarantined


@dataclass(frozen=True)
class Quarantined:
    """Why and since when (Unix seconds) a model is quarantined; `revision` is the row's added_at,
    so that pulling the model again lifts it."""

    model: str
    reason: str
    since: float
    revision: float

    def error(self) -> ModelQuarantined:
        return ModelQuarantined(
            f"model {self.model} is quarantined",
            self.reason,
            "lift it with `edge-agent stop`, a restart of the daemon, or by pulling it again",
        )


class CrashBudget:
    """`budget` crashes within `window_s` seconds quarantine a model."""

    def __init__(self, budget: int, window_s: float, clocks: Clocks) -> None:
        self._budget = budget
        self._window_s = window_s
        self._clocks = clocks
        self._crashes: dict[str, deque[float]] = {}
        self._verdicts: dict[str, Quarantined] = {}

    def add_crash(self, model: str, revision: float, reason: str) -> Quarantined | None:
        """Count one crash. The verdict when it was the last one allowed, else None."""
        self._crashes.setdefault(model, deque()).append(self._clocks.monotonic())
        count = self.crashes(model)
        if count < self._budget:
            return None
        why = f"{count} worker crashes within {self._window_s:g} s, the last one: {reason}"
        verdict = self._verdicts[model] = Quarantined(model, why, self._clocks.unix(), revision)
        return verdict

    def crashes(self, model: str) -> int:
        """Crashes of this model inside the window that ends now."""
        times = self._crashes.get(model, deque())
        while times and times[0] < self._clocks.monotonic() - self._window_s:
            times.popleft()
        return len(times)

    def verdict(self, model: str) -> Quarantined | None:
        """The quarantine of this model, if it is in one."""
        return self._verdicts.get(model)

    def check(self, model: str, revision: float) -> None:
        """Raises ModelQuarantined, unless the model has been registered anew since."""
        verdict = self._verdicts.get(model)
        if verdict is None:
            return
        if verdict.revision == revision:
            raise verdict.error()
        self._forget(model)

    def lift(self) -> list[str]:
        """Forget every quarantine and the crashes behind it. Returns the models lifted."""
        lifted = list(self._verdicts)
        for model in lifted:
            self._forget(model)
        return lifted

    def _forget(self, model: str) -> None:
        del self._verdicts[model]
        self._crashes.pop(model, None)
