"""The engine as the HTTP layer sees it: requests in, records out, whatever happens to the worker.

Flows in: requests that name a model. Flows out: the worker's Chunk and Done records, or a typed
error before or between them. It joins three parts: turnstile.py (how many may come in),
residency.py (a live worker with the right model) and worker_link.py (the conversation). Not here:
HTTP, and recording what was generated (server/).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping, Sequence

import msgspec

from edge_agent.clocks import Clocks
from edge_agent.config import Settings
from edge_agent.engine_status import EngineStatus, State
from edge_agent.errors import ModelNotFound, WorkerFailed
from edge_agent.records import (
    ApplyTemplate,
    Chunk,
    Detokenize,
    Done,
    FromWorker,
    Generate,
    ModelInfo,
    QuerySlots,
    SlotStates,
    Text,
    Tokenize,
    Tokens,
)
from edge_agent.residency import Residency, Worker
from edge_agent.store import ModelRow, Store
from edge_agent.turnstile import Turnstile
from edge_agent.worker_link import WorkerLink

__all__ = ["EngineStatus", "Supervisor"]

MAX_QUESTIONS = 64
"""Small questions (tokenize ...) allowed on top of the generations."""


class Supervisor:
    """Create and use on one running event loop."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        worker_argv: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        clocks: Clocks | None = None,
    ) -> None:
        """`worker_argv` is completed with `--fd N`; `environ` is the worker's [ours]."""
        self._settings = settings
        self._store = store
        self._clocks = clocks or Clocks()
        self._turnstile = Turnstile(settings.max_queue)
        self._residency = Residency(
            settings, store, worker_argv, os.environ if environ is None else environ, self._clocks
        )

    async def ensure_loaded(
        self, model: str | None, *, keep_alive_s: float | None = None
    ) -> ModelInfo:
        """Load the model unless it is loaded. Raises every load error, ModelQuarantined."""
        self._turnstile.check_guard()
        slots, inside = self._slots(), self._inside()
        with self._turnstile.admit(inside=inside, slots=slots, extra=MAX_QUESTIONS):
            worker = await self._residency.acquire(self._resolve(model))
            self._residency.keep(worker, keep_alive_s)
            return worker.info

    async def generate(
        self, model: str | None, request: Generate, *, keep_alive_s: float | None = None
    ) -> AsyncGenerator[Chunk | Done, None]:
        """Chunks, then one Done. aclose() cancels. Raises Overloaded, WorkerFailed and the rest."""
        started_s = self._clocks.monotonic()
        self._turnstile.check_guard()
        with self._turnstile.admit(inside=self._inside(), slots=self._slots()) as ticket:
            worker = await self._residency.acquire(self._resolve(model))
            link = worker.link
            inbox = link.request(msgspec.structs.replace(request, id=link.take_id()))
            ticket.is_waiting = False
            try:
                await link.flush()
                is_done = False
                while not is_done:
                    frame = await inbox.get()
                    if not isinstance(frame, (Chunk, Done)):
                        raise _unexpected(link, frame)
                    is_done = isinstance(frame, Done)
                    yield frame
            finally:
                inbox.close()
                self._residency.keep(worker, keep_alive_s)
        self._turnstile.add_duration(self._clocks.monotonic() - started_s)

    async def ask(
        self, model: str | None, message: Tokenize | Detokenize | ApplyTemplate | QuerySlots
    ) -> Tokens | Text | SlotStates:
        """One question, one answer. QuerySlots neither loads a model nor keeps one alive."""
        worker = self._residency.worker
        is_query = isinstance(message, QuerySlots)
        if is_query and (worker is None or not worker.link.is_open):
            return SlotStates(id=0, slots=[], queued=0)
        if worker is None:
            self._turnstile.check_guard()
        slots, inside = self._slots(), self._inside()
        with self._turnstile.admit(inside=inside, slots=slots, extra=MAX_QUESTIONS) as ticket:
            if worker is None or not is_query:
                worker = await self._residency.acquire(self._resolve(model))
            link = worker.link
            inbox = link.request(msgspec.structs.replace(message, id=link.take_id()))
            ticket.is_waiting = False
            try:
                answer = await inbox.get()
            finally:
                inbox.close()
                if not is_query:
                    self._residency.keep(worker, None)
        if not isinstance(answer, (Tokens, Text, SlotStates)):
            raise _unexpected(link, answer)
        return answer

    async def unload(self, *, force: bool = False) -> bool:
        """Free the model's memory and lift every quarantine. False: nothing was loaded.

        Waits for running requests (Overloaded when they do not end); with `force` they end with
        WorkerFailed and a load under way is stopped.
        """
        return await self._residency.unload(force=force)

    def refuse(self, reason: str | None) -> None:
        """Admit no generation and no load for this reason; None admits them again."""
        self._turnstile.refusal = reason

    async def shrink(self, is_small: bool) -> str:
        """Have one slot only, or as many as configured; says what was done.

        Waits for running requests. Raises Overloaded and every load error.
        """
        return await self._residency.resize(is_small)

    def status(self) -> EngineStatus:
        residency = self._residency
        worker, change = residency.worker, residency.change
        name = worker.row.name if worker else change.model if change else None
        model = name or residency.last_model
        state, reason = self._state(model)
        inside = self._inside()
        in_flight = min(inside, worker.info.slots) if worker else 0
        expires_in_s = residency.expires_in_s
        return EngineStatus(
            state=state,
            model=model,
            info=worker.info if worker else None,
            worker_pid=residency.pid,
            reason=reason,
            crashes=residency.quarantine.crashes(model) if model else 0,
            in_flight=in_flight,
            queued=inside - in_flight + self._turnstile.waiting,
            expires_at=None if expires_in_s is None else self._clocks.unix() + expires_in_s,
            last_load_s=worker.info.load_s if worker else None,
            restarts=residency.restarts,
        )

    async def wait_for_change(self) -> EngineStatus:
        """Return when the worker or its state has changed since the last call. One waiter only."""
        await self._residency.changed.wait()
        self._residency.changed.clear()
        return self.status()

    async def close(self, drain_s: float) -> None:
        """Refuse new requests, give the running ones `drain_s`, then end them and the worker.

        A second call with a shorter bound cuts the first one short.
        """
        self._turnstile.is_closed = True
        if drain_s > 0:
            await self._turnstile.drained(drain_s)
        await self._residency.close()

    def _resolve(self, model: str | None) -> ModelRow:
        """The row a request means: the named one (NAME:latest is NAME), else the configured, else
        the loaded, else the oldest. Raises ModelNotFound."""
        rows = self._store.models()
        name = model or self._settings.model
        worker = self._residency.worker
        loaded = worker.row.name if worker else self._residency.last_model
        if name is None and loaded in {row.name for row in rows}:
            name = loaded
        if name is None and rows:
            name = rows[0].name
        if name is None:
            hint = "register one: `edge-agent pull embedded:smollm2-135m`"
            raise ModelNotFound("there is no model to answer with", "none is registered", hint)
        return self._store.model(name.removesuffix(":latest"))

    def _slots(self) -> int:
        worker = self._residency.worker
        return worker.info.slots if worker else self._settings.slots or 1

    def _inside(self) -> int:
        worker: Worker | None = self._residency.worker
        return worker.link.busy if worker else 0

    def _state(self, model: str | None) -> tuple[State, str]:
        residency = self._residency
        if self._turnstile.is_closed:
            return "stopping", "the daemon is stopping"
        if residency.change is not None:
            return residency.change.state, residency.change.reason
        if residency.worker is not None:
            is_open = residency.worker.link.is_open
            return ("ready", "") if is_open else ("restarting", "the worker is ending")
        verdict = residency.quarantine.verdict(model) if model else None
        if verdict is not None:
            return "quarantined", f"{verdict.error()}; {verdict.error().hint}"
        return "idle", residency.last_reason


def _unexpected(link: WorkerLink, frame: FromWorker) -> WorkerFailed:
    """A worker that answers another question than the asked one is not to be trusted further."""
    link.kill(f"it answered with {type(frame).__name__} out of turn")
    return WorkerFailed(f"the worker (pid {link.pid}) failed", "it answered another question")
