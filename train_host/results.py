"""The results of a run, computed from its log: the content of metrics.json.

Flows in: the rows of log.jsonl, and the run's samples. Flows out: plain numbers, or None with a
reason. Times are those of training steps; validation and saving are left out. Not here: writing the
file (run_directory.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train_host.samples import Samples

Log = Sequence[Mapping[str, Any]]


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log; a torn last line is left out. [] when there is no file."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.strip()]


def cut_log(path: Path, step: int) -> None:
    """Remove the lines after `step`, because a resumed run writes them again."""
    from edge_agent import atomic_file

    kept = [row for row in read_log(path) if row["step"] <= step]
    atomic_file.write(path, "".join(f"{json.dumps(row)}\n" for row in kept).encode(), 0o644)


def data_summary(train: Samples, validation: Samples) -> dict[str, Any]:
    """Rows, tokens and the share that is learned; how many rows were left out, by reason."""
    dropped: dict[str, int] = {}
    for samples in (train, validation):
        for reason, count in samples.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return {
        "train_samples": len(train),
        "validation_samples": len(validation),
        "train_tokens": train.n_tokens,
        "train_supervised_tokens": train.n_supervised,
        "supervised_share": train.supervised_share,
        "dropped": dropped,
    }


def speed(log: Log) -> dict[str, Any]:
    """Steps, seconds, and tokens per second without padding (None when no step was made)."""
    steps = [row for row in log if "loss" in row]
    seconds, tokens = sum(row["seconds"] for row in steps), sum(row["tokens"] for row in steps)
    return {
        "steps": len(steps),
        "train_s": seconds,
        "tokens": tokens,
        "tok_s": tokens / seconds if seconds > 0 else None,
    }


def losses(log: Log) -> dict[str, Any]:
    """First and last training loss in nats; bits per byte before training and at the best step."""
    steps = [row["loss"] for row in log if "loss" in row]
    scores = [(row["validation_bits_per_byte"], row["step"]) for row in log if _is_validation(row)]
    before = next((score for score, step in scores if step == 0), None)
    later = [(score, step) for score, step in scores if step > 0]
    best = min(later, default=(None, None))
    return {
        "first_loss": steps[0] if steps else None,
        "final_loss": steps[-1] if steps else None,
        "bits_per_byte_before": before,
        "bits_per_byte": best[0],
        "best_step": best[1],
        "bits_per_byte_reason": None if later else "no rows were kept for validation",
    }


def energy(log: Log, reason: str) -> dict[str, Any]:
    """Joules of all steps; None and the reason when any step was not measured."""
    steps = [row for row in log if "loss" in row]
    known = [row["joules"] for row in steps if row["joules"] is not None]
    if steps and len(known) == len(steps):
        total_j, tokens = sum(known), sum(row["tokens"] for row in steps)
        return {"joules": total_j, "j_per_token": total_j / max(1, tokens), "reason": None}
    missing = f"{len(steps) - len(known)} of {len(steps)} steps were not measured"
    return {"joules": None, "j_per_token": None, "reason": f"{missing}: {reason or 'no sensor'}"}


def _is_validation(row: Mapping[str, Any]) -> bool:
    return row.get("validation_bits_per_byte") is not None
