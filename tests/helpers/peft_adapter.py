"""A PEFT directory with random matrices, and its conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from convert_runner import convert
from safetensors_writer import write_arrays
from tiny_checkpoint import HEAD, HEADS, KV_HEADS, D, F, put_json

WIDTHS = {
    "self_attn.q_proj": (D, HEADS * HEAD), "self_attn.k_proj": (D, KV_HEADS * HEAD),
    "self_attn.o_proj": (HEADS * HEAD, D), "mlp.down_proj": (F, D), "mlp.up_proj": (D, F),
}  # fmt: skip
PREFIX = "base_model.model.model.layers"


def write_peft(
    directory: Path, ranks: dict[str, int] | None = None, **settings: Any
) -> dict[str, np.ndarray]:
    """A PEFT directory for both layers of the tiny models; `ranks` by module, else 4."""
    directory.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", **settings}
    put_json(directory / "adapter_config.json", config)
    rng, arrays = np.random.default_rng(5), {}
    for layer in range(2):
        for module, (n_in, n_out) in WIDTHS.items():
            rank = (ranks or {}).get(module, 4)
            name = f"{PREFIX}.{layer}.{module}"
            shapes = {"A": (rank, n_in), "B": (n_out, rank)}
            for side, shape in shapes.items():
                values = rng.standard_normal(shape).astype(np.float32) / 8
                arrays[f"{name}.lora_{side}.weight"] = values
    write_arrays(directory / "adapter_model.safetensors", arrays)
    return arrays


def lora(peft: Path, base: Path, out: Path) -> gguf.GGUFReader:
    done = convert("lora", str(peft), "--base", str(base), "-o", str(out))
    assert done.code == 0, done.err
    return gguf.GGUFReader(out)
