"""The changes that our trainers make to the Trainer: saving, resuming, counting tokens.

Why it exists: the Trainer's saves are not safe against a kill (checkpoints.py), a run that was
killed after its last save would make one step more, and TRL reports every run to its makers, which
is switched off here. Flows in: a sealed checkpoint or none. Flows out: sealed checkpoints, and the
tokens of each step in the log. Needs torch and transformers. Not here: what is learned (trainer.py,
distill_trainer.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerState

from train_host import checkpoints

TRAINER_STATE = "trainer_state.json"


class SealedTrainer(transformers.Trainer):  # type: ignore[misc]
    """A mixin for TRL's trainers; it must stand before them among the bases."""

    n_tokens: int = 0
    """Tokens of all processes since the last logged step, without padding."""

    def run(self, resumed: checkpoints.Sealed | None) -> None:
        """Train to the end, from a sealed checkpoint if one is given, and keep the best weights."""
        if resumed is None or not _has_ended(resumed.path):
            self.train(resume_from_checkpoint=str(resumed.path) if resumed else None)
            return
        # The run was killed between the last save and the result; `train` would make one step more.
        self._load_from_checkpoint(str(resumed.path))
        self.state = TrainerState.load_from_json(str(resumed.path / TRAINER_STATE))
        if self.state.best_model_checkpoint and Path(self.state.best_model_checkpoint).is_dir():
            self._load_best_model()

    @property
    def why_stopped(self) -> str:
        """ "patience" when validation no longer improved, else "steps"."""
        return "patience" if self.state.global_step < self.state.max_steps else "steps"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tokens of the step, because TRL's own count misses a process at the end of an
        epoch."""
        if "loss" in logs:
            logs["step_tokens"], self.n_tokens = self.n_tokens, 0
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            root = Path(self.args.output_dir)
            checkpoints.seal(root / f"{checkpoints.PREFIX}{self.state.global_step}")
            best = self.state.best_model_checkpoint
            checkpoints.prune(root, Path(best) if best else None)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the export writes the card."""

    def _send_telemetry(self) -> None:
        """Do nothing: no run is reported to anybody."""


def _has_ended(checkpoint: Path) -> bool:
    """Whether training had ended when this checkpoint was saved."""
    state = json.loads((checkpoint / TRAINER_STATE).read_bytes())
    control = state["stateful_callbacks"]["TrainerControl"]
    return bool(control["args"]["should_training_stop"])
