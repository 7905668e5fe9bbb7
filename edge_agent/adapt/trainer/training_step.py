"""One optimizer step and one validation: what training and the trials of `auto` have in common.

Flows in: rows of packed samples, each sample with its stored states where a frozen prefix was
stored. Flows out: changed adapters, losses. A step's loss is the mean over all supervised tokens of
its rows, however they are divided among them. Not here: in which order, how often, until when
(training_loop.py, layer_choice.py).
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
    """`loss_sum` in nats over `n_supervised` tokens; `norm` of the gradients before clipping."""

    loss_sum: float
    n_supervised: int
    n_tokens: int
    learning_rate: float
    norm: float

    @property
    def loss(self) -> float:
        return self.loss_sum / self.n_supervised


@dataclass(frozen=True)
class ValidationScore:
    """Of a validation: nats a supervised token, bits a byte of the answers."""

    loss: float
    bits_per_byte: float


class TrainingStep:
    """Adapters being trained. `n_steps` is the length of the learning rate's schedule."""

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
        """Step `number`, counted from 0. Raises TrainingFailed when a loss is not a number."""
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
        """`after_row(number)` is called between two rows."""
        loss_sum, n_supervised, n_bytes = 0.0, 0, 0
        for number, row in enumerate(rows):
            batch, start = self.packed.batch(row)
            loss_sum += float(self.decoder.evaluate(batch, start).losses.sum(dtype="f8"))
            n_supervised += self.packed.supervised(row)
            n_bytes += self.packed.n_bytes(row)
            after_row(number)
        return ValidationScore(loss_sum / n_supervised, loss_sum / math.log(2) / max(1, n_bytes))


def _micro_seed(settings: RunSettings, step: int, place: int) -> int:
    """Another number for every row of a run."""
    return (settings.seed << 40) + step * settings.gradient_accumulation_steps + place
