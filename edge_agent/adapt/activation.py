"""Activates an adapter on a running engine, and takes it back when it does not answer.

    file and gate ~> worker loads it ~> one durable row ~> canary answers ~> proved
                                                       └─> crash, NaN, loops ~> rolled back

Flows in: a model's and an adapter's name. Flows out: a proved activation, or AdapterRefused with
what was active before active again. The canary is a few short greedy answers to built-in questions;
it looks for what makes an adapter useless, not for how good it is: that is the gate's work
(adapt/gate/gate.py). An answer that is empty or loops counts only when what was active before does
better, for there are models that loop by themselves. Not here: the rows
(models/adapter_registry.py), crashes later on (supervisor/supervisor.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from edge_agent.adapt.gate.detectors import is_looping
from edge_agent.errors import (
    AdapterRefused,
    EdgeAgentError,
    ModelCorrupt,
    ModelNotFound,
    ModelQuarantined,
    ModelRefused,
    Overloaded,
    ShuttingDown,
    StoreError,
    WorkerFailed,
)
from edge_agent.models.adapter_registry import BASE, AdapterRegistry
from edge_agent.records import (
    AdapterRef,
    Done,
    Generate,
    Generation,
    Message,
    ModelInfo,
    Sampling,
)
from edge_agent.store.rows import AdapterRow

_LOG = logging.getLogger("edge_agent")

QUESTIONS = ("What is the capital of India?", "भारत की राजधानी क्या है?")
MAX_TOKENS = 24
NOT_ITS_FAULT = (
    *(ModelCorrupt, ModelNotFound, ModelQuarantined, ModelRefused),
    *(Overloaded, ShuttingDown, StoreError),
)
"""Errors that say nothing about the adapter: the canary could not be asked."""


class CanaryEngine(Protocol):
    """What of the supervisor is used."""

    registry: AdapterRegistry

    async def ensure_loaded(self, model: str | None) -> ModelInfo: ...
    async def check_adapter(self, model: str, adapter: AdapterRef) -> None: ...

    def generate(
        self, model: str | None, request: Generate
    ) -> AsyncGenerator[Generation, None]: ...


async def activate(
    engine: CanaryEngine,
    model: str,
    name: str,
    *,
    force: bool = False,
    reason: str = "asked for",
    checked_sha256: str | None = None,
) -> AdapterRow:
    """The adapter, now active and proved. `model` is a registered name without a tag.

    `checked_sha256`: SHA-256 of a file that the worker has checked for the caller already; it does
    not check the adapter once more when that is its file. Cancelling the caller does not stop the
    activation. Raises AdapterNotFound, AdapterRefused (not activated, or rolled back by its canary)
    and what keeps the engine from answering; what was active before is active then.
    """
    task = asyncio.create_task(_activate(engine, model, name, force, reason, checked_sha256))
    # Nobody waits for it any more when the caller was cancelled.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)


async def _activate(
    engine: CanaryEngine, model: str, name: str, force: bool, reason: str, checked: str | None
) -> AdapterRow:
    registry = engine.registry
    row = await asyncio.to_thread(registry.activatable, model, name, force=force)
    if row.sha256 != checked:
        await engine.check_adapter(model, registry.reference(row))
    await asyncio.to_thread(registry.activate, model, name, force=force, reason=reason)
    await _prove(engine, row)
    return row


async def prove_unproved(engine: CanaryEngine) -> None:
    """What an earlier daemon, or a command without one, activated gets its canary now.

    Never raises: what cannot be asked now stays as it is, and is rolled back at the next start.
    """
    registry = engine.registry
    for model in {row.model for row in registry.adapters()}:
        row = registry.active(model)
        if row is None or registry.is_proved(model):
            continue
        try:
            await engine.check_adapter(model, registry.reference(row))
            await _prove(engine, row, keeps_unasked=True)
        except (AdapterRefused, WorkerFailed) as error:
            await _roll_back(registry, row, str(error))
            _LOG.error("%s", error)
        except EdgeAgentError as error:
            _LOG.error("the canary of %s:%s could not be asked: %s", model, row.name, error)


async def _prove(engine: CanaryEngine, row: AdapterRow, *, keeps_unasked: bool = False) -> None:
    """Ask the canary; roll back unless it answers. Raises AdapterRefused, NOT_ITS_FAULT."""
    registry = engine.registry
    before = await asyncio.to_thread(registry.previous, row.model)
    try:
        problem = await _problem(engine, row, before)
    except NOT_ITS_FAULT as error:
        if not keeps_unasked and not isinstance(error, ShuttingDown):
            await _roll_back(registry, row, f"not tried out: {error}", is_bad=False)
        raise
    except EdgeAgentError as error:
        problem = str(error)
    if problem is None:
        await asyncio.to_thread(registry.prove, row.model, row.name)
        return
    await _roll_back(registry, row, problem)
    now = registry.active(row.model)
    raise AdapterRefused(
        f"adapter {row.name} of {row.model} was rolled back",
        f"its canary failed: {problem}",
        f"{f'adapter {now.name}' if now else 'the base'} answers again",
    )


async def _roll_back(
    registry: AdapterRegistry, row: AdapterRow, why: str, is_bad: bool = True
) -> None:
    await asyncio.to_thread(registry.rollback, row.model, why, leaving=row.name, is_bad=is_bad)


async def _problem(engine: CanaryEngine, row: AdapterRow, before: AdapterRow | None) -> str | None:
    """What is wrong with the adapter's answers; None when nothing is, or nothing new."""
    reference = engine.registry.reference
    info = await engine.ensure_loaded(row.model)
    for question in QUESTIONS:
        problem = fault(await _answer(engine, info, question, reference(row)))
        if problem is None:
            continue
        known = reference(before) if before else BASE
        if fault(await _answer(engine, info, question, known)) is None:
            return f"{problem}, asked {question!r}"
    return None


async def _answer(
    engine: CanaryEngine, info: ModelInfo, question: str, adapter: AdapterRef
) -> Done:
    """Raises every engine error."""
    is_chat = info.chat_template != "none"
    request = Generate(
        id=0,
        sampling=Sampling(temperature=0.0),
        max_tokens=MAX_TOKENS,
        messages=[Message("user", question)] if is_chat else None,
        text=None if is_chat else question,
        stream=False,
        cache_prompt=False,
        logprobs=0,
        adapter=adapter,
    )
    async with aclosing(engine.generate(info.name, request)) as events:
        async for event in events:
            if isinstance(event, Done) and event.finish_reason == "cancelled":
                raise Overloaded("the canary was cancelled", "its model was stopped or replaced")
            if isinstance(event, Done):
                return event
    raise EdgeAgentError("the canary got no answer", "the generation ended without a result")


def fault(done: Done) -> str | None:
    """Why an answer is none; None when it is one."""
    if not all(math.isfinite(one.token.logprob) for one in done.logprobs):
        return "it computes NaN or infinity"
    if not done.text.strip():
        return "its answer is empty"
    return "its answer is a loop" if is_looping(done.text) else None
