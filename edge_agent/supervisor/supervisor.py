"""The engine as the HTTP layer sees it: requests in, records out, whatever happens to the worker.

Flows in: requests that name a model, or a model and an adapter. Flows out: Began, then the worker's
Chunk and Done records, or a typed error before or between them. It joins four parts: queue_limit.py
(how many may come in), loaded_model.py (a live worker with the right model), worker_link.py (the
conversation) and models/adapter_registry.py (which adapter a name means). Not here: HTTP, and
recording what was generated (server/generation.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_agent.clocks import Clocks
from edge_agent.config import Settings
from edge_agent.errors import AdapterRefused, EdgeAgentError, WorkerFailed
from edge_agent.models.adapter_registry import AdapterRegistry
from edge_agent.models.which_model import which_model
from edge_agent.records import (
    AdapterRef,
    ApplyTemplate,
    Began,
    CheckAdapter,
    Chunk,
    Detokenize,
    Done,
    FromWorker,
    Generate,
    Generation,
    Message,
    ModelInfo,
    QuerySlots,
    Score,
    Scores,
    SlotStates,
    Text,
    Tokenize,
    Tokens,
)
from edge_agent.store.rows import AdapterRow
from edge_agent.store.store import ModelRow, Store
from edge_agent.supervisor.engine_status import EngineStatus, State
from edge_agent.supervisor.loaded_model import LoadedModel
from edge_agent.supervisor.queue_limit import QueueLimit
from edge_agent.supervisor.worker_link import Inbox, Worker, WorkerLink

__all__ = ["EngineStatus", "Supervisor", "Target"]

MAX_QUESTIONS = 64
"""Small questions (tokenize ...) allowed on top of the generations."""

EngineQuestion = Tokenize | Detokenize | ApplyTemplate | QuerySlots | Score | CheckAdapter
EngineAnswer = Tokens | Text | SlotStates | Scores


@dataclass(frozen=True)
class Target:
    """What a request's model name means. `adapter` None: the base. `tag`: what the name, or the
    configured name in its place, has after its colon."""

    model: ModelRow
    adapter: AdapterRow | None
    tag: str | None


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
        self.registry = AdapterRegistry(store, settings.state_dir, settings.keep_adapters)
        self._store = store
        self._clocks = clocks or Clocks()
        self._queue_limit = QueueLimit(settings.max_queue)
        self._loaded = LoadedModel(
            settings, store, worker_argv, os.environ if environ is None else environ, self._clocks
        )
        self._loaded.on_crash = self._after_crash

    async def ensure_loaded(
        self, model: str | None, *, keep_alive_s: float | None = None
    ) -> ModelInfo:
        """Load the model unless it is loaded. Raises every load error, ModelQuarantined."""
        self._queue_limit.check_guard()
        slots, inside = self._loaded.slots, self._inside()
        with self._queue_limit.admit(inside=inside, slots=slots, extra=MAX_QUESTIONS):
            worker = await self._loaded.acquire(self.target(model).model)
            self._loaded.keep(worker, keep_alive_s)
            return worker.info

    async def generate(
        self,
        model: str | None,
        request: Generate,
        *,
        keep_alive_s: float | None = None,
    ) -> AsyncGenerator[Generation, None]:
        """One Began, Chunks, one Done. aclose() cancels. Raises Overloaded, WorkerFailed and every
        load error.

        `request.adapter` goes before the adapter that `model` means.
        """
        started_s = self._clocks.monotonic()
        self._queue_limit.check_guard()
        with self._queue_limit.admit(inside=self._inside(), slots=self._loaded.slots) as ticket:
            target = self.target(model)
            worker = await self._loaded.acquire(target.model)
            # Only now: a rollback may have happened while the worker was started again.
            adapter = self._adapter(target, request)
            link = worker.link
            inbox = link.request(
                msgspec.structs.replace(request, id=link.take_id(), adapter=adapter)
            )
            ticket.is_waiting = False
            worker.at_work(adapter, 1)
            try:
                yield Began(worker.row.name, None if adapter is None else Path(adapter.path).stem)
                await link.flush()
                is_done = False
                while not is_done:
                    frame = await self._frame(inbox, worker, None if request.adapter else adapter)
                    if not isinstance(frame, (Chunk, Done)):
                        raise _unexpected(link, frame)
                    is_done = isinstance(frame, Done)
                    yield frame
            finally:
                worker.at_work(adapter, -1)
                inbox.close()
                self._loaded.keep(worker, keep_alive_s)
        self._queue_limit.add_duration(self._clocks.monotonic() - started_s)

    async def score(
        self, model: str, messages: list[Message], adapter: AdapterRef | None
    ) -> Scores:
        """Log-probabilities of the chat's assistant turns; `adapter` None is the base.

        Raises every engine error.
        """
        answer = await self.ask(model, Score(0, messages, _unless_off(adapter)))
        assert isinstance(answer, Scores), "ask() has checked it"
        return answer

    async def score_text(self, model: str, text: str, adapter: AdapterRef | None) -> Scores:
        """As `score`, of a plain text without a chat."""
        answer = await self.ask(model, Score(0, [], _unless_off(adapter), text))
        assert isinstance(answer, Scores), "ask() has checked it"
        return answer

    async def check_adapter(self, model: str, adapter: AdapterRef) -> None:
        """Let the worker load it and compute with it once. Raises AdapterRefused, WorkerFailed and
        every other engine error."""
        await self.ask(model, CheckAdapter(0, adapter))

    async def ask(self, model: str | None, message: EngineQuestion) -> EngineAnswer:
        """One question, one answer. QuerySlots neither loads a model nor keeps one alive."""
        worker = self._loaded.worker
        is_query = isinstance(message, QuerySlots)
        if is_query and (worker is None or not worker.link.is_open):
            return SlotStates(id=0, slots=[], queued=0)
        if worker is None:
            self._queue_limit.check_guard()
        slots, inside = self._loaded.slots, self._inside()
        with self._queue_limit.admit(inside=inside, slots=slots, extra=MAX_QUESTIONS) as ticket:
            if worker is None or not is_query:
                worker = await self._loaded.acquire(self.target(model).model)
            link = worker.link
            inbox = link.request(msgspec.structs.replace(message, id=link.take_id()))
            ticket.is_waiting = False
            try:
                answer = await inbox.get()
            finally:
                inbox.close()
                if not is_query:
                    self._loaded.keep(worker, None)
        if not isinstance(answer, _ANSWERS[type(message)]):
            raise _unexpected(link, answer)
        return answer

    async def unload(self, *, force: bool = False) -> bool:
        """Free the model's memory and lift every quarantine. False: nothing was loaded.

        Waits for running requests (Overloaded when they do not end); with `force` they end with
        WorkerFailed and a load under way is stopped.
        """
        return await self._loaded.unload(force=force)

    def refuse(self, reason: str | None) -> None:
        """Admit no generation and no load for this reason; None admits them again."""
        self._queue_limit.refusal = reason

    def reserve(self, reason: str | None) -> None:
        """As `refuse`, for one who needs the whole board for a while; both count."""
        self._queue_limit.reservation = reason

    async def shrink(self, is_small: bool) -> str:
        """Have one slot only, or as many as configured; says what was done.

        Waits for running requests. Raises Overloaded and every load error.
        """
        return await self._loaded.resize(is_small)

    async def share(self, is_shared: bool) -> None:
        """Hold no copy of the weights beside the mapped file, or hold one again if it is faster.

        Waits for running requests. Raises Overloaded and every load error.
        """
        await self._loaded.share(is_shared)

    @property
    def worker_pid(self) -> int | None:
        """The worker's process. Any thread may ask; `status` is for the event loop's thread."""
        return self._loaded.pid

    def status(self) -> EngineStatus:
        loaded_model = self._loaded
        worker, change = loaded_model.worker, loaded_model.change
        name = worker.row.name if worker else change.model if change else None
        model = name or loaded_model.last_model
        state, reason = self._state(model)
        inside = self._inside()
        in_flight = min(inside, worker.info.slots) if worker else 0
        expires_in_s = loaded_model.expires_in_s
        active = self.registry.active(model) if model else None
        return EngineStatus(
            state=state,
            model=model,
            info=worker.info if worker else None,
            worker_pid=loaded_model.pid,
            reason=reason,
            crashes=loaded_model.quarantine.crashes(model) if model else 0,
            in_flight=in_flight,
            queued=inside - in_flight + self._queue_limit.waiting,
            expires_at=None if expires_in_s is None else self._clocks.unix() + expires_in_s,
            last_load_s=worker.info.load_s if worker else None,
            restarts=loaded_model.restarts,
            adapter=active.name if active else None,
        )

    async def wait_for_change(self) -> EngineStatus:
        """Return when the worker or its state has changed since the last call. One waiter only."""
        await self._loaded.changed.wait()
        self._loaded.changed.clear()
        return self.status()

    async def close(self, drain_s: float) -> None:
        """Refuse new requests, give the running ones `drain_s`, then end them and the worker.

        A second call with a shorter bound cuts the first one short.
        """
        self._queue_limit.is_closed = True
        if drain_s > 0:
            await self._queue_limit.drained(drain_s)
        await self._loaded.close()

    def which_model(
        self, name: str | None, *, may_guess: bool = True
    ) -> tuple[ModelRow, str | None]:
        """The model and the tag that a name means (models/which_model.py); without `may_guess` the
        loaded model does not stand in for a name. Raises ModelNotFound, UsageError."""
        loaded = self._loaded.last_loaded if may_guess else None
        return which_model(self._store, name, self._settings.model, loaded)

    def target(self, name: str | None) -> Target:
        """The model that a name means and what answers: the adapter of :NAME, the base for :base,
        else the active adapter. Raises ModelNotFound, UsageError, AdapterNotFound."""
        row, tag = self.which_model(name)
        return Target(row, self.registry.chosen(row.name, tag), tag)

    def _adapter(self, target: Target, request: Generate) -> AdapterRef | None:
        """What answers now; None: the base."""
        if request.adapter is not None:
            return _unless_off(request.adapter)
        chosen = self.registry.chosen(target.model.name, target.tag)
        return _unless_off(self.registry.reference(chosen) if chosen else None)

    async def _frame(self, inbox: Inbox, worker: Worker, active: AdapterRef | None) -> FromWorker:
        """The next record. An active adapter that the worker refuses, whatever became of its file,
        is taken back, or MODEL would never be answered again."""
        try:
            return await inbox.get()
        except AdapterRefused as error:
            if active is not None:
                await self._take_back(
                    worker.row, {active.sha256}, f"the worker refused it: {error}"
                )
            raise

    async def _after_crash(self, row: ModelRow, at_work: Collection[str]) -> None:
        """A worker died. If the active adapter is new and was at work (SHA-256), it goes first."""
        if self.registry.is_on_trial(row.name):
            why = "the worker died with it at work, soon after its activation"
            await self._take_back(row, at_work, why)

    async def _take_back(self, row: ModelRow, blamed: Collection[str], why: str) -> None:
        """Roll back, if the active adapter is one of `blamed` (SHA-256). Never raises."""
        active = self.registry.active(row.name)
        if active is None or active.sha256 not in blamed:
            return
        try:
            await asyncio.to_thread(self.registry.rollback, row.name, why, leaving=active.name)
        except EdgeAgentError as error:
            self._store.add_event("rollback_failed", f"{row.name}:{active.name}: {error}")

    def _inside(self) -> int:
        worker: Worker | None = self._loaded.worker
        return worker.link.busy if worker else 0

    def _state(self, model: str | None) -> tuple[State, str]:
        loaded_model = self._loaded
        if self._queue_limit.is_closed:
            return "stopping", "the daemon is stopping"
        if loaded_model.change is not None:
            return loaded_model.change.state, loaded_model.change.reason
        if loaded_model.worker is not None:
            is_open = loaded_model.worker.link.is_open
            return ("ready", "") if is_open else ("restarting", "the worker is ending")
        verdict = loaded_model.quarantine.verdict(model) if model else None
        if verdict is not None:
            return "quarantined", f"{verdict.error()}; {verdict.error().hint}"
        return "idle", loaded_model.last_reason


_ANSWERS: Mapping[type, type[EngineAnswer]] = {
    Tokenize: Tokens,
    Detokenize: Text,
    ApplyTemplate: Text,
    CheckAdapter: Text,
    QuerySlots: SlotStates,
    Score: Scores,
}


def _unless_off(adapter: AdapterRef | None) -> AdapterRef | None:
    """Scale 0 is the base."""
    return adapter if adapter is not None and adapter.scale != 0 else None


def _unexpected(link: WorkerLink, frame: FromWorker) -> WorkerFailed:
    """A worker that answers another question than the asked one is not to be trusted further."""
    link.kill(f"it answered with {type(frame).__name__} out of turn")
    return WorkerFailed(f"the worker (pid {link.pid}) failed", "it answered another question")
