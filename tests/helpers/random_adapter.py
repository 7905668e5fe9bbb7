"""Random GGUF LoRA adapters for a GGUF base, correct or broken on purpose, written with gguf-py.

Flows in: the base's path. Flows out: an AdapterRef of the file. `strength` 1 changes every answer;
the same seed gives the same bytes. Such adapters say nothing about quality.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from edge_agent.gguf.model_file import read_gguf
from edge_agent.records import AdapterRef

Arrays = dict[str, np.ndarray]


def random_arrays(base: Path, seed: int, *, r: int = 4, strength: float = 1.0) -> Arrays:
    """lora_a (r, inputs) and lora_b (outputs, r) of every matrix of every block."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for tensor in read_gguf(base).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            n_in, n_out = tensor.shape
            a = rng.standard_normal((r, n_in)) / np.sqrt(n_in)
            b = rng.standard_normal((n_out, r)) / np.sqrt(r) * strength
            arrays[f"{tensor.name}.lora_a"] = a.astype(np.float32)
            arrays[f"{tensor.name}.lora_b"] = b.astype(np.float32)
    return arrays


def write_adapter(
    path: Path,
    base: Path,
    seed: int = 1,
    *,
    strength: float = 1.0,
    change: Callable[[Arrays], object] = lambda arrays: None,
    **keys: object,
) -> AdapterRef:
    """`change` edits the arrays; `keys` replace `architecture`, `kind`, `form` and `alpha`."""
    arrays = random_arrays(base, seed, strength=strength)
    change(arrays)
    values: dict[str, object] = {"architecture": read_gguf(base).architecture, "kind": "adapter",
              "form": "lora", "alpha": 4.0, **keys}  # fmt: skip
    writer = gguf.GGUFWriter(path, str(values["architecture"]))
    writer.add_string("general.type", str(values["kind"]))
    writer.add_string("adapter.type", str(values["form"]))
    alpha = values["alpha"]
    if isinstance(alpha, float):
        writer.add_float32("adapter.lora.alpha", alpha)
    elif alpha is not None:
        writer.add_string("adapter.lora.alpha", str(alpha))
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return reference(path)


def reference(path: Path, scale: float = 1.0) -> AdapterRef:
    return AdapterRef(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), scale)
