"""Where a lesson takes place: in the running daemon, beside it, or here when none runs.

Flows in: what the command line asks for. Flows out: the same plans, events and statuses every way.
Beside the daemon (`--here`) the trainer is this process's child, so that systemd can give it a
control group of its own (edge-agent-train.service); the daemon then judges what it learned. Not
here: the run (adapt/lesson_runner.py), flags and printing (cli/commands/adapt.py).
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from edge_agent.adapt.run_settings import RunSettings
from edge_agent.client.connection import Client, find_daemon, state_dir_of
from edge_agent.errors import (
    DaemonNotRunning,
    DataRefused,
    EdgeAgentError,
)
from edge_agent.model_names import split_name

Event = dict[str, Any]
Tell = Callable[[Event], None]
BackgroundWork = Callable[[Tell, threading.Event], Awaitable[None]]

if TYPE_CHECKING:
    from edge_agent.adapt.lesson import LessonRequest
    from edge_agent.adapt.lesson_runner import LessonRunner
    from edge_agent.supervisor.supervisor import Supervisor

TIMEOUT_S = 7 * 86400.0
"""A lesson may be silent while it is paused; whoever waits for it ends it with Ctrl-C."""
BUSY_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class LessonDraft:
    """`data` None: what users corrected. `model` None: the only or the default one."""

    name: str
    model: str | None
    data: Path | None
    settings: RunSettings
    activate: bool = True


class Lessons(Protocol):
    """All raise the errors of session.LessonRunner."""

    @property
    def is_here(self) -> bool:
        """The lesson ends with this process."""

    def plan(self, lesson: LessonDraft) -> dict[str, Any]: ...
    def run(self, lesson: LessonDraft) -> Iterator[Event]: ...
    def resume(self, name: str | None) -> Iterator[Event]: ...


def open_lessons(
    state_dir: Path | None, environ: Mapping[str, str], *, here: bool = False
) -> Lessons:
    """The daemon's, if one answers; beside it with `here`."""
    try:
        client = find_daemon(state_dir, environ, TIMEOUT_S)
    except DaemonNotRunning:
        return LocalLessons(state_dir, environ)
    return BesideLessons(client, environ) if here else DaemonLessons(client)


@dataclass(frozen=True)
class DaemonLessons:
    """Through /adapt of the running daemon."""

    client: Client
    is_here: bool = False

    def plan(self, lesson: LessonDraft) -> dict[str, Any]:
        return self.client.post("/adapt/plan", _body(lesson))

    def run(self, lesson: LessonDraft) -> Iterator[Event]:
        yield from self.client.lines("/adapt/run", _body(lesson))

    def resume(self, name: str | None) -> Iterator[Event]:
        self.client.post("/adapt/resume", {} if name is None else {"name": name})
        yield from self.client.lines("/adapt/events", None)


@dataclass(frozen=True)
class LocalLessons:
    """In this process, under STATE/lock: store, worker and trainer live as long as the lesson."""

    state_dir: Path | None
    environ: Mapping[str, str]
    is_here: bool = True

    def plan(self, lesson: LessonDraft) -> dict[str, Any]:
        async def work() -> dict[str, Any]:
            async with _lesson_runner(self.state_dir, self.environ) as (lesson_runner, supervisor):
                planned = await lesson_runner.plan(_request(lesson, supervisor))
                return dict(msgspec.to_builtins(planned))

        return asyncio.run(work())

    def run(self, lesson: LessonDraft) -> Iterator[Event]:
        return self._events(lesson, None)

    def resume(self, name: str | None) -> Iterator[Event]:
        return self._events(None, name)

    def _events(self, lesson: LessonDraft | None, name: str | None) -> Iterator[Event]:
        async def work(tell: Tell, has_left: threading.Event) -> None:
            async with _lesson_runner(self.state_dir, self.environ) as (lesson_runner, supervisor):
                if lesson is None:
                    lesson_runner.resume(name)
                else:
                    await lesson_runner.begin(_request(lesson, supervisor))
                watching = asyncio.create_task(until_set(has_left, lesson_runner.stop))
                async for event in lesson_runner.follow():
                    tell(event)
                watching.cancel()

        return followed(work)


@dataclass(frozen=True)
class BesideLessons:
    """The trainer is our child; the daemon says when to pause, and judges the result."""

    client: Client
    environ: Mapping[str, str]
    is_here: bool = True

    def plan(self, lesson: LessonDraft) -> dict[str, Any]:
        return DaemonLessons(self.client).plan(lesson)

    def run(self, lesson: LessonDraft) -> Iterator[Event]:
        """Trains here, then follows the daemon's judgement."""
        from edge_agent.adapt.lesson_files import FEEDBACK, LessonFiles

        files = LessonFiles(Path(self.client.get("/status")["state_dir"]))
        model = self.model(lesson.model)
        data = FEEDBACK if lesson.data is None else str(lesson.data.absolute())
        request = _run_request(lesson, model, data)
        if lesson.data is None:
            files.write_feedback(lesson.name, self.feedback(model))
        self.client.post("/adapt/earlier", {"name": lesson.name, "model": model})
        files.write_request(request)
        return self._train(request, resume=False)

    def resume(self, name: str | None) -> Iterator[Event]:
        from edge_agent.adapt.lesson_files import LessonFiles

        files = LessonFiles(Path(self.client.get("/status")["state_dir"]))
        return self._train(files.stored_request(name), resume=True)

    def _train(self, request: LessonRequest, *, resume: bool) -> Iterator[Event]:
        last: Event = {}
        for last in followed(lambda tell, left: self._trained(request, resume, tell, left)):
            if last.get("event") != "end":
                yield last
        if last.get("state") != "finished":
            yield last
            return
        yield from self.judge(request.name, (last.get("result") or {}).get("joules"))

    def judge(self, name: str, joules: float | None = None) -> Iterator[Event]:
        """The daemon's judgement of what was trained beside it."""
        yield from self.client.lines("/adapt/judge", {"name": name, "joules": joules})

    async def _trained(
        self, request: LessonRequest, resume: bool, tell: Tell, has_left: threading.Event
    ) -> None:
        from edge_agent.adapt.lesson import LessonState
        from edge_agent.adapt.lesson_files import LessonFiles
        from edge_agent.adapt.pause_policy import PauseConditions
        from edge_agent.adapt.trainer_control import TrainerControl
        from edge_agent.client.models import DaemonModels
        from edge_agent.config import load_settings

        state_dir = Path(self.client.get("/status")["state_dir"])
        details = DaemonModels(self.client).details(request.model)
        files = LessonFiles(state_dir)
        start = files.start(request, details.path, details.sha256, resume=resume)
        run = LessonState(request, started_at=time.time())
        training = TrainerControl(
            PauseConditions(load_settings({"state_dir": state_dir})), self._busy
        )
        watching = asyncio.create_task(until_set(has_left, training.stop))
        with run.watched(tell):
            try:
                await training.carry_out(run, start)
                run.state = "finished" if run.finished else "stopped"
            except EdgeAgentError as error:
                run.error, run.state = error, "failed"
                files.write_outcome(request.name, run.outcome(time.time()))
        watching.cancel()
        tell({"event": "end", **run.as_json()})

    def feedback(self, model: str) -> Iterator[dict[str, Any]]:
        """The rows that are learned, as an export has them."""
        return self.client.lines(f"/v1/feedback/export?model={model}", None)

    def _busy(self) -> int:
        try:
            engine = Client(self.client.socket_path, BUSY_TIMEOUT_S).get("/status")["engine"]
        except EdgeAgentError:
            return 0  # a daemon that is gone answers nobody
        return int(engine["in_flight"]) + int(engine["queued"])

    def model(self, named: str | None) -> str:
        """The registered model that is meant. Raises ModelNotFound, UsageError."""
        from edge_agent.adapt.lesson import taught_model
        from edge_agent.client.models import DaemonModels

        model, tag = split_name(DaemonModels(self.client).details(named).name)
        return taught_model(model, tag if named else None)


@asynccontextmanager
async def _lesson_runner(
    state_dir: Path | None, environ: Mapping[str, str]
) -> AsyncIterator[tuple[LessonRunner, Supervisor]]:
    """Under STATE/lock. Raises DaemonRunning, UsageError."""
    from edge_agent.adapt.lesson_runner import LessonRunner
    from edge_agent.adapt.pause_policy import PauseConditions
    from edge_agent.config import load_settings
    from edge_agent.state_dir import StateDir
    from edge_agent.store.store import Store
    from edge_agent.supervisor.supervisor import Supervisor
    from edge_agent.supervisor.worker_link import WORKER_ARGV

    settings = load_settings({"state_dir": state_dir_of(state_dir, environ)})
    state = StateDir(settings.state_dir)
    state.acquire()
    try:
        with Store(state.database) as store:
            supervisor = Supervisor(settings, store, WORKER_ARGV, environ=environ)
            lesson_runner = LessonRunner(
                store, supervisor, PauseConditions(settings), state.path, environ
            )
            try:
                yield lesson_runner, supervisor
            finally:
                await lesson_runner.close()
                await supervisor.close(0)
    finally:
        state.release()


def _request(lesson: LessonDraft, supervisor: Supervisor) -> LessonRequest:
    from edge_agent.adapt.lesson import taught_model
    from edge_agent.adapt.lesson_files import FEEDBACK

    row, tag = supervisor.which_model(lesson.model)
    model = taught_model(row.name, tag if lesson.model else None)
    data = FEEDBACK if lesson.data is None else str(lesson.data.absolute())
    return _run_request(lesson, model, data)


def _run_request(lesson: LessonDraft, model: str, data: str) -> LessonRequest:
    from edge_agent.adapt.lesson import LessonRequest

    return LessonRequest(lesson.name, model, data, lesson.settings, lesson.activate)


def _body(lesson: LessonDraft) -> dict[str, Any]:
    """The request of /adapt/run. The daemon may not be able to read the user's file: it is sent."""
    body: dict[str, Any] = {
        "name": lesson.name,
        "model": lesson.model,
        "activate": lesson.activate,
        "settings": json.loads(msgspec.json.encode(lesson.settings)),
    }
    if lesson.data is None:
        return {**body, "source": "feedback"}
    try:
        return {**body, "rows": lesson.data.read_text("utf-8")}
    except (OSError, UnicodeDecodeError) as error:
        raise DataRefused(f"cannot read {lesson.data}", str(error), "give UTF-8 JSONL") from error


def followed(work: BackgroundWork) -> Iterator[Event]:
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


async def _as_coroutine(work: BackgroundWork, tell: Tell, has_left: threading.Event) -> None:
    await work(tell, has_left)


async def until_set(event: threading.Event, then: Callable[[], object]) -> None:
    """Calls `then` once the event is set; cancel it when it is needed no longer."""
    while not event.is_set():
        await asyncio.sleep(0.1)
    then()
