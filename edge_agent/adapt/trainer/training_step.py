"""One optimizer step and one validation, for the training loop and for the trials of `auto`.

Why it exists: both need the same step. A step's loss is the mean over the supervised tokens of all
its rows, whatever their distribution among the rows, plus each rehearsal pool's weight times the
mean of its own positions. Flows in: rows of sample numbers, and the PackedSamples with their stored
states. Flows out: changed adapters, losses. Not here: the order and the number of steps
(training_loop.py, layer_choice.py), which samples are rehearsed beside a row (rehearsal.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.decoder.decoder import Decoder
from edge_agent.adapt.trainer.decoder.lora import Loras, parameters
from edge_agent.adapt.trainer.optimizer import AdamW, clip, factor
from edge_agent.adapt.trainer.packed_samples import PackedSamples
from edge_agent.adapt.trainer.rehearsal import RehearsalOrder
from edge_agent.errors import TrainingFailed

Rows = Sequence[Sequence[int]]
"""Numbers of the samples in each packed row."""


@dataclass(frozen=True)
class Stepped:
    """The results of a step. `loss_sum` is in nats, over the lesson's `n_supervised` tokens, of
    which `n_missed` were not the likeliest ones; `n_tokens` counts the rehearsal's tokens too.
    `norm` is that of all gradients before clipping; `rehearsal_loss` is a mean, None without."""

    loss_sum: float
    n_supervised: int
    n_missed: int
    n_tokens: int
    learning_rate: float
    norm: float
    rehearsal_loss: float | None = None

    @property
    def loss(self) -> float:
        """Mean nats per supervised token."""
        return self.loss_sum / self.n_supervised


@dataclass(frozen=True)
class ValidationScore:
    """The result of a validation: `loss` in nats per supervised token, and the bits per UTF-8 byte
    of the answers."""

    loss: float
    bits_per_byte: float


class TrainingStep:
    """Steps and validations of one set of adapters. `n_steps` is the length of the learning rate's
    schedule, `rehearsal` says what is rehearsed beside each row; None: nothing.

        training_step = TrainingStep(decoder, loras, packed, settings, n_steps=100)
        training_step.step([[0, 1], [2]], number=0).loss
    """

    def __init__(
        self,
        decoder: Decoder,
        loras: Loras,
        packed: PackedSamples,
        settings: RunSettings,
        n_steps: int,
        rehearsal: RehearsalOrder | None = None,
    ) -> None:
        self.decoder, self.loras = decoder, loras
        self._rehearsal = rehearsal
        self.packed = packed
        self.n_steps = n_steps
        self._settings = settings
        self.optimizer = AdamW(parameters(loras), settings.weight_decay)

    def step(self, rows: Rows, number: int) -> Stepped:
        """Train on `rows`; `number` is the step, counted from 0.

        Raises TrainingFailed when the loss or the gradient is NaN or infinite.
        """
        settings, packed, loss_sum, rehearsed, n_missed = self._settings, self.packed, 0.0, 0.0, 0
        first = number * settings.gradient_accumulation_steps
        mixed = [self._mixed(row, first + place) for place, row in enumerate(rows)]
        n_supervised = sum(packed.supervised(row) for row in rows)
        n_mixed = sum(packed.supervised(one.numbers) for one in mixed) - n_supervised
        for lora in self.loras.values():
            lora.clear()
        for place, (row, one) in enumerate(zip(rows, mixed, strict=True)):
            batch, start = packed.batch(one.numbers, one.weights(packed, mixed))
            seed = _micro_seed(settings, number, place)
            result = self.decoder.step(batch, 1.0 / n_supervised, start, dropout_seed=seed)
            n_own = packed.supervised(row)
            loss_sum += float(result.losses[:n_own].sum(dtype="f8"))
            rehearsed += float(result.losses[n_own:].sum(dtype="f8"))
            n_missed += n_own - int(result.is_first[:n_own].sum())
        norm = clip(parameters(self.loras), settings.max_grad_norm)
        if not math.isfinite(loss_sum) or not math.isfinite(norm):
            raise TrainingFailed(
                f"the loss of step {number + 1} is not a number",
                f"loss {loss_sum:g}, gradient {norm:g}",
                f"take a lower learning rate than {settings.learning_rate:g}",
            )
        rate = settings.learning_rate * factor(number, self.n_steps, settings.warmup_ratio)
        self.optimizer.step(parameters(self.loras), rate)
        n_tokens = sum(packed.tokens(one.numbers) for one in mixed)
        mean = rehearsed / n_mixed if n_mixed else None
        return Stepped(loss_sum, n_supervised, n_missed, n_tokens, rate, norm, mean)

    def _mixed(self, row: Sequence[int], number: int) -> _MixedRow:
        """The row with what is rehearsed beside it; `number` is that of the row in the run."""
        if self._rehearsal is None:
            return _MixedRow(row, [])
        pairs = self._rehearsal.beside(number)
        return _MixedRow(row, [(pool.weight, part) for pool, part in pairs])

    def n_missed(self, rows: Rows, after_row: Callable[[int], None]) -> int:
        """Number of supervised tokens of `rows` that are not the likeliest ones."""
        missed = 0
        for number, row in enumerate(rows):
            batch, start = self.packed.batch(row)
            is_first = self.decoder.evaluate(batch, start).is_first
            missed += len(is_first) - int(is_first.sum())
            after_row(number)
        return missed

    def validate(self, rows: Rows, after_row: Callable[[int], None]) -> ValidationScore:
        """The score of `rows`. `after_row(number)` is called after each row, for pauses."""
        loss_sum, n_supervised, n_bytes = 0.0, 0, 0
        for number, row in enumerate(rows):
            batch, start = self.packed.batch(row)
            loss_sum += float(self.decoder.evaluate(batch, start).losses.sum(dtype="f8"))
            n_supervised += self.packed.supervised(row)
            n_bytes += self.packed.n_bytes(row)
            after_row(number)
        return ValidationScore(loss_sum / n_supervised, loss_sum / math.log(2) / max(1, n_bytes))


@dataclass(frozen=True)
class _MixedRow:
    """A row of the lesson, and beside it each rehearsal pool's weight and samples."""

    row: Sequence[int]
    beside: Sequence[tuple[float, Sequence[int]]]

    @property
    def numbers(self) -> list[int]:
        return [*self.row, *(n for _, part in self.beside for n in part)]

    def weights(self, packed: PackedSamples, mixed: Sequence[_MixedRow]) -> list[float] | None:
        """The weight of each sample's losses, where 1 is that of the lesson's, for the step of the
        rows `mixed`; None without rehearsal."""
        if not self.beside:
            return None
        n_supervised = sum(packed.supervised(one.row) for one in mixed)
        found = [1.0] * len(self.row)
        for place, (weight, part) in enumerate(self.beside):
            n_pool = sum(packed.supervised(one.beside[place][1]) for one in mixed)
            found += [weight * n_supervised / n_pool] * len(part)
        return found


def _micro_seed(settings: RunSettings, step: int, place: int) -> int:
    """A dropout seed that differs for every row of a run."""
    return (settings.seed << 40) + step * settings.gradient_accumulation_steps + place
