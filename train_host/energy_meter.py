"""Joules of each training step, from the sensors that the device part reads.

Flows in: the device that trains. Flows out: joules of a stretch of time or None, and the reason for
None. On a GPU there is no figure: the rails found are the processor's (RAPL), and joules without
the card's would mislead. Not here: which sensors there are (edge_agent/monitor/sensors/).
"""

from __future__ import annotations

from pathlib import Path

from edge_agent.monitor.board_sampler import BoardSampler
from edge_agent.monitor.energy import integrate

COVERED = 0.9
"""Share of a step that must lie between power samples; with less its joules are unknown."""
NOT_OF_A_GPU = "the sensors read here do not measure a GPU"
NO_STEPS = "no step lay between two power samples"


class EnergyMeter:
    """Call `start`, then `lap` for every step, then `close`."""

    def __init__(self, device: str, root: Path = Path("/")) -> None:
        """`root` is the directory that stands for /, in which sensor files are looked for."""
        self._sampler = BoardSampler(root) if device == "cpu" else None
        self._total_j: float | None = None
        self._reason = "" if self._sampler else NOT_OF_A_GPU

    def start(self) -> None:
        if self._sampler:
            self._sampler.start()
            self._sampler.set_busy(True)

    def lap(self, start_s: float, end_s: float) -> float | None:
        """Joules between two instants of the monotonic clock; None when unknown."""
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
        """Why joules are missing; "" when none are."""
        return self._reason

    def close(self) -> None:
        if self._sampler:
            self._sampler.close()
