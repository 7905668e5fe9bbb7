"""How many requests come in, and what the refused ones are told."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from edge_agent.errors import Overloaded, ShuttingDown
from edge_agent.supervisor.queue_limit import MAX_RETRY_AFTER_S, QueueLimit


def test_waiting_requests_and_those_inside_count_once_each() -> None:
    queue_limit = QueueLimit(max_queue=2)
    with ExitStack() as stack:
        ticket = stack.enter_context(queue_limit.admit(inside=0, slots=1))
        ticket.is_waiting = False  # the worker counts it from now on: inside=1
        stack.enter_context(queue_limit.admit(inside=1, slots=1))
        stack.enter_context(queue_limit.admit(inside=1, slots=1))
        with pytest.raises(Overloaded), queue_limit.admit(inside=1, slots=1):
            pass
        with queue_limit.admit(inside=1, slots=1, extra=1):
            pass
    with queue_limit.admit(inside=0, slots=1):
        pass


@pytest.mark.parametrize(
    ("duration_s", "slots", "expected"), [(4.0, 1, 12), (4.0, 2, 6), (1e4, 1, 60), (0.01, 4, 1)]
)
def test_retry_after_follows_recent_durations(duration_s: float, slots: int, expected: int) -> None:
    queue_limit = QueueLimit(max_queue=2)
    for _ in range(100):
        queue_limit.add_duration(duration_s)
    with pytest.raises(Overloaded) as refused, queue_limit.admit(inside=slots + 2, slots=slots):
        pass
    assert refused.value.retry_after_s == expected <= MAX_RETRY_AFTER_S


def test_closed_means_shutting_down_and_drained_when_the_last_one_leaves() -> None:
    async def work() -> None:
        queue_limit = QueueLimit(max_queue=2)
        assert await queue_limit.drained(0.01)
        with queue_limit.admit(inside=0, slots=1):
            queue_limit.is_closed = True
            assert not await queue_limit.drained(0.01)
            with pytest.raises(ShuttingDown), queue_limit.admit(inside=0, slots=1):
                pass
        assert await queue_limit.drained(0.01)

    asyncio.run(work())
