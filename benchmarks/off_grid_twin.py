"""An off-grid twin of a model: the same function in float32, weights that no quantizer made.

Why it exists: the embedded models exist only quantized, so their float32 weights are already values
that a quantizer can store, and quantizing them again costs next to nothing. The cost of quantizing
shows only on other weights. Flows in: a Hugging Face directory. Flows out: another one, and the KL
divergences original -> twin (target: below 1e-6) and twin -> quantized twin.

The method: neighbouring weights are scaled by random factors e^u, with u uniform in +-SPREAD, that
cancel: a norm's gains and the columns of what follows it, rows of v and columns of o, rows of up
and columns of down. The query heads of a group share v's rows (GQA). Gemma stores its norms minus 1
and also normalizes the outputs of attention and MLP, whose rows therefore cannot be scaled. A tied
embedding is left as it is, because residual stream, head and lookup share it. Not here: training.

    HOST/bin/python benchmarks/off_grid_twin.py smol-hf -o smol-twin
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converters import hf_to_gguf
from converters.checkpoint import Checkpoint, open_checkpoint, read_json, text_tensors
from converters.families import family_of_config
from converters.families.family import Family
from converters.gguf_output import write_model
from converters.gguf_to_hf import Weights, write_directory
from converters.merge import COPIED
from converters.quantizer import How
from converters.rows import ArrayRows, stored_rows
from converters.safetensors_file import map_file
from converters.verify import verify
from edge_agent.llama.type_plan import TypeRequest

SPREAD = 0.05
SAME_KL = 1e-6
Arrays = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Twin:
    """The weights of one model, in float64, while they are scaled."""

    arrays: Arrays
    family: Family
    rng: np.random.Generator
    spread: float

    def factors(self, n: int) -> NDArray[np.float64]:
        return np.exp(self.rng.uniform(-self.spread, self.spread, n))

    def scale_norm(self, norm: str, following: Sequence[str]) -> None:
        """Multiply a norm's gains by s, and divide the columns that they meet by s."""
        gains, shift = self.arrays[norm], self.family.norm_shift
        s = self.factors(len(gains))
        self.arrays[norm] = (gains + shift) * s - shift
        for name in following:
            self.arrays[name] /= s

    def scale_rows(self, before: str, after: str, n_heads: tuple[int, int] | None = None) -> None:
        """Multiply the rows of `before` by s, and divide the matching columns of `after` by s.

        `n_heads`: query heads and key-value heads, when `after` uses each row several times.
        """
        rows, bias = self.arrays[before], before.replace(".weight", ".bias")
        s = self.factors(len(rows))
        rows *= s[:, None]
        if bias in self.arrays:
            self.arrays[bias] *= s
        self.arrays[after] /= s if n_heads is None else repeated(s, *n_heads)


def repeated(s: NDArray[np.float64], n_head: int, n_head_kv: int) -> NDArray[np.float64]:
    """Factors of v's rows in the order of o's columns: the query heads of a group share a head of
    v."""
    by_head = s.reshape(n_head_kv, -1)
    return np.repeat(by_head, n_head // n_head_kv, axis=0).reshape(-1)


def make_twin(arrays: Arrays, checkpoint: Checkpoint, seed: int, spread: float) -> Arrays:
    """Other weights with the same function."""
    family = family_of_config(checkpoint.directory, checkpoint.config)
    sizes = family.sizes(checkpoint.config, hf_to_gguf.n_vocab(checkpoint))
    twin = Twin(dict(arrays), family, np.random.default_rng(seed), spread)
    has_post_norms = "model.layers.0.pre_feedforward_layernorm.weight" in arrays
    before_mlp = "pre_feedforward_layernorm" if has_post_norms else "post_attention_layernorm"
    for layer in range(sizes.n_layer):
        block = f"model.layers.{layer}."
        attention = [f"{block}self_attn.{x}_proj.weight" for x in "qkvo"]
        gate, up, down = (f"{block}mlp.{x}_proj.weight" for x in ("gate", "up", "down"))
        twin.scale_norm(f"{block}input_layernorm.weight", attention[:3])
        twin.scale_norm(f"{block}{before_mlp}.weight", [gate, up])
        twin.scale_rows(attention[2], attention[3], (sizes.n_head, sizes.n_head_kv))
        twin.scale_rows(up, down)
    if not family.is_tied(checkpoint.config):
        twin.scale_norm("model.norm.weight", ["lm_head.weight"])
    return twin.arrays


def read_arrays(checkpoint: Checkpoint) -> Arrays:
    found = {}
    for name, tensor in text_tensors(checkpoint.tensors).items():
        rows = stored_rows(tensor, map_file(tensor.path))
        array = np.empty((rows.n_rows, rows.n_columns), np.float32)
        rows.read(0, array)
        found[name] = array.astype(np.float64).reshape(tensor.shape)
    return found


def write_twin(source: Path, directory: Path, seed: int, spread: float = SPREAD) -> None:
    """Write the twin's directory, which must not exist. Raises ConversionError."""
    checkpoint = open_checkpoint(source)
    arrays = make_twin(read_arrays(checkpoint), checkpoint, seed, spread)
    family = family_of_config(source, checkpoint.config)
    places = [
        place
        for place in family.placements(checkpoint.config, hf_to_gguf.n_vocab(checkpoint))
        if place.source in arrays
    ]
    rows = {
        place.source: ArrayRows(place.source, array.reshape(-1, array.shape[-1]).astype(np.float32))
        for place, array in ((place, arrays[place.source]) for place in places)
    }
    config = {**read_json(source / "config.json"), "dtype": "float32"}
    config["off_grid_twin"] = {"source": source.name, "seed": seed, "spread": spread}
    documents: dict[str, Any] = {"config.json": config}
    documents |= {n: (source / n).read_bytes() for n in COPIED if (source / n).is_file()}
    write_directory(directory, Weights(rows, places, "f32"), documents, How())


@dataclass(frozen=True)
class Cost:
    """The cost of one step: mean KL in nats over `n_tokens`; served and floor are None for a
    directory."""

    step: str
    kl_mean: float | None
    served_kl_mean: float | None
    floor_kl_mean: float | None
    n_tokens: int


def quantized_cost(step: str, directory: Path, type_name: str) -> Cost:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.gguf"
        request = TypeRequest(type_name.upper())
        write_model(path, *hf_to_gguf.load(directory), request, How())
        return cost(step, directory, path)


def cost(step: str, a: Path, b: Path) -> Cost:
    found = verify(a, b, None, How())
    line = Cost(step, found.kl_mean, found.served_kl_mean, found.floor_kl_mean, found.n_tokens)
    served = [line.served_kl_mean, line.floor_kl_mean]
    cells = " ".join(f"{'-' if x is None else f'{x:.2e}':>10}" for x in [line.kl_mean, *served])
    print(f"{step:34} {cells}", flush=True)
    return line


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a Hugging Face directory")
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory to make")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--type", default="q4_k_m", help="that the cost is shown of")
    arguments = parser.parse_args()
    if not arguments.output.exists():
        write_twin(arguments.source, arguments.output, arguments.seed)
    print(f"{'mean KL, nats':34} {'weights':>10} {'served':>10} {'floor':>10}")
    of_twin = cost("original -> twin, float32", arguments.source, arguments.output)
    costs = [
        of_twin,
        quantized_cost(f"original -> {arguments.type}", arguments.source, arguments.type),
        quantized_cost(f"twin -> {arguments.type}", arguments.output, arguments.type),
    ]
    assert of_twin.kl_mean is not None
    is_met = of_twin.kl_mean < SAME_KL
    print(json.dumps({"costs": [vars(c) for c in costs], "seed": arguments.seed, "met": is_met}))
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
