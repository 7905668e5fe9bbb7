"""A real supervisor over the FAKE worker of fakes.py: register scripts, ask, run in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import fakes
from waiting import DEADLINE_S

from edge_agent.clocks import Clocks
from edge_agent.config import Settings
from edge_agent.records import Began
from edge_agent.store.store import ModelRow, Store
from edge_agent.supervisor.supervisor import Supervisor


@asynccontextmanager
async def supervising(
    store: Store, clocks: Clocks | None = None, **settings: Any
) -> AsyncIterator[Supervisor]:
    chosen = Settings(state_dir=store.path.parent, **settings)
    supervisor = Supervisor(chosen, store, fakes.WORKER_ARGV, clocks=clocks)
    try:
        yield supervisor
    finally:
        await supervisor.close(0)


def add(store: Store, name: str = "tiny", **script: object) -> ModelRow:
    row = fakes.register(store.path.parent, name, **script)
    store.add_model(row)
    return row


async def text_of(supervisor: Supervisor, model: str | None = None, **plan: object) -> str:
    return "".join(
        [
            record.text
            async for record in supervisor.generate(model, fakes.generate(**plan))
            if not isinstance(record, Began)
        ]
    )


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, DEADLINE_S))
