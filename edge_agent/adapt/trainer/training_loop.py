"""The training loop: steps, a validation after each epoch, the best adapter kept, checkpoints.

Flows in: a Learner and the rows of each epoch. Flows out: the best adapter in `best`, and where it
all stands in `Course`, which a checkpoint holds beside the arrays. All that happens next is a
function of that state, so a run that is killed anywhere and resumed gives the same bits. Nothing
is drawn from a generator that would have to be saved: the order of epoch e and the dropout of step
s come from (seed, e) and (seed, s). Not here: which blocks are trained (layer_choice.py), the disk
(checkpoint.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from numpy.typing import NDArray

from edge_agent.adapt.messages import RunSettings
from edge_agent.adapt.trainer.checkpoint import Checkpoint, Checkpoints
from edge_agent.adapt.trainer.decoder.lora import parameters
from edge_agent.adapt.trainer.packed_samples import epoch_rows
from edge_agent.adapt.trainer.pauses import Interlude
from edge_agent.adapt.trainer.reporter import Reporter
from edge_agent.adapt.trainer.run_log import RunLog
from edge_agent.adapt.trainer.training_step import Learner, Score, Stepped
from edge_agent.errors import TrainingFailed

Array = NDArray[Any]
Steps = list[list[list[int]]]
"""Of an epoch: steps of packed rows of sample numbers."""


@dataclass
class Course:
    """How far training has come. `epoch` and `position` count finished epochs, and steps of the
    one under way; sums are of that one too."""

    epoch: int = 0
    position: int = 0
    step: int = 0
    loss_sum: float = 0.0
    n_supervised: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    """Validation before the first step."""
    best_epoch: int = 0
    best_loss: float | None = None
    n_tokens: int = 0
    step_s: float = 0.0
    validate_s: float = 0.0
    peak_bytes: int = 0
    ended: str = ""
    """Why training is over: epochs, patience or hours; empty while it is not."""

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Course:
        return cls(**{one.name: state[one.name] for one in fields(cls)})

    @property
    def train_s(self) -> float:
        return self.step_s + self.validate_s

    @property
    def tok_s(self) -> float:
        """Real tokens a second of the steps."""
        return self.n_tokens / self.step_s if self.step_s else 0.0


@dataclass(frozen=True)
class Desk:
    """What a loop works with beside its numbers."""

    interlude: Interlude
    reporter: Reporter
    log: RunLog
    monotonic: Callable[[], float] = time.monotonic


class Syllabus:
    """Which samples share a row, in which order, for every epoch."""

    def __init__(self, samples: Sequence[Sized], settings: RunSettings, batch_tokens: int) -> None:
        self._samples, self._settings = samples, settings
        self._batch_tokens = batch_tokens

    def epoch(self, number: int) -> Steps:
        """Of epoch `number`, counted from 0; always the same."""
        rows = epoch_rows(self._samples, self._batch_tokens, self._settings.seed, number)
        size = self._settings.gradient_accumulation_steps
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def n_steps(self) -> int:
        """Of all epochs: first-fit decreasing needs as many rows in any order."""
        return self._settings.epochs * len(self.epoch(0))


class Epochs:
    """One run's training. `validation` are packed rows, none when there is nothing to validate."""

    def __init__(
        self,
        learner: Learner,
        syllabus: Syllabus,
        validation: Sequence[Sequence[int]],
        settings: RunSettings,
        checkpoints: Checkpoints,
        desk: Desk,
    ) -> None:
        self.course = Course()
        self.best: dict[str, Array] = {}
        """Matrices of the best epoch by name, as `lora.parameters` names them."""
        self._learner, self._syllabus = learner, syllabus
        self._validation = validation
        self._settings, self._checkpoints, self._desk = settings, checkpoints, desk
        self._steps = syllabus.epoch(0)

    def run(self) -> Course:
        """Until it is over. Raises StopAsked (saved), TrainingFailed."""
        course = self.course
        self._tell_begin()
        if not course.before and self._validation:
            score = self._validated()
            course.before = _as_json(score)
            self._desk.log.append({"epoch": 0, "step": 0, **course.before})
            self._save()
        while not course.ended:
            if course.position >= len(self._steps) or self._are_hours_over():
                self._end_epoch()
                self._save()
            else:
                self._one_step()
                if course.step % self._settings.checkpoint_steps == 0:
                    self._save()
            self._desk.interlude.rest(self._save)
        return course

    # ---- a step -------------------------------------------------------------------------------

    def _one_step(self) -> None:
        course, began_s = self.course, self._desk.monotonic()
        stepped = self._learner.step(self._steps[course.position], course.step)
        seconds = self._desk.monotonic() - began_s
        course.step += 1
        course.position += 1
        course.loss_sum += stepped.loss_sum
        course.n_supervised += stepped.n_supervised
        course.n_tokens += stepped.n_tokens
        course.step_s += seconds
        self._tell_step(stepped, seconds)

    def _are_hours_over(self) -> bool:
        hours = self._settings.hours
        return hours is not None and self.course.train_s >= hours * 3600.0

    # ---- the end of an epoch ------------------------------------------------------------------

    def _end_epoch(self) -> None:
        course = self.course
        score = self._validated() if self._validation else None
        is_over = self._are_hours_over()
        course.epoch += 1
        entry = {"epoch": float(course.epoch)}
        if course.n_supervised:
            entry["train_loss"] = course.loss_sum / course.n_supervised
        if score is not None:
            entry |= _as_json(score)
        course.losses.append(entry)
        self._desk.log.append({"step": course.step, **entry})
        if score is None or course.best_loss is None or score.loss < course.best_loss:
            course.best_epoch = course.epoch
            course.best_loss = None if score is None else score.loss
            self._keep_best()
        course.position, course.loss_sum, course.n_supervised = 0, 0.0, 0
        course.ended = self._why_over(is_over)
        if not course.ended:
            self._steps = self._syllabus.epoch(course.epoch)

    def _why_over(self, are_hours_over: bool) -> str:
        course = self.course
        if are_hours_over:
            return "hours"
        if course.epoch >= self._settings.epochs:
            return "epochs"
        waited = course.epoch - course.best_epoch
        return "patience" if self._validation and waited >= self._settings.patience else ""

    def _keep_best(self) -> None:
        for name, value, _ in parameters(self._learner.loras):
            if name in self.best:
                self.best[name][:] = value
            else:
                self.best[name] = value.copy()

    def _validated(self) -> Score:
        desk, began_s = self._desk, self._desk.monotonic()
        waited_s = 0.0

        def after_row(number: int) -> None:
            nonlocal waited_s
            desk.reporter.note(f"row {number + 1} of {len(self._validation)}")
            rested_s = desk.monotonic()
            desk.interlude.rest(self._save)
            waited_s += desk.monotonic() - rested_s

        desk.reporter.progress(phase="validate", note="")
        score = self._learner.validate(self._validation, after_row)
        self.course.validate_s += desk.monotonic() - began_s - waited_s
        desk.reporter.progress(
            phase="train",
            note="",
            validation_loss=score.loss,
            validation_bits_per_byte=score.bits_per_byte,
        )
        return score

    # ---- telling ------------------------------------------------------------------------------

    def _tell_begin(self) -> None:
        course = self.course
        last = course.losses[-1] if course.losses else course.before
        self._desk.reporter.progress(
            phase="train",
            step=course.step,
            n_steps=self._learner.n_steps,
            epoch=self._epoch(),
            validation_loss=last.get("validation_loss"),
            validation_bits_per_byte=last.get("validation_bits_per_byte"),
            note="",
        )

    def _tell_step(self, stepped: Stepped, seconds: float) -> None:
        course = self.course
        told = self._desk.reporter.progress(
            phase="train",
            step=course.step,
            epoch=self._epoch(),
            loss=stepped.loss,
            learning_rate=stepped.learning_rate,
            tok_s=stepped.n_tokens / seconds if seconds > 0 else None,
            eta_s=self._eta_s(),
            note="",
        )
        self._desk.log.append(
            {
                "step": course.step,
                "epoch": told.epoch,
                "loss": stepped.loss,
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
        return self.course.epoch + self.course.position / max(1, len(self._steps))

    def _eta_s(self) -> float:
        """If it is not ended early by its validation."""
        course, settings = self.course, self._settings
        left_s = (self._learner.n_steps - course.step) * course.step_s / course.step
        validations = len(course.losses) + bool(course.before)
        if validations:
            left_s += (settings.epochs - course.epoch) * course.validate_s / validations
        if settings.hours is not None:
            left_s = min(left_s, max(0.0, settings.hours * 3600.0 - course.train_s))
        return left_s

    # ---- checkpoints --------------------------------------------------------------------------

    def _save(self) -> None:
        """Waits for room on a full disk. Raises StopAsked."""
        self.course.peak_bytes = self._desk.reporter.peak_bytes
        arrays: dict[str, Array] = {}
        optimizer = self._learner.optimizer
        for name, value, _ in parameters(self._learner.loras):
            arrays |= {f"lora/{name}": value, f"m/{name}": optimizer.m[name]}
            arrays[f"v/{name}"] = optimizer.v[name]
        arrays |= {f"best/{name}": value for name, value in self.best.items()}
        state = {**asdict(self.course), "t": optimizer.t}
        checkpoint = Checkpoint(self.course.step, state, arrays)
        self._desk.interlude.persist(lambda: self._checkpoints.save(checkpoint))

    def restore(self) -> bool:
        """From the newest whole checkpoint, if there is one. Raises TrainingFailed for one of
        another run."""
        found = self._checkpoints.newest()
        for damaged in self._checkpoints.damaged:
            self._desk.log.append({"damaged": damaged})
        if found is None:
            return False
        try:
            self._take(found)
        except (KeyError, ValueError, TypeError) as error:
            hint = "start the run anew under another name"
            raise TrainingFailed(
                f"the checkpoint of step {found.step} is not of this run", repr(error), hint
            ) from error
        self._desk.log.append({"resumed": True, "step": self.course.step})
        return True

    def _take(self, found: Checkpoint) -> None:
        optimizer = self._learner.optimizer
        for name, value, _ in parameters(self._learner.loras):
            for kind, array in (
                ("lora", value),
                ("m", optimizer.m[name]),
                ("v", optimizer.v[name]),
            ):
                stored = found.arrays[f"{kind}/{name}"]
                if (stored.shape, stored.dtype) != (array.shape, array.dtype):
                    raise ValueError(f"{kind}/{name} has shape {stored.shape}")
                array[:] = stored
            if f"best/{name}" in found.arrays:
                self.best[name] = found.arrays[f"best/{name}"]
        optimizer.t = int(found.state["t"])
        self.course = Course.from_state(found.state)
        self._desk.reporter.peak_bytes = max(self._desk.reporter.peak_bytes, self.course.peak_bytes)
        self._steps = self._syllabus.epoch(self.course.epoch)


def _as_json(score: Score) -> dict[str, float]:
    return {
        "validation_loss": score.loss,
        "validation_bits_per_byte": score.bits_per_byte,
    }
