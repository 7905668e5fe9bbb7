"""A real sampler without a thread, on a tree of files; its time passes when a test says so."""

from __future__ import annotations

from pathlib import Path

from waiting import ManualClock

from edge_agent.monitor.board_sampler import BoardSampler, Snapshot


class SteppedSampler(BoardSampler):
    """Does the work of its thread when told. `options` are BoardSampler's."""

    def __init__(self, root: Path, **options: object) -> None:
        self.clock = ManualClock()
        super().__init__(root, monotonic=self.clock, **options)  # type: ignore[arg-type]

    def step(self, seconds: float = 0.0, ticks: int = 1) -> None:
        """`ticks` times: let `seconds` pass, then do the work that is due."""
        for _ in range(ticks):
            self.clock.now_s += seconds
            self._work(self._watch.turn)

    def look(self) -> Snapshot:
        """A new snapshot, one second after the last one."""
        self.step(1.0)
        seen = self.snapshot()
        assert seen is not None and seen.at_s == self.clock.now_s
        return seen
