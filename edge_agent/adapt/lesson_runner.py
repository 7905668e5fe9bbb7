"""One lesson from its data to an adapter that answers: train, judge, register, activate.

Why it exists: the daemon and a command line without a daemon must do exactly the same. Flows in: a
LessonRequest. Flows out: events for those who follow, `status` for a single look, the files in
STATE/adapt/NAME/, and an adapter in the registry, which is active if its gate let it pass. One
lesson at a time. The gate sees the serving engine through `ServingEngine`: one question at a time,
greedy, with the adapter it names. Not here: HTTP, the command line, the trainer process
(trainer_control.py), the gate's checks (adapt/gate/gate.py).

    data ~> trainer process ~> adapter.gguf ~> gate on the serving engine ~> registry ~> active
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.adapt import activation
from edge_agent.adapt.asked_rows import asked_rows
from edge_agent.adapt.earlier_rows import earlier_rows
from edge_agent.adapt.feedback import mark_used, training_rows
from edge_agent.adapt.gate.exam import GateAnswer, TaughtLesson
from edge_agent.adapt.gate.gate import GateReport, run_gate
from edge_agent.adapt.gate.kept_results import KeptResults
from edge_agent.adapt.lesson import LessonRequest, LessonState
from edge_agent.adapt.lesson_files import FEEDBACK, LessonFiles
from edge_agent.adapt.messages import Finished, Planned, Start, is_instruct
from edge_agent.adapt.pause_policy import PauseConditions
from edge_agent.adapt.trainer_control import TrainerControl
from edge_agent.errors import EdgeAgentError, TrainingBusy, UsageError, WorkerFailed
from edge_agent.records import AdapterRef, Done, Generate, Message, Sampling, Scores
from edge_agent.store.rows import AdapterRow
from edge_agent.store.store import Store
from edge_agent.supervisor.supervisor import Supervisor

_NO_PATH = AdapterRef(path="", sha256="", scale=0.0)
"""Scale 0 is the base, whatever adapter is active."""

STOP_S = 10.0
"""How long a trainer may take for its step and its checkpoint when the daemon stops."""


class LessonRunner:
    """Create and use on one running event loop."""

    def __init__(
        self,
        store: Store,
        supervisor: Supervisor,
        board: PauseConditions,
        state_dir: Path,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`environ`: the trainer's [ours]."""
        self.files = LessonFiles(state_dir)
        self._store = store
        self._registry = supervisor.registry
        self._supervisor = supervisor
        self._board = board
        self._trainer_control = TrainerControl(board, self._busy, environ)
        self._run: LessonState | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False

    # ---- asked from outside -------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The lesson under way, or the last one of this process; state idle before the first.
        `last`: the one that ended last, of any process."""
        now = {"state": "idle", "name": None} if self._run is None else self._run.as_json()
        return {**now, "last": self._last()}

    def _last(self) -> dict[str, Any] | None:
        """As it was written, and whether its adapter answers now."""
        last = self.files.last_outcome()
        if last is None:
            return None
        active = self._registry.active(str(last.get("model")))
        return {**last, "is_active": active is not None and active.name == last.get("name")}

    async def plan(self, request: LessonRequest) -> Planned:
        """What a lesson would take in bytes and seconds, measured by a few real steps. Raises
        DataRefused and every other error of the trainer."""
        start = await self._prepared(request, plan_only=True)
        self.check_free()
        try:
            return await self._trainer_control.plan(start)
        finally:
            if not self.files.has_begun(request.name):
                self.files.forget_asked(request.name)

    async def begin(self, request: LessonRequest) -> None:
        """Start the run in the background. Raises TrainingBusy, UsageError, ModelNotFound,
        RequestError for a name that is taken, DataRefused when no feedback waits to be learned."""
        self._supervisor.registry.check_name(request.model, request.name)
        start = await self._prepared(request)
        self.check_free()
        self.files.make_room(request.name)
        self.files.write_request(request)
        self._launch(LessonState(request, started_at=time.time()), start)

    def resume(self, name: str | None) -> None:
        """Let a paused lesson compute again; start a stopped or killed one from its checkpoint.

        Raises UsageError when there is nothing to resume.
        """
        if self._is_under_way:
            self._trainer_control.is_held = False
            return
        self.check_free()
        request = self.files.stored_request(name)
        row = self._store.model(request.model)
        start = self.files.start(request, row.path, row.sha256, resume=True)
        self._launch(LessonState(request, started_at=time.time()), start)

    def judge(self, name: str, joules: float | None = None) -> None:
        """Judge, register and activate the adapter that another process trained in
        STATE/adapt/NAME, with so many joules.

        Raises TrainingBusy, UsageError, TrainingFailed when it has no result.
        """
        self.check_free()
        run = LessonState(self.files.stored_request(name), started_at=time.time())
        run.finished, run.joules = self.files.finished(name), joules
        self._launch(run, None)

    def pause(self) -> None:
        """Hold the run until `resume`. Raises UsageError when none is under way."""
        if not self._trainer_control.is_running:
            raise UsageError("there is nothing to pause", "no run is under way", "")
        self._trainer_control.is_held = True

    async def follow(self) -> AsyncGenerator[dict[str, Any], None]:
        """Events {"event": ..., ...} until the run ends; the last one is the whole status."""
        run = self._run
        if run is None:
            return
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(maxsize=1000)
        run.watchers.append(events)
        try:
            while self._is_under_way and (event := await events.get()) is not None:
                yield event
        finally:
            run.watchers.remove(events)
        yield {"event": "end", **run.as_json()}

    def stop(self) -> None:
        """Ask the trainer to save a checkpoint and end; the run can be resumed."""
        self._trainer_control.stop()

    async def close(self) -> None:
        """`stop`, and wait for it at most STOP_S."""
        self._is_closing = True
        self.stop()
        if self._task is not None and not self._task.done():
            done, _ = await asyncio.wait({self._task}, timeout=STOP_S)
            if not done:
                self._task.cancel()
                with suppress(asyncio.CancelledError):
                    await self._task

    def check_free(self) -> None:
        """Raises TrainingBusy while a run or a plan is under way."""
        if self._trainer_control.is_running or self._is_under_way:
            name = self._run.request.name if self._run and self._is_under_way else "a plan"
            hint = "`edge-agent adapt status` shows it"
            raise TrainingBusy(f"{name} is being learned", "one run at a time", hint)

    # ---- the run ------------------------------------------------------------------------------

    @property
    def _is_under_way(self) -> bool:
        return self._task is not None and not self._task.done()

    def _busy(self) -> int:
        status = self._supervisor.status()
        return status.in_flight + status.queued

    async def _prepared(self, request: LessonRequest, *, plan_only: bool = False) -> Start:
        self.check_free()
        row = self._store.model(request.model)
        if request.data == FEEDBACK:
            rows = await asyncio.to_thread(training_rows, self._store, row.name)
            self.files.write_feedback(request.name, rows)
        await self.write_earlier(request.name, row.name)
        return self.files.start(request, row.path, row.sha256, plan_only=plan_only)

    async def write_earlier(self, name: str, model: str) -> None:
        """Write what the model's active adapter was taught, and what users asked it, into the run's
        directory. Raises ModelNotFound, UsageError, StoreError, OSError."""

        def write() -> None:
            active = self._registry.active(self._store.model(model).name)
            self.files.write_earlier(name, *earlier_rows(self.files, self._store, active))
            self.files.write_asked(name, asked_rows(self._store, self._store.model(model).name))

        await asyncio.to_thread(write)

    def _launch(self, run: LessonState, start: Start | None) -> None:
        self._trainer_control.is_held = False
        self._run = run
        self._task = asyncio.create_task(self._carry_out(run, start))
        self._store.add_event("learning_began", f"{run.request.model}:{run.request.name}")

    async def _carry_out(self, run: LessonState, start: Start | None) -> None:
        name = f"{run.request.model}:{run.request.name}"
        try:
            if start is not None:
                await self._train(run, start)
            if run.finished is None:
                run.state = "stopped"
            else:
                await self._judge(run, run.finished)
                run.state = "finished"
        except EdgeAgentError as error:
            run.error, run.state = error, "failed"
        except asyncio.CancelledError:
            run.state = "stopped"
            raise
        except Exception as error:
            run.error, run.state = EdgeAgentError(f"{name} failed", repr(error)), "failed"
            raise
        finally:
            self._store.add_event("learning_ended", f"{name}: {run.state}")
            self._keep_outcome(run)
            run.end()

    def _keep_outcome(self, run: LessonState) -> None:
        """Of a lesson that cannot be resumed, or should not be without a look at its error."""
        if run.state not in ("finished", "failed"):
            return
        try:
            self.files.write_outcome(run.request.name, run.outcome(time.time()))
        except OSError as error:
            self._store.add_event("outcome_lost", f"{run.request.name}: {error}")

    async def _train(self, run: LessonState, start: Start) -> None:
        """Raises the trainer's error."""
        if run.request.settings.policy != "exclusive":
            await self._train_beside(run, start)
            return
        await self._supervisor.unload()
        self._supervisor.reserve("the board is learning (policy exclusive)")
        try:
            await self._trainer_control.carry_out(run, start)
        finally:
            self._supervisor.reserve(None)

    async def _train_beside(self, run: LessonState, start: Start) -> None:
        """Where memory is short the worker gives up its repacked copy of the weights meanwhile."""
        if not self._board.conditions(0).is_short_of_memory:
            await self._trainer_control.carry_out(run, start)
            return
        await self._supervisor.share(True)
        try:
            await self._trainer_control.carry_out(run, start)
        finally:
            if not self._is_closing:
                await self._take_copy_back()

    async def _take_copy_back(self) -> None:
        """Never raises: the run is over, and the next load makes the copy."""
        try:
            await self._supervisor.share(False)
        except EdgeAgentError as error:
            self._store.add_event("reload_failed", f"after a lesson: {error}")

    # ---- afterwards ---------------------------------------------------------------------------

    async def _judge(self, run: LessonState, finished: Finished) -> None:
        """The gate, the registry, the activation. Raises engine errors, AdapterRefused."""
        run.state = "judging"
        request = run.request
        candidate = AdapterRef(finished.adapter_path, finished.adapter_sha256)
        await self._supervisor.check_adapter(request.model, candidate)
        active = self._registry.active(request.model)
        validation, taught = self.files.chats(request.name)
        run.rows = len(validation) + len(taught)
        run.gate = await run_gate(
            ServingEngine(self._supervisor, request.model),
            candidate,
            None if active is None else self._registry.reference(active),
            TaughtLesson(validation, taught, finished.ended, is_instruct(finished.end_loss)),
            progress=lambda note: run.publish("judging", {"note": note}),
            kept=await self._kept(request.model, active),
        )
        await asyncio.to_thread(self._register, run, finished, run.gate)
        if run.gate.passed and request.activate:
            await activation.activate(
                self._supervisor, request.model, request.name, checked_sha256=candidate.sha256
            )
            run.is_active = True

    async def _kept(self, model: str, active: AdapterRow | None) -> KeptResults:
        """What the model said to earlier gates, as it answers now."""
        info = await self._supervisor.ensure_loaded(model)
        sha256 = self._store.model(model).sha256
        who = f"{sha256} {active.sha256 if active else 'base'} {info.build} {info.n_threads}"
        return await asyncio.to_thread(KeptResults, self.files.gate_results, who)

    def _register(self, run: LessonState, finished: Finished, gate: GateReport) -> None:
        request = run.request
        settings = msgspec.to_builtins(request.settings)
        self._registry.add(
            request.model,
            request.name,
            Path(finished.adapter_path),
            source="trained",
            settings={
                **settings,
                **{"layers": finished.layers, "losses": finished.losses, "data": request.data},
                **{"rows": run.rows, "train_s": finished.train_s, "joules": run.joules},
            },
            judged_sha256=finished.adapter_sha256,
        )
        self._registry.set_gate(request.model, request.name, gate.as_json(), gate.passed)
        if request.data == FEEDBACK and gate.passed:
            mark_used(self._store, self.files.learned_feedback(request.name), request.name)


class ServingEngine:
    """Answers as a client would get them at temperature 0, without the prefix cache."""

    def __init__(self, supervisor: Supervisor, model: str) -> None:
        self._supervisor = supervisor
        self._model = model

    async def score(self, messages: list[Message], adapter: AdapterRef | None) -> Scores:
        """Log-probabilities of the assistant's turns. Raises every engine error."""
        return await self._supervisor.score(self._model, messages, adapter or _NO_PATH)

    async def score_text(self, text: str, adapter: AdapterRef | None) -> Scores:
        """Log-probabilities of a plain text. Raises every engine error."""
        return await self._supervisor.score_text(self._model, text, adapter or _NO_PATH)

    async def answer(
        self, messages: list[Message], adapter: AdapterRef | None, max_tokens: int
    ) -> GateAnswer:
        """The greedy answer. Raises every engine error."""
        request = Generate(
            id=0,
            sampling=Sampling(temperature=0.0),
            max_tokens=max_tokens,
            messages=messages,
            stream=False,
            cache_prompt=False,
            adapter=adapter or _NO_PATH,
        )
        async with aclosing(self._supervisor.generate(self._model, request)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return GateAnswer(event.text, event.finish_reason == "length")
        raise WorkerFailed("the gate got no answer", "the generation ended without Done")
