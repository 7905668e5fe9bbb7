"""Which model is resident in the one worker, and every way that changes.

Flows in: the model a request needs. Flows out: a live worker that holds it. A model is loaded on
demand, changed when another's turn has come, unloaded when unused, and restarted when its worker
dies, within a crash budget. Loads, changes and unloads are one task at a time (`change`); whoever
needs another state waits for that task and looks again, so all waiters of one failed load share its
error and a client that leaves does not stop a load. Everything runs on one event loop, hence no
locks. Not here: whose turn it is (model_turns.py), how many requests may wait (queue_limit.py), the
process and its socket (worker_link.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

from edge_agent.clocks import Clocks
from edge_agent.config import Settings
from edge_agent.errors import EdgeAgentError, Overloaded, WorkerFailed
from edge_agent.machine import default_slots, read_memory
from edge_agent.records import Loaded, ModelInfo
from edge_agent.store.store import ModelRow, Store
from edge_agent.supervisor.crash_budget import CrashBudget
from edge_agent.supervisor.engine_status import State
from edge_agent.supervisor.load_message import LoadMessages
from edge_agent.supervisor.model_turns import LINGER_S, Change, ModelTurns, WaitingRequest
from edge_agent.supervisor.queue_limit import shutting_down
from edge_agent.supervisor.worker_link import Inbox, Worker, WorkerLink

PING_PERIOD_S = 5.0
SWITCH_WAIT_S = 120.0
"""How long a change of model waits for the running requests of the old one."""
FIRST_USE_S = 1.0
"""A model that was just loaded stays at least this long, so that the request it was loaded for
reaches it also when keep_alive is 0."""
EXPIRY_RETRY_S = 0.25
"""An unused model whose cancelled request is not confirmed yet is looked at again after this."""


class LoadedModel:
    """`changed` is set whenever the worker changes."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        argv: Sequence[str],
        environ: Mapping[str, str],
        clocks: Clocks,
    ) -> None:
        self.changed = asyncio.Event()
        self.on_crash: Callable[[ModelRow, Collection[str]], Awaitable[None]] | None = None
        """Hears of a dead worker's model and of the adapters (SHA-256) that were at work, before
        another worker is started."""
        self.worker: Worker | None = None
        self.change: Change | None = None
        self.restarts = 0
        self.last_model: str | None = None
        """The one that a load was last begun for."""
        self.last_loaded: str | None = None
        """The one that was last loaded; an unload changes nothing."""
        self.last_reason = "no model has been asked for yet"
        self.quarantine = CrashBudget(settings.crash_budget, settings.crash_window_s, clocks)
        self._settings = settings
        self._store = store
        self._argv = tuple(argv)
        self._environ = environ
        self._clocks = clocks
        self._files = LoadMessages(settings.state_dir, settings.engine_settings())
        self._loading: WorkerLink | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._is_halted = False
        self._turns = ModelTurns(clocks.monotonic)

    # ---- asked from outside -------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The worker's process, the one that still loads included. Any thread may ask."""
        worker = self.worker
        link = worker.link if worker else self._loading
        return link.pid if link else None

    @property
    def slots(self) -> int:
        """Requests that the worker decodes together; before a load, those it will."""
        if self.worker is not None:
            return self.worker.info.slots
        return self._files.settings.slots or default_slots(read_memory())

    @property
    def expires_in_s(self) -> float | None:
        """Seconds until an unused model is unloaded; None: never, or none is loaded."""
        if self._expiry is None or self._expiry.cancelled():
            return None
        return max(0.0, self._expiry.when() - asyncio.get_running_loop().time())

    async def acquire(self, row: ModelRow) -> Worker:
        """A live worker with this model; the caller must use it before its next await.

        Waits for the model's turn. Raises every load error, ModelQuarantined, ShuttingDown.
        """
        with self._turns.waiting(row) as mine:
            while True:
                worker = self.worker
                if self._is_halted:
                    raise shutting_down()
                if (change := mine.change or self.change) is not None:
                    mine.change = None
                    await self._join(change, shares_error=change.model == row.name)
                elif worker is None:
                    self._change_to(row)
                elif not worker.link.is_open:
                    await self._buried(worker)
                elif not mine.wants(worker.row):
                    self.quarantine.check(row.name, row.added_at)
                    await self._leave_turn(worker, mine)
                elif self._turns.let_pass(mine):
                    return worker
                else:
                    self._change_to(self._turns.next_after(row) or row)

    async def _leave_turn(self, worker: Worker, mine: WaitingRequest) -> None:
        """Wait until nobody needs the loaded model, or its turn is over; then change it for the
        model that was asked for first."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._unneeded(worker, mine), max(0.0, self._turns.left_s(mine)))
        if self._stays(worker, mine):
            self._change_to(self._turns.next_after(worker.row) or mine.row)

    async def _unneeded(self, worker: Worker, mine: WaitingRequest) -> None:
        while self._stays(worker, mine):
            await worker.link.idle.wait()
            await asyncio.sleep(LINGER_S)
            if not worker.link.busy and not self._turns.is_wanted(worker.row):
                return

    def _stays(self, worker: Worker, mine: WaitingRequest) -> bool:
        """Whether nothing that ends this worker, or serves `mine`, has been begun."""
        has_begun = self.change is not None or mine.change is not None or self._is_halted
        return self.worker is worker and worker.link.is_open and not has_begun

    def _change_to(self, row: ModelRow) -> None:
        self._begin(self._switch_to(row), row.name, "loading", f"loading {row.name}")

    def keep(self, worker: Worker, keep_alive_s: float | None) -> None:
        """The model was just used: count its time to live anew (None: as before)."""
        if keep_alive_s is not None:
            worker.keep_alive_s = keep_alive_s
        if worker is self.worker and not self._is_halted:
            self._expire_in(worker.keep_alive_s)

    async def unload(self, *, force: bool) -> bool:
        """Wait for running requests, then free the model; False when there was none.

        With `force` they end with WorkerFailed and a load is stopped. Raises Overloaded when they
        do not end within SWITCH_WAIT_S.
        """
        self.quarantine.lift()
        if force:
            self._end_requests(WorkerFailed("the model was unloaded", "a user asked for it"))
        while self.change is not None:
            await self._join(self.change, shares_error=False)
        if self.worker is None:
            return False
        change = self._begin(self._retire(), None, "idle", "unloading")
        await self._join(change, shares_error=True)
        return True

    async def resize(self, is_small: bool) -> str:
        """Reload the model with one slot, or with all: llama.cpp keeps the cache of every slot
        allocated, so memory comes back only with the context. Raises load errors, Overloaded."""
        while self.change is not None:
            await self._join(self.change, shares_error=False)
        worker = self.worker
        if self._files.is_small == is_small:
            return "the number of slots stays as it is"
        self._files.is_small = is_small
        if worker is None:
            return f"the next load has {'one slot' if is_small else 'all slots'}"
        if is_small and worker.info.slots == 1:
            return "the model has one slot already"
        before, row = worker.info, worker.row
        reason = f"reloading {row.name} with {'one slot' if is_small else 'all slots'}"
        await self._reload(row, reason)
        after = self.worker.info if self.worker else before
        return f"{reason}: {_kv_mib(before)} -> {_kv_mib(after)} MiB of KV cache"

    async def share(self, is_shared: bool) -> None:
        """Reload the model without llama.cpp's repacked copy of its weights, or with it again: a
        trainer beside it maps the same file, and the copy is memory of its own. Raises load errors,
        Overloaded."""
        while self.change is not None:
            await self._join(self.change, shares_error=False)
        before = self._files.settings
        self._files.is_shared = is_shared
        if self.worker is not None and self._files.settings != before:
            copy = "without" if is_shared else "with"
            row = self.worker.row
            await self._reload(row, f"reloading {row.name} {copy} repacked weights")

    async def _reload(self, row: ModelRow, reason: str) -> None:
        change = self._begin(self._switch_to(row), row.name, "loading", reason)
        await self._join(change, shares_error=True)

    async def close(self) -> None:
        """End every request with ShuttingDown, then the worker. For good."""
        self._is_halted = True
        self._end_requests(shutting_down())
        while self.change is not None:
            await self._join(self.change, shares_error=False)
        await self._retire()

    # ---- one change at a time -----------------------------------------------------------------

    def _begin(
        self, work: Coroutine[Any, Any, None], model: str | None, state: State, reason: str
    ) -> Change:
        assert self.change is None, "one change at a time"
        change = self.change = Change(model, state, reason)
        self._turns.announce(change)
        change.task = asyncio.create_task(self._run(work))
        # A restart in the background has no waiter: its error is in `last_reason`, and not lost.
        change.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self.changed.set()
        return change

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except EdgeAgentError as error:
            self.last_reason = str(error)
            raise
        finally:
            self.change = None
            self.changed.set()

    async def _join(self, change: Change, *, shares_error: bool) -> None:
        """Wait for a change without being able to cancel it."""
        assert change.task is not None, "a change has begun"
        try:
            await asyncio.shield(change.task)
        except EdgeAgentError:
            if shares_error:
                raise

    async def _switch_to(self, row: ModelRow) -> None:
        self.quarantine.check(row.name, row.added_at)
        await self._retire()
        await self._start(row)

    async def _retire(self) -> None:
        """Let running requests end, then close the worker, if there is one. Raises Overloaded."""
        worker = self.worker
        if worker is None:
            return
        try:
            await asyncio.wait_for(worker.link.idle.wait(), SWITCH_WAIT_S)
        except asyncio.TimeoutError as error:
            why = f"model {worker.row.name} has been busy for {SWITCH_WAIT_S:g} s"
            hint = "try again later, or unload it with `edge-agent stop`"
            raise Overloaded("the model cannot be changed now", why, hint, 30) from error
        # A worker that died while we waited is a crash and stays one.
        worker.is_retired = worker.link.is_open
        self._cancel_expiry()
        self.worker = None
        self.last_reason = f"model {worker.row.name} was unloaded"
        await worker.link.close()
        self._store.add_event("model_unloaded", worker.row.name)

    def _end_requests(self, error: EdgeAgentError) -> None:
        for link in (self._loading, self.worker.link if self.worker else None):
            if link is not None:
                link.fail_open(error)

    # ---- starting and watching ----------------------------------------------------------------

    async def _start(self, row: ModelRow) -> None:
        """A new worker with this model becomes `worker`. Raises the load's error."""
        self.last_model = row.name
        load, identity = self._files.load_message(row)
        link = await WorkerLink.spawn(self._argv, self._environ, self._clocks.monotonic)
        self._loading = link
        self.changed.set()
        try:
            info = await self._loaded(link, link.load(load))
        except EdgeAgentError as error:
            self._files.forget(row)
            if error is link.failure:
                self._note_crash(row, error)
            raise
        else:
            self._files.remember(row, identity, info)
            self._install(Worker(link, row, info, self._settings.keep_alive_s))
        finally:
            self._loading = None
            if self.worker is None or self.worker.link is not link:
                await link.close()

    async def _loaded(self, link: WorkerLink, inbox: Inbox) -> ModelInfo:
        if self._is_halted:
            raise shutting_down()
        timeout_s = self._settings.load_timeout_s
        try:
            frame = await asyncio.wait_for(inbox.get(), timeout_s)
        except asyncio.TimeoutError:
            link.kill(f"loading took longer than {timeout_s:g} s")
            frame = await inbox.get()
        assert isinstance(frame, Loaded), "only Loaded and Failed come without an id"
        return frame.info

    def _install(self, worker: Worker) -> None:
        self.worker = worker
        self._turns.begin(worker.info.load_s)
        self.last_loaded = worker.row.name
        self.last_reason = ""
        worker.watch = asyncio.create_task(self._watch(worker))
        keep_s = worker.keep_alive_s
        self._expire_in(keep_s if keep_s < 0 else max(keep_s, FIRST_USE_S))
        info = worker.info
        self._store.add_event("model_loaded", f"{worker.row.name} in {info.load_s:.2f} s")

    async def _watch(self, worker: Worker) -> None:
        """Until the worker dies; then count it and start another in the background."""
        guard = asyncio.create_task(self._guard(worker.link))
        await worker.link.closed.wait()
        guard.cancel()
        failure = worker.link.failure
        if worker.is_retired or failure is None:
            return
        is_allowed = self._note_crash(worker.row, failure)
        at_work = {sha256 for sha256, count in worker.adapters.items() if count}
        if at_work and self.on_crash is not None:
            await self.on_crash(worker.row, at_work)
        if self.worker is worker:
            self.worker = None
            self._cancel_expiry()
        self.changed.set()
        if is_allowed and self.change is None and not self._is_halted:
            self.restarts += 1
            reason = f"{failure.what} ({failure.why}); another is being started"
            self._begin(self._start(worker.row), worker.row.name, "restarting", reason)

    async def _guard(self, link: WorkerLink) -> None:
        """Kill a worker that has work and shows no sign of life for `worker_timeout_s`."""
        timeout_s = self._settings.worker_timeout_s
        while True:
            await asyncio.sleep(min(PING_PERIOD_S, timeout_s / 4))
            if link.busy == 0:
                continue
            if self._clocks.monotonic() - link.last_frame_s > timeout_s:
                link.kill(f"it was silent for {timeout_s:g} s with {link.busy} requests in it")
                return
            link.ping()

    async def _buried(self, worker: Worker) -> None:
        await worker.link.closed.wait()
        if worker.watch is not None:
            await asyncio.shield(worker.watch)

    def _note_crash(self, row: ModelRow, failure: EdgeAgentError) -> bool:
        """Count it. False when the budget is now spent."""
        self.last_reason = str(failure)
        self._store.add_event("worker_crashed", f"{row.name}: {failure}")
        verdict = self.quarantine.add_crash(row.name, row.added_at, failure.why)
        if verdict is not None:
            self._store.add_event("model_quarantined", f"{row.name}: {verdict.reason}")
        return verdict is None

    # ---- keep_alive ---------------------------------------------------------------------------

    def _expire_in(self, seconds: float) -> None:
        self._cancel_expiry()
        if seconds >= 0:
            self._expiry = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _cancel_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _expire(self) -> None:
        self._expiry = None
        if self.worker is None or self.change is not None or self._is_halted:
            return
        if self.worker.link.busy:
            self._expire_in(EXPIRY_RETRY_S)
            return
        self._begin(self._retire(), None, "idle", "unloading: unused for its keep_alive")


def _kv_mib(info: ModelInfo) -> int:
    return info.kv_bytes // (1024 * 1024)
