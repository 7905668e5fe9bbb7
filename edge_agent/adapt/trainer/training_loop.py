"""The training loop: steps, a validation after each epoch, the best adapter kept, checkpoints.

Why it exists: a run that is killed at any moment and resumed must give the same bits. So everything
that happens next is a function of `LoopState` and of the arrays, and a checkpoint holds both. No
random generator has to be saved: the order of epoch e follows from (seed, e), and the dropout of
step s from (seed, s). Flows in: a TrainingStep and the rows of each epoch. Flows out: the best
adapter in `best`, the progress in `loop_state`. Not here: which blocks are trained
(layer_choice.py), files (checkpoint.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from numpy.typing import NDArray

from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.checkpoint import TrainingCheckpoint, TrainingCheckpoints
from edge_agent.adapt.trainer.decoder.lora import parameters
from edge_agent.adapt.trainer.packed_samples import epoch_rows
from edge_agent.adapt.trainer.pauses import Pauses
from edge_agent.adapt.trainer.reporter import Reporter
from edge_agent.adapt.trainer.run_log import RunLog
from edge_agent.adapt.trainer.training_step import Stepped, TrainingStep, ValidationScore
from edge_agent.errors import TrainingFailed

Array = NDArray[Any]
NEARLY = 0.05
"""Share of missed tokens of an epoch below which all rows are looked at again. A token is missed
before the steps that follow it, so an epoch ends with fewer misses than it counted."""
PROGRESS = 0.8
"""An epoch makes progress, even with a higher validation loss, when at most this part of the tokens
missed before is still missed. Facts are learned at this pace; the style of many rows is not, and
there the patience with the validation loss ends the run."""
Steps = list[list[list[int]]]
"""The steps of an epoch: each step is a list of packed rows, each row a list of sample numbers."""


@dataclass
class LoopState:
    """How far training has come.

    `epoch` counts finished epochs and `position` the finished steps of the current epoch, to which
    `loss_sum` (nats) and `n_supervised` (tokens) belong too. `step` counts all finished steps.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    loss_sum: float = 0.0
    n_supervised: int = 0
    n_missed: int = 0
    """Supervised tokens of the current epoch that were not the likeliest when they were trained."""
    losses: list[dict[str, float]] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    """The validation scores before the first step."""
    best_epoch: int = 0
    best_loss: float | None = None
    progress_epoch: int = 0
    """The last epoch with a lower validation loss, or with clearly fewer missed tokens."""
    least_missed: float = 1.0
    """The lowest share of missed tokens of an epoch so far."""
    n_tokens: int = 0
    step_s: float = 0.0
    validate_s: float = 0.0
    peak_bytes: int = 0
    ended: str = ""
    """Why training has ended: answered, epochs, patience or hours; empty while it has not."""

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> LoopState:
        return cls(**{one.name: state[one.name] for one in fields(cls)})

    @property
    def train_s(self) -> float:
        """Seconds of steps and validations, pauses left out."""
        return self.step_s + self.validate_s

    @property
    def tok_s(self) -> float:
        """Tokens per second of the steps, validations left out."""
        return self.n_tokens / self.step_s if self.step_s else 0.0


@dataclass(frozen=True)
class LoopTools:
    """The loop's connections to the front, the log and the clock."""

    pauses: Pauses
    reporter: Reporter
    log: RunLog
    monotonic: Callable[[], float] = time.monotonic


class EpochOrder:
    """The rows of every epoch: which samples share a row, and the order of the rows."""

    def __init__(self, samples: Sequence[Sized], settings: RunSettings, batch_tokens: int) -> None:
        self._samples, self._settings = samples, settings
        self._batch_tokens = batch_tokens

    def epoch(self, number: int) -> Steps:
        """The steps of epoch `number`, counted from 0; the same in every call."""
        rows = epoch_rows(self._samples, self._batch_tokens, self._settings.seed, number)
        size = self._settings.gradient_accumulation_steps
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def n_steps(self) -> int:
        """Steps of all epochs together. All epochs have the same number, because first-fit
        decreasing makes the same number of rows from every order."""
        return self._settings.epochs * len(self.epoch(0))


class TrainingLoop:
    """The training of one run. `validation` are packed rows; without any, nothing is validated and
    the last epoch's adapter is the best."""

    def __init__(
        self,
        training_step: TrainingStep,
        epoch_order: EpochOrder,
        validation: Sequence[Sequence[int]],
        settings: RunSettings,
        checkpoints: TrainingCheckpoints,
        tools: LoopTools,
    ) -> None:
        self.loop_state = LoopState()
        self.best: dict[str, Array] = {}
        """The matrices of the best epoch, by the names of decoder/lora.py's `parameters`."""
        self._training_step, self._epoch_order = training_step, epoch_order
        self._validation = validation
        self._settings, self._checkpoints, self._tools = settings, checkpoints, tools
        self._steps = epoch_order.epoch(0)

    def run(self) -> LoopState:
        """Train until the epochs, the patience or the hours are over.

        Raises StopAsked when the front stops the run, after a checkpoint; TrainingFailed when the
        loss is no number.
        """
        loop_state = self.loop_state
        self._tell_begin()
        if not loop_state.before and self._validation:
            score = self._validated()
            loop_state.before = _as_json(score)
            self._tools.log.append({"epoch": 0, "step": 0, **loop_state.before})
            self._save()
        while not loop_state.ended:
            if loop_state.position >= len(self._steps) or self._are_hours_over():
                self._end_epoch()
                self._save()
            else:
                self._one_step()
                if loop_state.step % self._settings.checkpoint_steps == 0:
                    self._save()
            self._tools.pauses.rest(self._save)
        return loop_state

    # ---- a step -------------------------------------------------------------------------------

    def _one_step(self) -> None:
        loop_state, began_s = self.loop_state, self._tools.monotonic()
        stepped = self._training_step.step(self._steps[loop_state.position], loop_state.step)
        seconds = self._tools.monotonic() - began_s
        loop_state.step += 1
        loop_state.position += 1
        loop_state.loss_sum += stepped.loss_sum
        loop_state.n_supervised += stepped.n_supervised
        loop_state.n_missed += stepped.n_missed
        loop_state.n_tokens += stepped.n_tokens
        loop_state.step_s += seconds
        self._tell_step(stepped, seconds)

    def _are_hours_over(self) -> bool:
        hours = self._settings.hours
        return hours is not None and self.loop_state.train_s >= hours * 3600.0

    # ---- the end of an epoch ------------------------------------------------------------------

    def _end_epoch(self) -> None:
        loop_state = self.loop_state
        score = self._validated() if self._validation else None
        missed, is_over = self._missed(), self._are_hours_over()
        loop_state.epoch += 1
        entry = {"epoch": float(loop_state.epoch), "token_accuracy": 1.0 - missed}
        if loop_state.n_supervised:
            entry["train_loss"] = loop_state.loss_sum / loop_state.n_supervised
        if score is not None:
            entry |= _as_json(score)
        loop_state.losses.append(entry)
        self._tools.log.append({"step": loop_state.step, **entry})
        best_loss = math.inf if loop_state.best_loss is None else loop_state.best_loss
        is_lower = score is None or score.loss < best_loss
        if is_lower or missed == 0:
            loop_state.best_epoch = loop_state.epoch
            loop_state.best_loss = None if score is None else score.loss
            self._keep_best()
        if is_lower or missed <= PROGRESS * loop_state.least_missed:
            loop_state.progress_epoch = loop_state.epoch
        loop_state.least_missed = min(missed, loop_state.least_missed)
        loop_state.position, loop_state.loss_sum, loop_state.n_supervised = 0, 0.0, 0
        loop_state.n_missed = 0
        loop_state.ended = "answered" if missed == 0 else self._why_over(is_over)
        if not loop_state.ended:
            self._steps = self._epoch_order.epoch(loop_state.epoch)

    def _missed(self) -> float:
        """The share of the lesson's learned tokens that are not the likeliest, 0 to 1.

        Each token was looked at when it was trained in this epoch. When nearly all were right, all
        are looked at again with the adapter of the epoch's end.
        """
        loop_state = self.loop_state
        if loop_state.position < len(self._steps) or not loop_state.n_supervised:
            return 1.0  # the hours ended the epoch: not every row was trained
        share = loop_state.n_missed / loop_state.n_supervised
        if share > NEARLY:
            return share
        rows = [row for step in self._steps for row in step]
        self._tools.reporter.progress(phase="validate", note="are all rows answered?")
        began_s = self._tools.monotonic()
        missed = self._training_step.n_missed(rows, lambda _: self._tools.pauses.rest(self._save))
        loop_state.validate_s += self._tools.monotonic() - began_s
        return missed / loop_state.n_supervised

    def _why_over(self, are_hours_over: bool) -> str:
        loop_state = self.loop_state
        if are_hours_over:
            return "hours"
        if loop_state.epoch >= self._settings.epochs:
            return "epochs"
        waited = loop_state.epoch - loop_state.progress_epoch
        return "patience" if self._validation and waited >= self._settings.patience else ""

    def _keep_best(self) -> None:
        for name, value, _ in parameters(self._training_step.loras):
            if name in self.best:
                self.best[name][:] = value
            else:
                self.best[name] = value.copy()

    def _validated(self) -> ValidationScore:
        tools, began_s = self._tools, self._tools.monotonic()
        waited_s = 0.0

        def after_row(number: int) -> None:
            nonlocal waited_s
            tools.reporter.note(f"row {number + 1} of {len(self._validation)}")
            rested_s = tools.monotonic()
            tools.pauses.rest(self._save)
            waited_s += tools.monotonic() - rested_s

        tools.reporter.progress(phase="validate", note="")
        score = self._training_step.validate(self._validation, after_row)
        self.loop_state.validate_s += tools.monotonic() - began_s - waited_s
        tools.reporter.progress(
            phase="train",
            note="",
            validation_loss=score.loss,
            validation_bits_per_byte=score.bits_per_byte,
        )
        return score

    # ---- telling ------------------------------------------------------------------------------

    def _tell_begin(self) -> None:
        loop_state = self.loop_state
        last = loop_state.losses[-1] if loop_state.losses else loop_state.before
        self._tools.reporter.progress(
            phase="train",
            step=loop_state.step,
            n_steps=self._training_step.n_steps,
            epoch=self._epoch(),
            validation_loss=last.get("validation_loss"),
            validation_bits_per_byte=last.get("validation_bits_per_byte"),
            note="",
        )

    def _tell_step(self, stepped: Stepped, seconds: float) -> None:
        loop_state = self.loop_state
        told = self._tools.reporter.progress(
            phase="train",
            step=loop_state.step,
            epoch=self._epoch(),
            loss=stepped.loss,
            learning_rate=stepped.learning_rate,
            tok_s=stepped.n_tokens / seconds if seconds > 0 else None,
            eta_s=self._eta_s(),
            note="",
        )
        self._tools.log.append(
            {
                "step": loop_state.step,
                "epoch": told.epoch,
                "loss": stepped.loss,
                "rehearsal_loss": stepped.rehearsal_loss,
                "learning_rate": stepped.learning_rate,
                "gradient_norm": stepped.norm,
                "n_tokens": stepped.n_tokens,
                "n_supervised": stepped.n_supervised,
                "seconds": seconds,
                "tok_s": told.tok_s,
                "rss_anon_bytes": told.rss_anon_bytes,
                "eta_s": told.eta_s,
            }
        )

    def _epoch(self) -> float:
        return self.loop_state.epoch + self.loop_state.position / max(1, len(self._steps))

    def _eta_s(self) -> float:
        """Seconds to the end of the run, if the patience does not end it earlier."""
        loop_state, settings = self.loop_state, self._settings
        left_s = (
            (self._training_step.n_steps - loop_state.step) * loop_state.step_s / loop_state.step
        )
        validations = len(loop_state.losses) + bool(loop_state.before)
        if validations:
            left_s += (settings.epochs - loop_state.epoch) * loop_state.validate_s / validations
        if settings.hours is not None:
            left_s = min(left_s, max(0.0, settings.hours * 3600.0 - loop_state.train_s))
        return left_s

    # ---- checkpoints --------------------------------------------------------------------------

    def _save(self) -> None:
        """Save a checkpoint. Waits for room on a full disk. Raises StopAsked."""
        self.loop_state.peak_bytes = self._tools.reporter.peak_bytes
        arrays: dict[str, Array] = {}
        optimizer = self._training_step.optimizer
        for name, value, _ in parameters(self._training_step.loras):
            arrays |= {f"lora/{name}": value, f"m/{name}": optimizer.m[name]}
            arrays[f"v/{name}"] = optimizer.v[name]
        arrays |= {f"best/{name}": value for name, value in self.best.items()}
        to_host = self._training_step.decoder.compute.to_host
        arrays = {name: to_host(array) for name, array in arrays.items()}
        state = {**asdict(self.loop_state), "t": optimizer.t}
        checkpoint = TrainingCheckpoint(self.loop_state.step, state, arrays)
        self._tools.pauses.persist(lambda: self._checkpoints.save(checkpoint))

    def restore(self) -> bool:
        """Restore the newest complete checkpoint. Returns False when there is none.

        Raises TrainingFailed for a checkpoint of another run.
        """
        found = self._checkpoints.newest()
        for damaged in self._checkpoints.damaged:
            self._tools.log.append({"damaged": damaged})
        if found is None:
            return False
        try:
            self._take(found)
        except (KeyError, ValueError, TypeError) as error:
            hint = "start the run anew under another name"
            raise TrainingFailed(
                f"the checkpoint of step {found.step} is not of this run", repr(error), hint
            ) from error
        self._tools.log.append({"resumed": True, "step": self.loop_state.step})
        return True

    def _take(self, found: TrainingCheckpoint) -> None:
        optimizer, compute = self._training_step.optimizer, self._training_step.decoder.compute
        for name, value, _ in parameters(self._training_step.loras):
            for kind, array in (
                ("lora", value),
                ("m", optimizer.m[name]),
                ("v", optimizer.v[name]),
            ):
                stored = found.arrays[f"{kind}/{name}"]
                if (stored.shape, stored.dtype) != (array.shape, array.dtype):
                    raise ValueError(f"{kind}/{name} has shape {stored.shape}")
                array[:] = compute.array(stored)
            if f"best/{name}" in found.arrays:
                self.best[name] = compute.array(found.arrays[f"best/{name}"])
        optimizer.t = int(found.state["t"])
        self.loop_state = LoopState.from_state(found.state)
        self._tools.reporter.peak_bytes = max(
            self._tools.reporter.peak_bytes, self.loop_state.peak_bytes
        )
        self._steps = self._epoch_order.epoch(self.loop_state.epoch)


def _as_json(score: ValidationScore) -> dict[str, float]:
    return {
        "validation_loss": score.loss,
        "validation_bits_per_byte": score.bits_per_byte,
    }
