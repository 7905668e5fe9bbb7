"""Drives one trainer process: relays what it says, pauses it when pause_policy.py says so.

Flows in: a Start message, the board, how many requests are being answered. Flows out: the Run
filled in, and events for whoever follows. Used by the daemon, by a command line without one, and by
`adapt run --here` beside one. Not here: judging and registering what was learned
(lesson_runner.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

import msgspec

from edge_agent.adapt.board import Board
from edge_agent.adapt.lesson import Run
from edge_agent.adapt.messages import (
    Continue,
    Finished,
    FromTrainer,
    Pause,
    Planned,
    Progress,
    Start,
    Stop,
)
from edge_agent.adapt.pause_policy import PausePolicy
from edge_agent.adapt.trainer_link import TrainerLink
from edge_agent.errors import TrainingFailed

LOOK_S = 1.0
HELD = "paused by the user"


class Training:
    """One trainer at a time. `busy` counts the requests being answered or waiting."""

    def __init__(
        self, board: Board, busy: Callable[[], int], environ: Mapping[str, str] | None = None
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

    async def carry_out(self, run: Run, start: Start) -> None:
        """Until the trainer ends; `run.finished` is set when it has finished. Raises its error."""
        link = self._link = await TrainerLink.spawn(start, self._environ)
        pausing = asyncio.create_task(self._pause_when_needed(run, link))
        try:
            async with aclosing(link.records()) as records:
                async for record in records:
                    self._note(run, record)
        finally:
            pausing.cancel()
            self._link = None
            await link.close()

    def _note(self, run: Run, record: FromTrainer) -> None:
        match record:
            case Planned():
                run.planned = record
            case Progress():
                joules = self._board.joules_since_last()
                if joules is not None:
                    run.joules = (run.joules or 0.0) + joules
                record = msgspec.structs.replace(record, joules_per_step=joules)
                run.progress = record
            case Finished():
                run.finished = record
            case _:
                pass
        run.publish(type(record).__name__.lower(), msgspec.to_builtins(record))

    async def _pause_when_needed(self, run: Run, link: TrainerLink) -> None:
        policy = PausePolicy(run.request.settings.policy, self._board.limits())
        while True:
            reason = policy.decide(self._board.conditions(self._busy()))
            if self.is_held:
                reason = HELD
            if (reason or "") != run.pause_reason:
                self._switch(run, link, reason)
            await asyncio.sleep(LOOK_S)

    def _switch(self, run: Run, link: TrainerLink, reason: str | None) -> None:
        run.pause_reason = reason or ""
        run.state = "paused" if reason else "running"
        link.send(Pause(reason) if reason else Continue())
        fields: dict[str, Any] = {"reason": reason}
        run.publish("paused" if reason else "continued", fields)
