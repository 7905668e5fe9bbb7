"""A GGUF file to a directory and back: time, exact weights, exact tokens, the same answers.

For each file: seconds of to-hf; every weight against gguf-py's dequantization (bit for bit, except
Gemma's norms, where "minus 1" rounds once); tokens, scores and types after the way back through
tokenizer.json alone; and, where torch is installed, 32 greedy tokens of 10 prompts in torch against
our float32 file in llama.cpp.

    HOSTVENV/bin/python benchmarks/convert_back.py gemma.gguf smollm2.gguf
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from converters import gguf_to_hf, hf_to_gguf
from converters.gguf_container import read_metadata
from converters.gguf_output import write_model
from converters.logits import LlamaLogits, TorchLogits
from converters.quantizer import How
from converters.rows import rotary_order, stored_rows
from converters.safetensors_file import map_file, read_header
from converters.text_codec import GgufCodec
from edge_agent.llama.type_plan import TypeRequest

KEYS = ("tokens", "scores", "token_type", "merges", "model", "pre")
PROMPTS = (
    "The capital of France is", "Once upon a time", "def fibonacci(n):\n", "1, 2, 3, 4,",
    "भारत की राजधानी", "ಕರ್ನಾಟಕದ ರಾಜಧಾನಿ", "Water boils at", "A haiku about rain:\n",
    "In 1969, the first", "SELECT name FROM users WHERE",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    rows = []
    for path in parser.parse_args().files:
        with tempfile.TemporaryDirectory() as name:
            rows.append(row(path, Path(name)))
        print(json.dumps(rows[-1]), flush=True)
    met = all(r["weights_equal"] and r["tokenizer_equal"] and r["greedy_equal"] for r in rows)
    print(json.dumps({"rows": rows, "met": met}))
    return 0 if met else 1


def row(path: Path, scratch: Path) -> dict[str, Any]:
    directory, back = scratch / "hf", scratch / "back.gguf"
    start = time.monotonic()
    gguf_to_hf.convert(path, directory)
    seconds = time.monotonic() - start
    worst = weight_difference(path, directory)
    write_model(back, *hf_to_gguf.load(directory), TypeRequest("F32"), How())
    before, after = read_metadata(path), read_metadata(back)
    keys = [f"tokenizer.ggml.{key}" for key in KEYS]
    equal = all(plain(before, key) == plain(after, key) for key in keys)
    greedy = greedy_differences(directory, back) if importlib.util.find_spec("torch") else None
    return {
        **{"file": path.name, "to_hf_s": seconds, "tokenizer_equal": equal},
        **{"weights_equal": worst <= 1.2e-7, "largest_difference": worst},
        **{"greedy_equal": not greedy, "greedy_differences": greedy},
    }


def plain(metadata: Any, key: str) -> Any:
    found = metadata.get(key)
    if found is None or not found.is_array or found.type != "f32":
        return found and (list(found.value) if found.is_array else found.value)
    return np.array(found.value, np.float32).tobytes()  # bytes, because -0.0 == 0.0


def weight_difference(path: Path, directory: Path) -> float:
    """The largest |to-hf - gguf-py| over all weights; 0.0 for a family without shifted norms."""
    model = gguf_to_hf.open_model(path)
    stored = read_header(directory / "model.safetensors")
    mapped, worst = map_file(directory / "model.safetensors"), 0.0
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for place in model.placements:
        tensor = tensors[place.target]
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(place.shape)
        if place.n_heads:
            expected = expected[rotary_order(len(expected), place.n_heads, to_gguf=False)]
        rows = stored_rows(stored[place.source], mapped)
        found = np.empty((rows.n_rows, rows.n_columns), np.float32)
        rows.read(0, found)
        difference = np.abs(found.reshape(place.shape) - (expected - np.float32(place.shift)))
        worst = max(worst, float(difference.max()))
    return worst


def greedy_differences(directory: Path, path: Path) -> list[str]:
    """Prompts whose 32 greedy tokens differ between the two sides."""
    codec = GgufCodec(path)
    torch_side, llama_side = TorchLogits(directory), LlamaLogits(path, exact=True)
    different = []
    for prompt in PROMPTS:
        tokens = codec.encode(prompt)
        ours, theirs = list(tokens), list(tokens)
        for _ in range(32):
            ours.append(int(llama_side.logits(ours)[-1].argmax()))
            theirs.append(int(torch_side.logits(theirs)[-1].argmax()))
            if ours != theirs:
                different.append(f"{prompt!r} at token {len(ours) - len(tokens)}")
                break
    llama_side.close()
    torch_side.close()
    codec.close()
    return different


if __name__ == "__main__":
    sys.exit(main())
