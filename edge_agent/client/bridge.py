"""Lets a plain `for` follow work that runs on an event loop of its own.

Flows in: a coroutine function that is given `tell` and an event that is set when the reader leaves.
Flows out: what it tells, one by one; its exception. Not here: what the work is.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

Event = dict[str, Any]
Tell = Callable[[Event], None]
Work = Callable[[Tell, threading.Event], Awaitable[None]]


def followed(work: Work) -> Iterator[Event]:
    """Runs `work` in a thread until it ends; closing the iterator asks it to end and waits."""
    events: queue.Queue[Event | Exception | None] = queue.Queue()
    has_left = threading.Event()

    def carry() -> None:
        try:
            asyncio.run(_as_coroutine(work, events.put, has_left))
        except Exception as error:  # raised again by the thread that reads
            events.put(error)
        events.put(None)

    thread = threading.Thread(target=carry, name="lesson")
    thread.start()
    try:
        while (event := events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event
    finally:
        has_left.set()
        thread.join()


async def _as_coroutine(work: Work, tell: Tell, has_left: threading.Event) -> None:
    await work(tell, has_left)


async def until_set(event: threading.Event, then: Callable[[], object]) -> None:
    """Calls `then` once the event is set; cancel it when it is needed no longer."""
    while not event.is_set():
        await asyncio.sleep(0.1)
    then()
