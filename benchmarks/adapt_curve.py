"""Validation loss by epoch for lessons of the top 2, 4, 8 and of all blocks: adapt.py's curve.

Flows in: a model file, rows to learn from, threads, epochs. Flows out: one run of the trainer
process (edge_agent.adapt.process) for each number of blocks, everything else its defaults: its
losses, time, memory. The same seed and split for all. Not here: what is enough (the curve has no
target).
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

from measured_child import ChildFailed

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from trainer_runner import TrainerProcess

from edge_agent.adapt.messages import Finished, Planned, RunSettings, Start, TrainerFailed

LAYERS = ("top:2", "top:4", "top:8", "all")


def curve(model: Path, data: Path, n_threads: int, epochs: int) -> dict[str, Any]:
    """One run after the other. Raises ChildFailed."""
    model_sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    runs = []
    for layers in LAYERS:
        settings = RunSettings(layers=layers, epochs=epochs, patience=epochs, n_threads=n_threads)
        with tempfile.TemporaryDirectory() as scratch:
            run_dir = Path(scratch) / "curve"
            start = Start(
                str(run_dir), "curve", model.stem, str(model), model_sha256, str(data), settings
            )
            planned, finished = lesson(start)
        runs.append(row(layers, planned, finished))
        print_run(runs[-1])
    data_sha256 = hashlib.sha256(data.read_bytes()).hexdigest()
    return {"part": "curve", "data_sha256": data_sha256, "runs": runs, "unmet": []}


def lesson(start: Start) -> tuple[Planned, Finished]:
    """The plan and the end of one run."""
    planned: Planned | None = None
    with TrainerProcess(start) as trainer:
        for record in trainer.records():
            if isinstance(record, TrainerFailed):
                raise ChildFailed(f"{record.what}: {record.why}")
            if isinstance(record, Planned):
                planned = record
            if isinstance(record, Finished) and planned is not None:
                return planned, record
    raise ChildFailed("the trainer ended before its lesson did")


def row(layers: str, planned: Planned, finished: Finished) -> dict[str, Any]:
    return {
        "layers": layers,
        "before": finished.validation_before,
        "losses": finished.losses,
        "best_epoch": finished.best_epoch,
        "steps": finished.steps,
        "n_tokens": planned.n_tokens,
        "n_supervised": planned.n_supervised,
        "tok_s": finished.tok_s,
        "train_s": finished.train_s,
        "planned_bytes": planned.bytes["total"],
        "peak_bytes": finished.peak_rss_anon_bytes,
    }


def print_run(run: dict[str, Any]) -> None:
    losses = " ".join(f"{epoch['validation_loss']:.3f}" for epoch in run["losses"])
    print(
        f"curve {run['layers']:6} validation {run['before']['validation_loss']:.3f} -> {losses}"
        f" nats a token; {run['train_s']:.0f} s, {run['tok_s']:.0f} tok/s, RssAnon"
        f" {run['peak_bytes'] / 1e6:.0f} MB (planned {run['planned_bytes'] / 1e6:.0f})",
        flush=True,
    )
