"""A PEFT adapter becomes a GGUF adapter that llama.cpp loads beside its base.

Flows in: a PEFT directory and its base. Flows out: one GGUF file in float32 with
adapter.lora.alpha, `<weight>.lora_a` and `<weight>.lora_b` (llama.cpp, llama-adapter.cpp), and our
own keys that tie it to the base, its tokenizer and its template. Scalings that differ between
modules are multiplied into `b`. Not here: merging (merge.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from converters.adapter import Adapter, read_adapter
from converters.base_model import BaseModel, open_base
from converters.gguf_container import Metadata, TensorSpec, pack_head
from converters.output_file import OutputFile
from converters.rows import F32


def convert(directory: Path, base: Path, path: Path) -> int:
    """Write the adapter and return how many weights it changes. Raises ConversionError.

    Example: `convert(Path("my-adapter"), Path("gemma-q8_0.gguf"), Path("my-adapter.gguf"))`
    """
    model = open_base(base)
    adapter = read_adapter(directory, model.placements)
    write_adapter(path, adapter, metadata_of(adapter, model, directory.resolve().name))
    return len(adapter)


def metadata_of(adapter: Adapter, base: BaseModel, name: str) -> Metadata:
    """The adapter's keys. The alpha is the one that keeps the first weight's scaling exact."""
    keys = Metadata()
    keys.put("string", "general.architecture", base.family.architecture)
    keys.put("string", "general.type", "adapter")
    keys.put("string", "general.name", name)
    keys.put("string", "adapter.type", "lora")
    keys.put("f32", "adapter.lora.alpha", _alpha(adapter))
    return Metadata(keys | base.hashes())


def write_adapter(path: Path, adapter: Adapter, metadata: Metadata) -> None:
    """Write a complete file or none. Raises ConversionError."""
    alpha, arrays = _alpha(adapter), {}
    for name, pair in adapter.items():
        factor = pair.scale * pair.rank / alpha
        folded = pair.b if abs(factor - 1) < 1e-6 else pair.b * np.float32(factor)
        arrays[f"{name}.lora_a"], arrays[f"{name}.lora_b"] = pair.a, folded
    specs = [TensorSpec(n, "F32", array.shape, array.nbytes) for n, array in arrays.items()]
    head, starts = pack_head(metadata, specs)
    with OutputFile(path) as output:
        output.write_at(0, head)
        for name, array in arrays.items():
            output.write_at(starts[name], _little_endian(array))


def _alpha(adapter: Adapter) -> float:
    first = next(iter(adapter.values()))
    return first.scale * first.rank


def _little_endian(array: F32) -> bytes:
    return np.ascontiguousarray(array, "<f4").tobytes()
