"""How long a row takes: a few real steps on the lesson's own rows, with adapters made for it.

Flows in: an open model file, a lesson, the blocks to train. Flows out: seconds a token of a step,
of a validation and of storing the prefix. The first of each is not counted: it reads the weights
from the disk and makes the buffers. Nothing of the run is touched. Not here: what follows from it
(plan.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapt.messages import RunSettings
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.layer_choice import new_decoder
from edge_agent.adapt.trainer.packed_samples import PackedSamples, bins
from edge_agent.adapt.trainer.training_loop import LoopTools
from edge_agent.adapt.trainer.training_step import TrainingStep

ENOUGH_S = 5.0
"""A first time that is so long counts: what makes it slow is small beside it."""
REPEATS = 3


@dataclass(frozen=True)
class Rates:
    """Seconds a real token."""

    step_s: float
    validate_s: float
    prefix_s: float


class _HeldStates:
    """Stands for the prefix store: the states of the samples of one row."""

    def __init__(self) -> None:
        self._held: dict[int, NDArray[Any]] = {}

    def put(self, first_token: int, states: NDArray[Any]) -> None:
        self._held[first_token] = states

    def read(self, first_token: int, n: int) -> NDArray[Any]:
        return self._held[first_token]


def calibrate(
    weights: PackedWeights,
    packed: PackedSamples,
    settings: RunSettings,
    layers: Sequence[int],
    batch_tokens: int,
    tools: LoopTools,
) -> Rates:
    """Raises StopAsked when the front asks for it between two steps."""
    decoder, loras = new_decoder(weights, settings, layers)
    train = [packed.samples[n] for n in packed.train]
    row = max(bins(train, batch_tokens, range(len(train))), key=lambda row: packed.tokens(row))
    held = PackedSamples(train, [])
    n_tokens = held.tokens(row)
    training_step = TrainingStep(decoder, loras, held, settings, 1)
    prefix_s = 0.0
    if decoder.lowest > 0:
        batch, _ = held.batch(row)
        prefix_s = _timed(lambda: decoder.states(batch, decoder.lowest), tools)
        states, place, store = decoder.states(batch, decoder.lowest), 0, _HeldStates()
        for sample in row:
            n = len(train[sample])
            store.put(held.first_token(sample), states[place : place + n])
            place += n
        held.prefix = store
    step_s = _timed(lambda: training_step.step([row], 0), tools)
    validate_s = _timed(lambda: training_step.validate([row], lambda _: None), tools)
    return Rates(step_s / n_tokens, validate_s / n_tokens, prefix_s / n_tokens)


def _timed(work: Callable[[], object], tools: LoopTools) -> float:
    """Median seconds of REPEATS calls after a first one."""
    seconds: list[float] = []
    for _ in range(1 + REPEATS):
        began_s = tools.monotonic()
        work()
        seconds.append(tools.monotonic() - began_s)
        tools.reporter.note("measuring the speed")
        tools.pauses.rest()
        if seconds[0] >= ENOUGH_S:
            return seconds[0]
    return float(np.median(seconds[1:]))
