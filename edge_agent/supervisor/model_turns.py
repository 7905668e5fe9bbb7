"""Whose turn it is when requests wait for several models, and one worker holds one of them.

Why it exists: a change of model takes seconds. In the order of arrival, two clients with a model
each would change it at every request. Therefore requests for the loaded model go before earlier
ones for another model, within two bounds: a request is passed by at most MAX_PASSED later ones, and
while others wait, a model's turn ends after TURN_S, or after TURN_LOADS times as long as its load
took, if that is longer. Then the model that was asked for first is loaded. Flows in: who waits for
which model. Flows out: who may go on. Not here: the loading itself (loaded_model.py), how many may
wait (queue_limit.py). Adapters of one model share its turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edge_agent.store.store import ModelRow
from edge_agent.supervisor.engine_status import State

MAX_PASSED = 16
TURN_S = 10.0
TURN_LOADS = 2.0
LINGER_S = 0.1
"""How long an idle model is kept although another is waited for: the client that was just answered
may ask again."""


@dataclass
class Change:
    """A load, a change of model or an unload under way. `model` None: towards none."""

    model: str | None
    state: State
    reason: str
    task: asyncio.Task[None] | None = None


@dataclass(eq=False)
class WaitingRequest:
    """A request that has no worker yet."""

    row: ModelRow
    since_s: float
    passed: int = 0
    """Later requests for other models that went before it."""
    change: Change | None = None
    """The change that was begun for its model and whose end it has not seen yet."""

    def wants(self, row: ModelRow) -> bool:
        """Whether it waits for this file: a name can mean another one after a `pull`."""
        return (self.row.name, self.row.sha256) == (row.name, row.sha256)


class ModelTurns:
    """For one event loop. `monotonic` gives seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._line: list[WaitingRequest] = []
        self._began_s = monotonic()
        self._turn_s = TURN_S

    @contextmanager
    def waiting(self, row: ModelRow) -> Iterator[WaitingRequest]:
        """Stand in line for a model while the block runs."""
        mine = WaitingRequest(row, self._monotonic())
        self._line.append(mine)
        try:
            yield mine
        finally:
            self._line.remove(mine)

    def begin(self, load_s: float) -> None:
        """A model has been loaded in `load_s`: its turn begins."""
        self._began_s = self._monotonic()
        self._turn_s = max(TURN_S, TURN_LOADS * load_s)

    def announce(self, change: Change) -> None:
        """A change has begun: those who wait for its model shall see how it ends."""
        for one in self._line:
            if one.row.name == change.model:
                one.change = change

    def let_pass(self, mine: WaitingRequest) -> bool:
        """Whether `mine`, whose model is loaded, may go before those who came earlier for others.
        If so, it counts as passing them."""
        earlier = self._line[: self._line.index(mine)]
        passed = [one for one in earlier if not one.wants(mine.row)]
        if any(one.passed >= MAX_PASSED or self.left_s(one) <= 0 for one in passed):
            return False
        for one in passed:
            one.passed += 1
        return True

    def left_s(self, mine: WaitingRequest) -> float:
        """Seconds after which no later request may pass `mine` any more."""
        return max(mine.since_s, self._began_s) + self._turn_s - self._monotonic()

    def is_wanted(self, row: ModelRow) -> bool:
        return any(one.wants(row) for one in self._line)

    def next_after(self, row: ModelRow) -> ModelRow | None:
        """The model that was asked for first among those that are not `row`; None: no other is."""
        others = (one.row for one in self._line if not one.wants(row) and one.change is None)
        return next(others, None)
