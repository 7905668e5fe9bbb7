"""How long a row takes: a few real steps on the lesson's own rows, with temporary adapters.

Why it exists: the speed depends on the board, the model and its quantization, so it is measured.
Flows in: an open model file, a lesson, the blocks to train. Flows out: seconds per token of a step,
of a validation and of storing states. The first call of each kind is not counted, because it reads
the weights from the disk and allocates the buffers. The run's own adapters and files are not
touched. Not here: what follows from the times (plan.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.layer_choice import new_decoder
from edge_agent.adapt.trainer.packed_samples import PackedSamples, bins, supervised
from edge_agent.adapt.trainer.preparation import PreparedData
from edge_agent.adapt.trainer.rehearsal import Rehearsal, RehearsalOrder
from edge_agent.adapt.trainer.rehearsal_targets import K, RehearsalTargets
from edge_agent.adapt.trainer.training_loop import LoopTools
from edge_agent.adapt.trainer.training_step import TrainingStep

ENOUGH_S = 5.0
"""A first call of this many seconds is taken as the result: reading the weights is a small part of
it, and more calls would take too long."""
REPEATS = 3
"""Calls after the first one, of which the median counts."""


@dataclass(frozen=True)
class Rates:
    """Seconds per token of a training step, of a validation, and of storing states. A step's are
    those of the lesson's tokens, with what is rehearsed beside them."""

    step_s: float
    validate_s: float
    prefix_s: float


class _HeldStates:
    """Replaces the StateStore: holds the states of one row's samples in memory."""

    def __init__(self) -> None:
        self._held: dict[int, NDArray[Any]] = {}

    def put(self, first_token: int, states: NDArray[Any]) -> None:
        self._held[first_token] = states

    def read(self, first_token: int, n: int) -> NDArray[Any]:
        return self._held[first_token]


def calibrate(
    weights: PackedWeights,
    lesson: PreparedData,
    settings: RunSettings,
    layers: Sequence[int],
    batch_tokens: int,
    tools: LoopTools,
) -> Rates:
    """Measure the rates of training the blocks `layers` on the lesson's longest row, with
    rehearsal targets that cost as much as real ones.

    Raises StopAsked when the front stops the run between two steps.
    """
    decoder, loras = new_decoder(weights, settings, layers)
    packed, rehearsal = lesson.packed, lesson.rehearsal
    train = [packed.samples[n] for n in packed.train]
    row = max(bins(train, batch_tokens, range(len(train))), key=lambda row: packed.tokens(row))
    held = PackedSamples(train, [], rehearsal.samples)
    held.targets = _stand_ins(held, rehearsal, decoder.head.n_out)
    order = RehearsalOrder(rehearsal, held.rehearsal.start, settings.seed)
    n_tokens = held.tokens(row)
    training_step = TrainingStep(decoder, loras, held, settings, 1, order)
    prefix_s = 0.0
    if decoder.lowest > 0:
        batch, _ = held.batch(row)
        to_host = decoder.compute.to_host  # waits for a GPU, so that its work is timed
        prefix_s = _timed(lambda: to_host(decoder.states(batch, decoder.lowest)), tools)
        store, place = _HeldStates(), 0
        both = [*row, *(n for _, part in order.beside(0) for n in part)]
        states = to_host(decoder.states(held.batch(both)[0], decoder.lowest))
        for sample in both:
            n = len(held.samples[sample])
            store.put(held.first_token(sample), states[place : place + n])
            place += n
        held.prefix = store
    step_s = _timed(lambda: training_step.step([row], 0), tools)
    validate_s = _timed(lambda: training_step.validate([row], lambda _: None), tools)
    return Rates(step_s / n_tokens, validate_s / n_tokens, prefix_s / n_tokens)


def _stand_ins(held: PackedSamples, rehearsal: Rehearsal, n_vocab: int) -> RehearsalTargets | None:
    """Targets of K tokens, 1 / 2K each, in the place of those that no plan computes."""
    numbers = rehearsal.soft(held.rehearsal.start)
    if not numbers:
        return None
    n, k = sum(supervised(held.samples[number]) for number in numbers), min(K, n_vocab)
    ids = np.broadcast_to(np.arange(k), (n, k))
    return RehearsalTargets(held, numbers, ids, np.full((n, k), 0.5 / k, np.float32))


def _timed(work: Callable[[], object], tools: LoopTools) -> float:
    """Median seconds of REPEATS calls of `work` after a first call, which is not counted unless it
    takes ENOUGH_S."""
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
