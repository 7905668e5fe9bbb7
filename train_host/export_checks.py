"""Checks after each step of an export that the result is still the model that was trained.

Flows in: both sides of one step. Flows out: a Stage with figures and a verdict. Each step is
compared by itself, so that a failure names its step: the merged directory against PEFT's own sum,
the float32 file against the directory, the quantized file against the float32 file, the adapter's
matrices against PEFT's. Not here: the comparisons themselves (converters/verify.py), the
consequences of a failure (export.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters.adapter import Pair, read_adapter
from converters.base_model import open_base
from converters.logits import WINDOW
from converters.quantizer import How
from converters.sample_texts import PASSAGES
from converters.text_codec import open_codec
from converters.verify import verify
from train_host.merge import GATE, divergence_from_peft
from train_host.run_directory import FinishedRun

SHOWN = ("kl_mean", "kl_p99", "kl_max", "top1_agreement", "served_kl_mean", "floor_kl_mean",
         "bits_per_byte_a", "bits_per_byte_b", "tokenizer_equal", "template_equal", "bytes_equal",
         "n_tokens")  # fmt: skip
ADAPTER_GATE = 1e-6
"""Largest relative difference of an adapter's `b`; multiplying a scale into it rounds."""


@dataclass(frozen=True)
class Stage:
    """The `figures` of one comparison.

    `passed` None: there was nothing to compare. `reason` says why, or what failed.
    """

    passed: bool | None
    figures: dict[str, Any]
    thresholds: dict[str, float]
    reason: str | None = None


def merged(run: FinishedRun, directory: Path, how: How) -> Stage:
    """The merged directory against PEFT's base with adapter, both in torch and float32."""
    codec = open_codec(directory)
    try:
        windows = [codec.encode(text)[:WINDOW] for text in PASSAGES.values()]
    finally:
        codec.close()
    found = divergence_from_peft(run, directory, windows, how.threads)
    figures = {
        "kl_mean": found.mean,
        "kl_max": found.maximum,
        "top1_agreement": found.top1_agreement,
        "n_tokens": len(found.kl),
    }
    passed = found.mean <= GATE
    reason = None if passed else f"kl_mean {found.mean:.2e} is over {GATE:.0e}"
    return Stage(passed, figures, {"kl_mean": GATE}, reason)


def same_model(a: Path, b: Path, how: How) -> Stage:
    """`edge-convert verify A B`: tokenizer, template, bytes, KL of the weights and as served."""
    verdict = asdict(verify(a, b, None, how))
    figures = {key: verdict[key] for key in SHOWN if verdict[key] is not None}
    reason = verdict["reasons"].get("passed")
    return Stage(verdict["passed"], figures, verdict["thresholds"], reason)


def same_adapter(run: FinishedRun, base: Path, path: Path) -> Stage:
    """The GGUF adapter's scale * b @ a against the PEFT directory's, weight by weight."""
    assert run.adapter is not None
    placements = open_base(base).placements
    ours, theirs = read_adapter(path, placements), read_adapter(run.adapter, placements)
    largest = 0.0
    for name in theirs:
        largest = max(largest, _difference(theirs[name], ours[name]) if name in ours else np.inf)
    passed = largest <= ADAPTER_GATE and set(ours) == set(theirs)
    figures = {"weights": len(ours), "largest_relative_difference": largest}
    reason = None if passed else f"its matrices differ by up to {largest:.2e}"
    return Stage(passed, figures, {"largest_relative_difference": ADAPTER_GATE}, reason)


def _difference(a: Pair, b: Pair) -> float:
    """Largest difference of scale * b, relative to its largest value; infinity if `a` differs."""
    if not np.array_equal(a.a, b.a):
        return float("inf")
    x, y = a.b.astype(np.float64) * a.scale, b.b.astype(np.float64) * b.scale
    return float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30))
