"""Decides whether one more request may come in, so that a queue never grows without bound.

Flows in: how many requests the worker holds and how many it decodes together. Flows out: a Ticket,
or Overloaded with an estimate of when to come back, or ShuttingDown. Not here: the order in which
admitted requests run, which is the worker's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edge_agent.errors import Overloaded, ShuttingDown

MAX_RETRY_AFTER_S = 60
ASSUMED_REQUEST_S = 5.0
"""Length of a request before any has been seen."""
DURATIONS_KEPT = 32
GUARD_RETRY_S = 15
"""The guard takes a stage back after 10 s of calm (monitor/pressure_guard.py)."""


@dataclass
class Ticket:
    """One admitted request. `is_waiting` until the worker counts it itself."""

    is_waiting: bool = True


class QueueLimit:
    """At most `slots + max_queue` requests, whether they wait here or are in the worker."""

    def __init__(self, max_queue: int) -> None:
        self._max_queue = max_queue
        self._tickets: dict[int, Ticket] = {}
        self._durations_s: deque[float] = deque(maxlen=DURATIONS_KEPT)
        self._empty = asyncio.Event()
        self._empty.set()
        self.is_closed = False
        self.refusal: str | None = None
        """Why the guard lets nobody in; None when it does."""
        self.reservation: str | None = None
        """Why somebody else has the whole board; None when nobody has."""

    @property
    def waiting(self) -> int:
        """Admitted, and not yet handed to a worker."""
        return sum(ticket.is_waiting for ticket in self._tickets.values())

    def check_guard(self) -> None:
        """Raises Overloaded while the board is under pressure, or reserved."""
        reason = self.refusal or self.reservation
        if reason is not None:
            raise Overloaded(
                "no new request is admitted now",
                reason,
                "try again when that is over; `edge-agent status` shows it",
                retry_after_s=GUARD_RETRY_S,
            )

    @contextmanager
    def admit(self, *, inside: int, slots: int, extra: int = 0) -> Iterator[Ticket]:
        """Count one request while the block runs. `inside`: requests the worker holds now.

        `extra` places exist for small questions on top. Raises Overloaded, ShuttingDown.
        """
        if self.is_closed:
            raise shutting_down()
        ahead = inside + self.waiting
        if ahead >= slots + self._max_queue + extra:
            raise self._overloaded(ahead, slots)
        ticket = Ticket()
        self._tickets[id(ticket)] = ticket
        self._empty.clear()
        try:
            yield ticket
        finally:
            del self._tickets[id(ticket)]
            if not self._tickets:
                self._empty.set()

    def add_duration(self, duration_s: float) -> None:
        """A request that ran to its end took so long; the estimate rests on these."""
        self._durations_s.append(duration_s)

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no admitted request is left. False when some remain after `timeout_s`."""
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    def _overloaded(self, ahead: int, slots: int) -> Overloaded:
        durations = self._durations_s
        mean_s = sum(durations) / len(durations) if durations else ASSUMED_REQUEST_S
        wait_s = mean_s * (ahead - slots + 1) / slots
        return Overloaded(
            "no room for another request",
            f"{ahead} requests run or wait already",
            "try again later, or start the daemon with a larger --max-queue",
            retry_after_s=min(MAX_RETRY_AFTER_S, max(1, round(wait_s))),
        )


def shutting_down() -> ShuttingDown:
    return ShuttingDown("the daemon is stopping", "it takes no further requests", "start it again")
