"""What is written and shown while a run goes on: a log line per step, progress, TensorBoard.

Flows in: the Trainer's events. Flows out: RUN/log.jsonl, progress and notes on the terminal, and
TrainingFailed when a loss is not a number (before that step can be saved). Needs transformers. Not
here: what is computed from the log afterwards (results.py).
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from edge_agent.adapt.trainer.run_log import RunLog
from edge_agent.cli.terminal import Progress
from edge_agent.errors import TrainingFailed
from train_host.energy_meter import EnergyMeter


@dataclass(frozen=True)
class RunTools:
    """The log, the energy meter and the outputs of a run. `monotonic` returns seconds."""

    log: RunLog
    meter: EnergyMeter
    progress: Progress
    note: Callable[[str], None]
    monotonic: Callable[[], float] = time.monotonic


class Recorder(TrainerCallback):  # type: ignore[misc]
    """The callback of the run's first process; the other processes have none."""

    def __init__(self, tools: RunTools, tensorboard: Path | None, learning_rate: float) -> None:
        """`tensorboard` is a directory; None: TensorBoard is not installed."""
        self._tools = tools
        self._board_path, self._board = tensorboard, None
        self._learning_rate = learning_rate
        self._began_s = self._ended_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._board_path is not None:
            self._board = _summary_writer(self._board_path, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began_s = self._tools.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._ended_s = self._tools.monotonic()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **kwargs: Any
    ) -> None:
        if "loss" in logs:
            self._write_step(state, logs)
        elif "eval_bits_per_byte" in logs:
            self._write_validation(state, logs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._board is not None:
            self._board.close()

    def _write_step(self, state: Any, logs: Mapping[str, float]) -> None:
        if not math.isfinite(logs["loss"]) or not math.isfinite(logs.get("grad_norm", 0.0)):
            raise TrainingFailed(
                f"the loss of step {state.global_step} is not a number",
                f"loss {logs['loss']:g}, gradient {logs.get('grad_norm', math.nan):g}",
                f"take a lower --lr than {self._learning_rate:g}; checkpoints before it are kept",
            )
        joules = self._tools.meter.lap(self._began_s, self._ended_s)
        self._write(
            state,
            {
                "epoch": state.epoch,
                "loss": logs["loss"],
                "grad_norm": logs.get("grad_norm"),
                "learning_rate": logs["learning_rate"],
                "tokens": int(logs["step_tokens"]),
                "seconds": self._ended_s - self._began_s,
                "joules": joules,
            },
        )
        status = f"step {state.global_step}, loss {logs['loss']:.4f}"
        self._tools.progress(status, state.global_step, state.max_steps)

    def _write_validation(self, state: Any, logs: Mapping[str, float]) -> None:
        found = {
            "validation_loss": logs["eval_loss"],
            "validation_bits_per_byte": logs["eval_bits_per_byte"],
            "validation_s": logs["eval_s"],
        }
        self._write(state, found)
        self._tools.note(
            f"step {state.global_step} of {state.max_steps}: validation"
            f" {logs['eval_bits_per_byte']:.4f} bits per byte"
        )

    def _write(self, state: Any, values: Mapping[str, Any]) -> None:
        self._tools.log.append({"v": 1, "step": state.global_step, **values})
        if self._board is not None:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(name, value, state.global_step)


def tensorboard_directory(path: Path) -> Path | None:
    """`path` if TensorBoard is installed, else None."""
    return path if importlib.util.find_spec("tensorboard") else None


def _summary_writer(path: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(path), purge_step=step + 1)
