"""One optimizer step and one validation, for the training loop and for the trials of `auto`.

Why it exists: both need the same step. A step's loss is the mean over the supervised tokens of all
its rows, whatever their distribution among the rows. Flows in: rows of sample numbers, and the
PackedSamples with their stored states. Flows out: changed adapters, losses. Not here: the order and
the number of steps (training_loop.py, layer_choice.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_agent.adapt.messages import RunSettings
from edge_agent.adapt.trainer.decoder.decoder import Decoder
from edge_agent.adapt.trainer.decoder.lora import Loras, parameters
from edge_agent.adapt.trainer.optimizer import AdamW, clip, factor
from edge_agent.adapt.trainer.packed_samples import PackedSamples
from edge_agent.errors import TrainingFailed

Rows = Sequence[Sequence[int]]
"""Numbers of the samples in each packed row."""


@dataclass(frozen=True)
class Stepped:
    """The results of a step. `loss_sum` is in nats, over `n_supervised` tokens; `norm` is that of
    all gradients before clipping."""

    loss_sum: float
    n_supervised: int
    n_tokens: int
    learning_rate: float
    norm: float

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
    schedule.

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
    ) -> None:
        self.decoder, self.loras = decoder, loras
        self.packed = packed
        self.n_steps = n_steps
        self._settings = settings
        self.optimizer = AdamW(parameters(loras), settings.weight_decay)

    def step(self, rows: Rows, number: int) -> Stepped:
        """Train on `rows`; `number` is the step, counted from 0.

        Raises TrainingFailed when the loss or the gradient is NaN or infinite.
        """
        settings, loss_sum = self._settings, 0.0
        n_supervised = sum(self.packed.supervised(row) for row in rows)
        for lora in self.loras.values():
            lora.clear()
        for place, row in enumerate(rows):
            batch, start = self.packed.batch(row)
            seed = _micro_seed(settings, number, place)
            result = self.decoder.step(batch, 1.0 / n_supervised, start, dropout_seed=seed)
            loss_sum += float(result.losses.sum(dtype="f8"))
        norm = clip(parameters(self.loras), settings.max_grad_norm)
        if not math.isfinite(loss_sum) or not math.isfinite(norm):
            raise TrainingFailed(
                f"the loss of step {number + 1} is not a number",
                f"loss {loss_sum:g}, gradient {norm:g}",
                f"take a lower learning rate than {settings.learning_rate:g}",
            )
        rate = settings.learning_rate * factor(number, self.n_steps, settings.warmup_ratio)
        self.optimizer.step(parameters(self.loras), rate)
        n_tokens = sum(self.packed.tokens(row) for row in rows)
        return Stepped(loss_sum, n_supervised, n_tokens, rate, norm)

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


def _micro_seed(settings: RunSettings, step: int, place: int) -> int:
    """A dropout seed that differs for every row of a run."""
    return (settings.seed << 40) + step * settings.gradient_accumulation_steps + place
