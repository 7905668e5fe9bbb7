"""Makes one model directory of a run: the base with its adapter added, in float32.

Flows in: a finished run. Flows out: a directory that transformers loads and `edge-convert` reads,
and figures that say how far it is from PEFT's own base with adapter. A run that trained a whole
model has nothing to merge. Not here: the sum (converters/merge.py), quantizing (export.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters.divergence import Divergence, log_softmax
from converters.extras import load_extra
from converters.logits import WINDOW, TorchLogits
from converters.merge import Merged, open_merged, write_hf
from converters.quantizer import How
from converters.rows import F32
from edge_agent.errors import UsageError
from train_host.run_directory import FinishedRun

GATE = 1e-5
"""Largest mean KL between PEFT's sum and ours, in nats. Float32 rounding stays far below it."""


def merge(run: FinishedRun, directory: Path, dtype: str, how: How) -> int:
    """Write the merged model and return the bytes of its weights.

    `dtype` is f32, f16 or bf16. A base that was loaded in NF4 is merged in its stored precision.
    Raises UsageError when the run trained no adapter, ConversionError.
    """
    return write_hf(_merged(run), directory, dtype, how)


def _merged(run: FinishedRun) -> Merged:
    if run.adapter is None:
        raise UsageError(
            f"{run.path} has no adapter to merge",
            f"--method {run.method} trains the whole model: it is {run.model}",
            "use that directory, or `edge-train export`",
        )
    return open_merged(run.base_directory, run.adapter)


def divergence_from_peft(
    run: FinishedRun, merged: Path, windows: Sequence[Sequence[int]], threads: int | None
) -> Divergence:
    """KL(PEFT's base with adapter || merged directory) over token windows, both in float32.

    At most WINDOW tokens of each window are used. Raises EdgeAgentError without torch and peft.
    """
    assert run.adapter is not None
    windows = [list(window)[:WINDOW] for window in windows]
    reference = _peft_logits(run.base_directory, run.adapter, windows, threads)
    source, found = TorchLogits(merged, threads), Divergence()
    try:
        for window, expected in zip(windows, reference, strict=True):
            found.add(log_softmax(expected), log_softmax(source.logits(window)))
    finally:
        source.close()
    return found


def _peft_logits(
    base: Path, adapter: Path, windows: Sequence[Sequence[int]], threads: int | None
) -> list[F32]:
    peft = load_extra("peft", "checking the merge")
    source: Any = TorchLogits(base, threads)
    source._model = peft.PeftModel.from_pretrained(source._model, str(adapter)).eval()
    try:
        return [source.logits(window).copy() for window in windows]
    finally:
        source.close()
