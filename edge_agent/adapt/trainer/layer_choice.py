"""Which blocks get an adapter: as the user says, or the best of a few short trials.

Why it exists: the cost of a run grows with the number of blocks from its lowest trained block to
the top, and nobody knows beforehand how many blocks a lesson needs. With `auto`, the top 2, 4, 8
and all blocks are trained for the same predicted work each, and the candidate with the lowest
validation loss is chosen. The work follows from the model's shape and not from a clock, so the same
run always chooses the same blocks. A finished trial is saved; a killed one is repeated. Block
influence is 1 - cosine between the states that enter and leave a block, averaged over tokens
(ShortGPT, arXiv 2403.03853). It is reported only, because the cost depends on the lowest trained
block and the blocks with the highest influence can be the lowest: 0, 1 and 5 in Gemma 3 270M. Flows
in: the model's weights, samples, settings. Flows out: block numbers, trials, influences. Not here:
the training after the choice (training_loop.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.decoder.compute import Array
from edge_agent.adapt.trainer.decoder.decoder import Decoder, PackedRow
from edge_agent.adapt.trainer.decoder.lora import LoraSettings, LoraWeight, new_loras, target_sizes
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.packed_samples import PackedSamples, bins, epoch_order
from edge_agent.adapt.trainer.run_directory import StateFiles
from edge_agent.adapt.trainer.stored_states import StateFiller
from edge_agent.adapt.trainer.training_loop import LoopTools
from edge_agent.adapt.trainer.training_step import TrainingStep
from edge_agent.errors import UsageError
from edge_agent.gguf.model_file import GgufFile

AUTO_BLOCKS = (2, 4, 8)
"""Numbers of top blocks that `auto` tries, beside all blocks."""
TRIAL_STEPS = 8
"""Steps of the trial with all blocks. Trials with fewer blocks take more steps, for equal work."""
TRIAL_ROWS, TRIAL_VALIDATION_ROWS = 16, 6
"""Packed rows that the trials train on and validate with, at most."""
INFLUENCE_ROWS = 2
"""Packed rows from which block influence is computed."""
TRAINED = 3.0
"""Work of a trained block, in forward passes: forward, forward again, and backward."""


def parse_layers(text: str, n_layer: int) -> list[int] | None:
    """The block numbers that the text of --layers names, ascending; None for `auto`.

    Raises UsageError for any other text and for blocks that the model does not have.

    >>> parse_layers("top:2", 6), parse_layers("4,1", 6), parse_layers("auto", 6)
    ([4, 5], [1, 4], None)
    """
    kind, _, count = text.strip().partition(":")
    if kind == "auto" and not count:
        return None
    if kind == "all" and not count:
        return list(range(n_layer))
    try:
        found = top(int(count), n_layer) if kind == "top" else sorted(map(int, text.split(",")))
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or found[0] < 0 or found[-1] >= n_layer:
        raise UsageError(
            f"layers {text[:80]!r} cannot be",
            f"the model has the blocks 0 to {n_layer - 1}",
            "give auto, all, top:4, or numbers such as 10,11,14",
        )
    return found


def top(count: int, n_layer: int) -> list[int]:
    """The numbers of the `count` highest blocks; [] when the model has fewer."""
    return list(range(n_layer - count, n_layer)) if 1 <= count <= n_layer else []


def candidates(n_layer: int) -> list[int]:
    """The numbers of top blocks that `auto` tries, the smallest first."""
    return [*(count for count in AUTO_BLOCKS if count < n_layer), n_layer]


def lora_settings(settings: RunSettings, layers: Sequence[int]) -> LoraSettings:
    """The adapter's part of a run's settings, for these blocks."""
    return LoraSettings(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=tuple(settings.target_modules),
        use_rslora=settings.use_rslora,
        layers_to_transform=tuple(layers),
    )


def new_decoder(
    weights: PackedWeights, settings: RunSettings, layers: Sequence[int]
) -> tuple[Decoder, dict[str, LoraWeight]]:
    """A decoder with new adapters in `layers`, and the adapters. Raises UsageError when a setting
    does not fit the model."""
    sizes = adapter_sizes(weights.gguf, settings, layers)
    dtype, xp = weights.compute.dtype, weights.compute.xp
    loras = new_loras(sizes, lora_settings(settings, layers), settings.seed, dtype, xp)
    return Decoder(weights, loras), loras


def adapter_sizes(
    gguf: GgufFile, settings: RunSettings, layers: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """The weights that get an adapter: name -> (n_out, n_in).

    Raises UsageError when a setting does not fit the model: an adapter whose r is over the rank of
    its weight is refused wherever it is loaded.
    """
    try:
        sizes = target_sizes(gguf, lora_settings(settings, layers))
    except ValueError as error:
        raise UsageError("the adapter cannot be made", str(error), "") from error
    name, shape = min(sizes.items(), key=lambda item: min(item[1]))
    if settings.r > min(shape):
        raise UsageError(
            f"r is {settings.r}",
            f"{name} is a matrix of {shape[1]} x {shape[0]}, whose rank is {min(shape)} at most",
            f"give --r {min(shape)} or less, or leave that layer out of --target-modules",
        )
    return sizes


@dataclass(frozen=True)
class LayerTrial:
    """The result of one trial. `layers` is the number of top blocks; `validation_loss` is in nats
    per token; `seconds` is for people and decides nothing."""

    layers: int
    validation_loss: float
    steps: int
    seconds: float

    def as_json(self) -> dict[str, float]:
        return {
            "layers": self.layers,
            "validation_loss": self.validation_loss,
            "steps": self.steps,
            "seconds": self.seconds,
        }


def trial_steps(count: int, n_layer: int, head_share: float) -> int:
    """Steps of a trial of the top `count` blocks with the work of TRIAL_STEPS steps of all blocks.

    `head_share`: work of the head in a step, in forward passes of one block.

    >>> trial_steps(2, 18, 1.0)
    63
    """
    return round(TRIAL_STEPS * _step_work(n_layer, head_share) / _step_work(count, head_share))


def _step_work(count: int, head_share: float) -> float:
    return count * TRAINED + head_share


def best(trials: Sequence[LayerTrial]) -> int:
    """Number of top blocks of the trial with the lowest loss; with equal losses, the smallest."""
    return min(trials, key=lambda trial: (trial.validation_loss, trial.layers)).layers


class LayerTrials:
    """Trains each candidate briefly on some rows of the lesson and validates it on others."""

    def __init__(
        self,
        weights: PackedWeights,
        packed: PackedSamples,
        settings: RunSettings,
        batch_tokens: int,
        files: StateFiles,
        tools: LoopTools,
    ) -> None:
        """`files` hold the states below each candidate's blocks, and are removed at the end."""
        self._weights, self._settings, self._tools = weights, settings, tools
        self._batch_tokens, self._files = batch_tokens, files
        self._packed, self._rows = _some(packed, settings, batch_tokens)
        self._identity = {"samples": self._packed.sha256()}

    def run(
        self,
        counts: Sequence[int],
        done: Sequence[LayerTrial],
        save: Callable[[list[LayerTrial]], None],
    ) -> list[LayerTrial]:
        """The trial of each count of top blocks. Those in `done` are not repeated; `save` is called
        after each new one. Raises StopAsked when the front stops the run."""
        found = [trial for trial in done if trial.layers in counts]
        for count in counts:
            if count not in {trial.layers for trial in found}:
                found.append(self._one(count))
                save(found)
        self._files.remove()
        return found

    def influence(self) -> list[float]:
        """The influence of every block, from INFLUENCE_ROWS rows."""
        rows = self._rows[:INFLUENCE_ROWS]
        decoder = Decoder(self._weights, {})
        return block_influence(decoder, (self._packed.batch(row)[0] for row in rows))

    def _one(self, count: int) -> LayerTrial:
        began_s, tools = self._tools.monotonic(), self._tools
        gguf, packed = self._weights.gguf, self._packed
        steps = trial_steps(count, gguf.n_layer, head_share(gguf, packed))
        decoder, loras = new_decoder(self._weights, self._settings, top(count, gguf.n_layer))
        packed.prefix = None
        StateFiller(self._files, packed, self._batch_tokens, self._identity, tools).fill(decoder)
        training_step = TrainingStep(decoder, loras, packed, self._settings, steps)
        for number in range(steps):
            training_step.step([self._rows[number % len(self._rows)]], number)
            note = f"top {count} of {gguf.n_layer} blocks, step {number + 1} of {steps}"
            tools.reporter.note(note)
            tools.pauses.rest()
        rows = validation_rows(packed, self._batch_tokens)
        score = training_step.validate(rows, lambda _: tools.pauses.rest())
        return LayerTrial(count, score.loss, steps, tools.monotonic() - began_s)


def _some(
    packed: PackedSamples, settings: RunSettings, batch_tokens: int
) -> tuple[PackedSamples, list[list[int]]]:
    """A small part of the samples, and the packed rows of it to train on."""
    train = [packed.samples[n] for n in packed.train]
    rows = bins(train, batch_tokens, epoch_order(len(train), settings.seed, 0))[:TRIAL_ROWS]
    held = validation_rows(packed, batch_tokens)[:TRIAL_VALIDATION_ROWS]
    chosen = [train[n] for row in rows for n in row]
    numbers = iter(range(len(chosen)))
    return (
        PackedSamples(chosen, [packed.samples[n] for row in held for n in row]),
        [[next(numbers) for _ in row] for row in rows],
    )


def validation_rows(packed: PackedSamples, batch_tokens: int) -> list[list[int]]:
    """Packed rows of the validation samples, the same in every call."""
    held = [packed.samples[n] for n in packed.validation]
    first = len(packed.train)
    return [[first + n for n in row] for row in bins(held, batch_tokens, range(len(held)))]


def head_share(gguf: GgufFile, packed: PackedSamples) -> float:
    """Work of the head, forward and backward, in forward passes of one block."""
    share = packed.supervised(packed.train) / packed.tokens(packed.train)
    block = sum(t.n_elements for t in gguf.tensors if t.name.startswith("blk.0."))
    return 2.0 * share * gguf.n_vocab * gguf.n_embd / block


def block_influence(decoder: Decoder, batches: Iterable[PackedRow]) -> list[float]:
    """The influence of every block: from 0, where it passes its input on, to 2.

    1 - cosine between a token's states before and after the block, averaged over tokens (ShortGPT,
    arXiv 2403.03853). Raises ValueError when `batches` hold no token.
    """
    sums, n_tokens = np.zeros(decoder.shape.n_layer), 0
    for batch in batches:
        n_tokens += len(batch.tokens)
        before = None
        for number, x in enumerate(decoder.blocks(batch)):
            after = decoder.compute.to_host(x).astype(np.float64)
            if before is not None:
                sums[number - 1] += (1.0 - cosines(before, after)).sum()
            before = after
    if not n_tokens:
        raise ValueError("block influence needs at least one token")
    return [float(value) for value in sums / n_tokens]


def cosines(a: Array, b: Array) -> Array:
    """The cosine (n) between each row of a (n, m) and the same row of b (n, m)."""
    lengths = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    found: Array = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return found
