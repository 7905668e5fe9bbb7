"""Joules of each training step, from the sensors the device part reads.

Flows in: a Sampler that runs, or none. Flows out: joules of a stretch of time, or None; a total and
why there is none. On a GPU nothing is claimed: the rails found are the processor's (RAPL), and a
figure that leaves out the card would mislead. Not here: which sensors there are (edge_agent).
"""

from __future__ import annotations

from pathlib import Path

from edge_agent.monitor.board_sampler import BoardSampler
from edge_agent.monitor.energy import integrate

COVERED = 0.9
"""Share of a step that must lie between power samples, or its joules are not known."""
NOT_OF_A_GPU = "the sensors read here do not measure a GPU"
NO_STEPS = "no step lay between two power samples"


class EnergyMeter:
    """`start`, then `lap` for every step, then `close`."""

    def __init__(self, device: str, root: Path = Path("/")) -> None:
        """`root`: of the sensor files."""
        self._sampler = BoardSampler(root) if device == "cpu" else None
        self._total_j: float | None = None
        self._reason = "" if self._sampler else NOT_OF_A_GPU

    def start(self) -> None:
        if self._sampler:
            self._sampler.start()
            self._sampler.set_busy(True)

    def lap(self, start_s: float, end_s: float) -> float | None:
        """Joules between two instants of the monotonic clock, added to the total."""
        if self._sampler is None or end_s <= start_s:
            return None
        trace = self._sampler.trace(start_s, end_s)
        found = integrate(trace, start_s, end_s)
        if found.covered_s < COVERED * (end_s - start_s):
            self._reason = trace.reason or NO_STEPS
            return None
        self._total_j = (self._total_j or 0.0) + found.joules
        return found.joules

    @property
    def reason(self) -> str:
        """Why joules are missing; empty when none are."""
        return self._reason

    def close(self) -> None:
        if self._sampler:
            self._sampler.close()
