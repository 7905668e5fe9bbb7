"""The decoder with CuPy's arrays: NumPy's losses, gradients and steps. Skips without a CUDA GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import ARCHITECTURES, write_tiny_model

from edge_agent.adapt.trainer.decoder.decoder import Decoder, pack
from edge_agent.adapt.trainer.decoder.lora import (
    LoraSettings,
    LoraWeight,
    new_loras,
    parameters,
    target_sizes,
)
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.optimizer import AdamW, clip

cupy: Any = pytest.importorskip("cupy")
if not cupy.is_available():
    pytest.skip("no CUDA GPU", allow_module_level=True)

N_STEPS = 3
TEXTS = [([20 + (7 * n) % 180 for n in range(60)], [n > 20 for n in range(60)]),
         ([30 + (11 * n) % 170 for n in range(25)], [True] * 25)]  # fmt: skip


def learned(path: Path, xp: Any, dtype: Any, dropout: float = 0.0) -> list[tuple[str, Any, Any]]:
    """(name, value, gradient) of every matrix after N_STEPS, and the losses, on the host."""
    weights = PackedWeights(path, dtype, xp=xp)
    settings = LoraSettings(r=3, lora_alpha=6, lora_dropout=dropout)
    loras: dict[str, LoraWeight] = new_loras(
        target_sizes(weights.gguf, settings), settings, 4, dtype, xp
    )
    decoder, optimizer = Decoder(weights, loras), AdamW(parameters(loras))
    for number in range(N_STEPS):
        for lora in loras.values():
            lora.clear()
        result = decoder.step(pack(TEXTS), 1 / 60, dropout_seed=number)
        clip(parameters(loras), 1.0)
        optimizer.step(parameters(loras), 1e-2)
    to_host = decoder.compute.to_host
    found = [(name, to_host(a), to_host(gradient)) for name, a, gradient in parameters(loras)]
    losses = to_host(decoder.evaluate(pack(TEXTS)).losses)
    return [*found, ("losses", losses, to_host(result.losses))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-9), (np.float32, 1e-3)])
def test_cupy_learns_what_numpy_learns(
    tmp_path: Path, architecture: str, dtype: Any, limit: float
) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", architecture=architecture)
    expected = learned(path, np, dtype)
    for (name, *mine), (_, *theirs) in zip(learned(path, cupy, dtype), expected, strict=True):
        for ours, right in zip(mine, theirs, strict=True):
            assert np.linalg.norm(ours - right) <= limit * np.linalg.norm(right), name


def test_dropout_drops_the_same_inputs(tmp_path: Path) -> None:
    """The masks are drawn on the host."""
    path = write_tiny_model(tmp_path / "m.gguf")
    expected = learned(path, np, np.float64, 0.3)[-1][1]
    np.testing.assert_allclose(learned(path, cupy, np.float64, 0.3)[-1][1], expected, rtol=1e-9)
