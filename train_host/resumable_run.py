"""The sequence of a run that may be killed: begin, resume, train, record the cost.

Why it exists: sft and distill-logits differ in what they train and not in how a run is kept. Flows
in: run files, the data, a trainer of resumable_trainer.py. Flows out: a directory that can be
resumed, and a log with tokens, seconds and joules of each step. Imports no torch before it trains.
Not here: decisions before the run and saving after it (sft.py, distill.py).
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent import atomic_file
from edge_agent.adapt.trainer.run_log import RunLog
from edge_agent.cli.terminal import Progress
from train_host import checkpoints, results, run_directory
from train_host.run_directory import RunFiles
from train_host.samples import Data, Samples, lines_of


@dataclass(frozen=True)
class Console:
    """Where a run shows progress and notes."""

    progress: Progress
    note: Callable[[str], None]


@dataclass(frozen=True)
class ResumableRun:
    """One run. `is_first`: this process writes the run directory."""

    files: RunFiles
    console: Console
    device: str
    learning_rate: float
    is_first: bool = True


def begin(files: RunFiles, data: Data, document: Mapping[str, Any], samples: Samples) -> None:
    """Fill the run directory before training, or check that it belongs to this run. Raises
    UsageError."""
    files.checkpoints.mkdir(exist_ok=True)
    if files.run.exists():
        run_directory.check_same(files, document)
        return
    atomic_file.write(files.data, data.content, 0o644)
    atomic_file.write(files.train_rows, lines_of(data, samples.rows), 0o644)
    run_directory.write_document(files.run, document)


def follow(trainer: Any, resumable: ResumableRun) -> str:
    """Train to the end, from the newest complete checkpoint.

    Returns why joules are missing, or "".
    """
    from train_host.energy_meter import EnergyMeter

    resumed = _resume_point(trainer, resumable)
    meter = EnergyMeter(resumable.device)
    meter.start()
    try:
        _train(trainer, resumable, resumed, meter)
    finally:
        meter.close()
    return meter.reason


def _resume_point(trainer: Any, resumable: ResumableRun) -> checkpoints.Sealed | None:
    """The newest complete checkpoint; incomplete ones, which a kill left, are removed."""
    root, note = resumable.files.checkpoints, resumable.console.note
    if resumable.is_first:
        for name in checkpoints.clear_incomplete(root):
            note(f"{name} was not complete and is removed")
    trainer.accelerator.wait_for_everyone()
    found = checkpoints.newest(root)
    if resumable.is_first:
        results.cut_log(resumable.files.log, found.step if found else -1)
        if found:
            note(f"going on from step {found.step}")
    return found


def _train(
    trainer: Any, resumable: ResumableRun, resumed: checkpoints.Sealed | None, meter: Any
) -> None:
    from train_host.recorder import Recorder, RunTools, tensorboard_directory

    trainer.args.eval_on_start = resumed is None and trainer.eval_dataset is not None
    if not resumable.is_first:
        trainer.run(resumed)
        return
    log = RunLog(resumable.files.log)
    try:
        tools = RunTools(log, meter, resumable.console.progress, resumable.console.note)
        board = tensorboard_directory(resumable.files.tensorboard)
        trainer.add_callback(Recorder(tools, board, resumable.learning_rate))
        trainer.run(resumed)
    finally:
        log.close()


def peak_memory(device: str) -> dict[str, int | None]:
    """Bytes of this process: resident (mapped files included), and on its GPU where it has one."""
    import torch

    cuda = torch.cuda.max_memory_allocated() if device == "cuda" else None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_memory_bytes": peak, "peak_gpu_memory_bytes": cuda}
