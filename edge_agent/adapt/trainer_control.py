"""Drives one trainer process: relays what it says, pauses it when pause_policy.py says so.

Flows in: a Start message, the board, how many requests are being answered. Flows out: the Run
filled in, and events for whoever follows. Used by the daemon, by a command line without one, and by
`adapt run --here` beside one. Not here: judging and registering what was learned
(lesson_runner.py).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from edge_agent.adapt.lesson import LessonState
from edge_agent.adapt.messages import (
    Continue,
    Finished,
    FromTrainer,
    Pause,
    Planned,
    Start,
    Stop,
    Stopped,
    ToTrainer,
    TrainerFailed,
    TrainingProgress,
)
from edge_agent.adapt.pause_policy import PauseConditions, PausePolicy
from edge_agent.errors import EdgeAgentError, TrainingFailed, error_from_code
from edge_agent.supervisor.child_process import ChildProcess
from edge_agent.wire import FrameDecoder, WireError, encode

TRAINER_ARGV = (sys.executable, "-m", "edge_agent.adapt.trainer.process")

LOOK_S = 1.0
HELD = "paused by the user"
_EVENTS: Mapping[type, str] = {
    Planned: "planned",
    TrainingProgress: "progress",
    Finished: "finished",
    Stopped: "stopped",
}


class TrainerControl:
    """One trainer at a time. `busy` counts the requests being answered or waiting."""

    def __init__(
        self,
        board: PauseConditions,
        busy: Callable[[], int],
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`environ`: the trainer's [ours]."""
        self._board = board
        self._busy = busy
        self._environ = os.environ if environ is None else environ
        self._link: TrainerLink | None = None
        self.is_held = False
        """A user paused it."""

    @property
    def is_running(self) -> bool:
        return self._link is not None

    @property
    def pid(self) -> int | None:
        return self._link.pid if self._link else None

    def stop(self) -> None:
        """Ask the trainer to save a checkpoint and end."""
        if self._link is not None:
            self._link.send(Stop())

    async def plan(self, start: Start) -> Planned:
        """Raises the trainer's error, TrainingFailed when it says nothing."""
        link = self._link = await TrainerLink.spawn(start, self._environ)
        try:
            async with aclosing(link.records()) as records:
                async for record in records:
                    if isinstance(record, Planned):
                        return record
        finally:
            self._link = None
            await link.close()
        raise TrainingFailed("the plan ended without a result", "the trainer said nothing")

    async def carry_out(self, run: LessonState, start: Start) -> None:
        """Until the trainer ends; `run.finished` is set when it has finished. Raises its error."""
        link = self._link = await TrainerLink.spawn(start, self._environ)
        pausing = asyncio.create_task(self._pause_when_needed(run, link))
        try:
            async with aclosing(link.records()) as records:
                async for record in records:
                    self._note(run, record, is_whole=not start.resume)
        finally:
            pausing.cancel()
            self._link = None
            await link.close()

    def _note(self, run: LessonState, record: FromTrainer, *, is_whole: bool) -> None:
        """`is_whole`: no earlier process has trained a part of it, with joules of its own."""
        match record:
            case Planned():
                run.planned = record
            case TrainingProgress():
                joules = self._board.joules_since_last()
                if joules is not None and is_whole:
                    run.joules = (run.joules or 0.0) + joules
                record = msgspec.structs.replace(record, joules_per_step=joules)
                run.progress = record
            case Finished():
                run.finished = record
            case _:
                pass
        run.publish(_EVENTS[type(record)], msgspec.to_builtins(record))

    async def _pause_when_needed(self, run: LessonState, link: TrainerLink) -> None:
        policy = PausePolicy(run.request.settings.policy, self._board.limits())
        while True:
            reason = policy.decide(self._board.conditions(self._busy()))
            if self.is_held:
                reason = HELD
            if (reason or "") != run.pause_reason:
                self._switch(run, link, reason)
            await asyncio.sleep(LOOK_S)

    def _switch(self, run: LessonState, link: TrainerLink, reason: str | None) -> None:
        run.pause_reason = reason or ""
        run.state = "paused" if reason else "running"
        link.send(Pause(reason) if reason else Continue())
        fields: dict[str, Any] = {"reason": reason}
        run.publish("paused" if reason else "continued", fields)


class TrainerLink:
    """A running trainer. Made by `spawn`; `close` ends it."""

    def __init__(self, child: ChildProcess) -> None:
        self.pid = child.pid
        self._child = child

    @classmethod
    async def spawn(
        cls, start: Start, environ: Mapping[str, str], argv: Sequence[str] = TRAINER_ARGV
    ) -> TrainerLink:
        """Start the process and tell it what to do. Raises TrainingFailed."""
        try:
            child = await ChildProcess.spawn(argv, _environ(start, environ), cwd=os.sep)
        except OSError as error:
            hint = "check memory, process limits and the installation"
            raise TrainingFailed("the trainer could not be started", str(error), hint) from error
        link = cls(child)
        link.send(start)
        return link

    def send(self, message: ToTrainer) -> None:
        """Send a message, or drop it when the trainer is gone: `records` raises then."""
        self._child.write(encode(message))

    async def records(self) -> AsyncGenerator[FromTrainer, None]:
        """Everything the trainer says until it ends. Raises its typed error, TrainingFailed."""
        decoder: FrameDecoder[FromTrainer] = FrameDecoder(msgspec.msgpack.Decoder(FromTrainer))
        last: FromTrainer | None = None
        try:
            while data := await self._child.read():
                for last in decoder.feed(data):
                    if isinstance(last, TrainerFailed):
                        raise error_from_code(last.code, last.what, last.why, last.hint)
                    yield last
        except WireError as error:
            raise _died(f"it sent what no trainer sends: {error}") from error
        except ConnectionError:
            pass  # a reset instead of an end: the exit status says more
        if why := await self._child.wait():
            raise _died(why)

    async def close(self) -> None:
        """End the trainer, by SIGKILL if need be. Idempotent."""
        await self._child.end("being told to")


def _died(why: str) -> EdgeAgentError:
    return TrainingFailed(
        "the trainer died", why, "`edge-agent adapt resume` goes on from its last checkpoint"
    )


def _environ(start: Start, environ: Mapping[str, str]) -> dict[str, str]:
    """BLAS makes its threads when it is loaded, so their number comes from here."""
    n_threads = start.settings.n_threads
    threads = {} if n_threads is None else {"OPENBLAS_NUM_THREADS": str(n_threads)}
    return {**environ, **threads}
