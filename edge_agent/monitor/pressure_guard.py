"""Reduces the daemon's load under memory pressure and heat, in three stages, and restores it.

Flows in: one Snapshot a second, on the event loop. Flows out: the supervisor's actions, and for
each action an event in the store and a line in the log. The decision is a pure function of the
guard's state and the snapshot. It has hysteresis: pressure must last for seconds before a stage
begins, and calm must last before a stage ends. A missing sensor never causes an action. Not here:
reading sensors (board_sampler.py), how a model is unloaded (supervisor/).

    stage 0 normal -> 1 new requests refused -> 2 model reloaded with one slot -> 3 model unloaded
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

from edge_agent.config import Settings
from edge_agent.errors import EdgeAgentError
from edge_agent.monitor.board_sampler import Snapshot

_LOG = logging.getLogger(__name__)

ENTER_S = 2.0
"""Seconds of pressure before the first stage."""
ESCALATE_S = 10.0
CRITICAL_S = 2.0
"""Seconds of pressure before any stage while the pressure is critical; ESCALATE_S before a further
stage otherwise."""
RECOVER_S = 10.0
AVAILABLE_SHARE = 0.05
CRITICAL_MEMORY, CRITICAL_CELSIUS = 0.5, 5.0
"""Critical: half of the memory threshold, 5 degrees above the heat threshold."""
CALM_MEMORY, CALM_PSI, CALM_CELSIUS = 1.25, 0.5, 5.0
"""Calm: a quarter more memory, half the stall, 5 degrees cooler than the threshold."""
TRIP_MARGIN_CELSIUS = 5.0
LAST_STAGE = 3
MIB = 1 << 20


@dataclass(frozen=True)
class Thresholds:
    """`available_bytes` None means AVAILABLE_SHARE of the board's memory."""

    available_bytes: int | None
    psi_percent: float
    celsius: float


@dataclass(frozen=True)
class GuardState:
    """`pressed_since_s` and `calm_since_s` are monotonic seconds; None: it is not so now."""

    stage: int = 0
    reason: str = ""
    pressed_since_s: float | None = None
    calm_since_s: float | None = None


@dataclass(frozen=True)
class GuardVerdict:
    """The verdict of one snapshot, or of one sensor in it."""

    is_pressed: bool
    is_critical: bool
    is_calm: bool
    reason: str


class GuardedEngine(Protocol):
    """The methods of the supervisor that the guard calls."""

    def refuse(self, reason: str | None) -> None: ...
    def shrink(self, is_small: bool) -> Awaitable[str]: ...
    def unload(self, *, force: bool = False) -> Awaitable[bool]: ...


class GuardEvents(Protocol):
    """The method of the store that the guard calls."""

    def add_event(self, kind: str, detail: str) -> Future[None]: ...


def thresholds(settings: Settings) -> Thresholds:
    return Thresholds(
        settings.guard_available_bytes, settings.guard_psi_percent, settings.guard_celsius
    )


def judge(snapshot: Snapshot, limits: Thresholds) -> GuardVerdict:
    """Compare one snapshot with the thresholds.

    One sensor above its threshold is pressure; calm needs every sensor that can be read.
    """
    verdicts = [*_memory(snapshot, limits), *_pressure(snapshot, limits), *_heat(snapshot, limits)]
    pressed = [one for one in verdicts if one.is_pressed]
    return GuardVerdict(
        is_pressed=bool(pressed),
        is_critical=any(one.is_critical for one in pressed),
        is_calm=all(one.is_calm for one in verdicts),
        reason="; ".join(one.reason for one in pressed),
    )


def _memory(snapshot: Snapshot, limits: Thresholds) -> list[GuardVerdict]:
    memory = snapshot.memory
    limit = limits.available_bytes
    if limit is None and memory.total_bytes is not None:
        limit = round(AVAILABLE_SHARE * memory.total_bytes)
    available = memory.available_bytes
    if available is None or limit is None:
        return []
    reason = f"memory pressure: {available // MIB} MiB available, the guard acts below "
    return [
        GuardVerdict(
            available < limit,
            available < CRITICAL_MEMORY * limit,
            available >= CALM_MEMORY * limit,
            f"{reason}{limit // MIB} MiB",
        )
    ]


def _pressure(snapshot: Snapshot, limits: Thresholds) -> list[GuardVerdict]:
    stalled = snapshot.memory.psi_full_percent
    if stalled is None:
        return []
    limit = limits.psi_percent
    reason = f"memory pressure: all tasks waited {stalled:.0f} % of 10 s, the guard acts at "
    return [
        GuardVerdict(stalled >= limit, False, stalled < CALM_PSI * limit, f"{reason}{limit:.0f} %")
    ]


def _heat(snapshot: Snapshot, limits: Thresholds) -> list[GuardVerdict]:
    verdicts = []
    for zone, celsius in snapshot.thermal.zones_celsius.items():
        if celsius is None:
            continue
        trip = snapshot.thermal.critical_celsius.get(zone)
        limit = limits.celsius if trip is None else min(limits.celsius, trip - TRIP_MARGIN_CELSIUS)
        reason = f"heat: {zone} has {celsius:.1f} C, the guard acts at {limit:.1f} C"
        is_critical = celsius >= limit + CRITICAL_CELSIUS
        verdicts.append(
            GuardVerdict(celsius >= limit, is_critical, celsius < limit - CALM_CELSIUS, reason)
        )
    return verdicts


def decide(state: GuardState, verdict: GuardVerdict, now_s: float) -> GuardState:
    """The next state: one stage up after lasting pressure, one stage down after lasting calm."""
    if verdict.is_pressed:
        since_s = now_s if state.pressed_since_s is None else state.pressed_since_s
        wait_s = ENTER_S if state.stage == 0 else ESCALATE_S
        if verdict.is_critical:
            wait_s = CRITICAL_S
        if now_s - since_s >= wait_s and state.stage < LAST_STAGE:
            return GuardState(state.stage + 1, verdict.reason, now_s)
        return (
            replace(state, pressed_since_s=since_s, calm_since_s=None, reason=verdict.reason)
            if state.stage
            else replace(state, pressed_since_s=since_s)
        )
    if state.stage == 0 or not verdict.is_calm:
        return replace(state, pressed_since_s=None, calm_since_s=None)
    since_s = now_s if state.calm_since_s is None else state.calm_since_s
    if now_s - since_s < RECOVER_S:
        return replace(state, pressed_since_s=None, calm_since_s=since_s)
    stage = state.stage - 1
    return GuardState(stage, state.reason if stage else "", None, now_s if stage else None)


class PressureGuard:
    """Call `feed` with each snapshot on the event loop. GET /status and /metrics show `stage` and
    `reason`.

        guard = PressureGuard(thresholds(settings), supervisor, store)
        guard.feed(snapshot)
    """

    def __init__(self, limits: Thresholds, engine: GuardedEngine, events: GuardEvents) -> None:
        self._limits = limits
        self._engine = engine
        self._events = events
        self._state = GuardState()
        self._acting: asyncio.Task[None] | None = None

    @property
    def stage(self) -> int:
        return self._state.stage

    @property
    def reason(self) -> str:
        return self._state.reason

    def feed(self, snapshot: Snapshot) -> None:
        """Judge one snapshot; start the stage's action when the stage changes."""
        before = self._state
        self._state = decide(before, judge(snapshot, self._limits), snapshot.at_s)
        if self._state.stage != before.stage:
            why = self._state.reason or before.reason
            self._note(f"stage {before.stage} -> {self._state.stage}: {why}")
            self._act(before.stage)
        elif self._state.stage:
            self._engine.refuse(self._state.reason)

    def _act(self, before: int) -> None:
        """Refuse requests immediately; start a task for what must wait for running requests."""
        stage = self._state.stage
        self._engine.refuse(self._state.reason if stage else None)
        if stage >= 2 or before >= 2:
            if self._acting is not None:
                self._acting.cancel()
            self._acting = asyncio.create_task(self._apply(stage))

    async def _apply(self, stage: int) -> None:
        try:
            if stage >= LAST_STAGE:
                await self._unload()
            else:
                self._note(await self._engine.shrink(stage >= 2))
        except EdgeAgentError as error:
            self._note(f"stage {stage} could not be carried out: {error}")

    async def _unload(self) -> None:
        """Unload the model. Running requests get ESCALATE_S to end, then they are ended."""
        try:
            was_loaded = await asyncio.wait_for(self._engine.unload(), ESCALATE_S)
        except (asyncio.TimeoutError, EdgeAgentError):
            was_loaded = await self._engine.unload(force=True)
        self._note("the model was unloaded" if was_loaded else "no model was loaded")

    def _note(self, text: str) -> None:
        _LOG.warning("guard: %s", text)
        self._events.add_event("guard", text)
