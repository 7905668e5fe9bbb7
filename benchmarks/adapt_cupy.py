"""Does the trainer learn on a CUDA GPU, through CuPy, and how fast beside NumPy on the CPU?

Flows in: a model file, or the name of a shape of random_models.py. One process takes the same steps
(rows of two texts, half of each supervised, r 8, all linear layers, all blocks) with NumPy, with
CuPy in the least memory (every matrix is unpacked on the CPU and sent to the GPU twice a step), and
with CuPy that keeps on the GPU all it can. The three take turns; the first round is not timed.
Flows out: real tokens per second, the distance of the losses, the pool's bytes on the GPU. The
figures hold for a machine like this one only: a Jetson shares one memory between CPU and GPU.

    python3 benchmarks/adapt_cupy.py gemma3-1b --type Q8_0     # last line: JSON; needs CuPy
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cupy
import numpy as np
from random_models import SIZES, write_random_model

from edge_agent.adapt.trainer.decoder.decoder import Decoder, PackedRow, pack
from edge_agent.adapt.trainer.decoder.lora import LoraSettings, new_loras, parameters, target_sizes
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.optimizer import AdamW, clip

N_TOKENS, N_TEXTS = 256, 2
LEARNING_RATE = 1e-3
EVERYTHING_BYTES = 1 << 36


@dataclass
class Way:
    """One way to take the steps."""

    name: str
    xp: Any
    keeps_all: bool

    def prepare(self, path: Path, threads: int, batch: PackedRow) -> None:
        weights = PackedWeights(path, n_threads=threads, xp=self.xp)
        settings = LoraSettings()
        sizes = target_sizes(weights.gguf, settings)
        self.loras = new_loras(sizes, settings, seed=1, xp=self.xp)
        self.decoder = Decoder(weights, self.loras)
        if self.keeps_all:
            self.decoder.keep_within(EVERYTHING_BYTES, batch.lengths)
        self.optimizer = AdamW(parameters(self.loras))
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, batch: PackedRow) -> None:
        began_s, count = time.perf_counter(), len(batch.supervised)
        for lora in self.loras.values():
            lora.clear()
        result = self.decoder.step(batch, 1.0 / count)
        clip(parameters(self.loras), 1.0)
        self.optimizer.step(parameters(self.loras), LEARNING_RATE)
        self.losses.append(float(result.losses.sum(dtype="f8")) / count)
        if self.xp is cupy:
            cupy.cuda.Device().synchronize()
        self.seconds.append(time.perf_counter() - began_s)


def measure(path: Path, rounds: int, threads: int) -> dict[str, Any]:
    rng, half = np.random.default_rng(2), N_TOKENS // 2
    learned = [False] * half + [True] * half
    batches = [
        pack([(rng.integers(300, 40_000, N_TOKENS).tolist(), learned) for _ in range(N_TEXTS)])
        for _ in range(rounds + 1)
    ]
    ways = [Way("numpy", np, False), Way("cupy", cupy, False), Way("cupy, all kept", cupy, True)]
    for way in ways:
        way.prepare(path, threads, batches[0])
    for batch in batches:
        for way in ways:
            way.step(batch)
            print(f"{way.name:15} loss {way.losses[-1]:.5f} {way.seconds[-1]:.3f} s", flush=True)
    n_tokens = N_TOKENS * N_TEXTS
    return {
        "tok_s": {way.name: round(n_tokens / median(way.seconds[1:]), 1) for way in ways},
        "loss_apart": {
            way.name: max(abs(a / b - 1) for a, b in zip(way.losses, ways[0].losses, strict=True))
            for way in ways[1:]
        },
        "gpu_pool_bytes": cupy.get_default_memory_pool().total_bytes(),
        "threads": threads,
        "gpu": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=f"a file, or one of {', '.join(SIZES)} (random weights)")
    parser.add_argument("--type", default="Q8_0", help="of random weights")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edge-agent-cupy-") as scratch:
        path = Path(arguments.model)
        if not path.is_file():
            path = write_random_model(
                Path(scratch) / "random.gguf", SIZES[arguments.model], arguments.type
            )
        found = measure(path, arguments.rounds, arguments.threads)
    print(json.dumps({"benchmark": "adapt_cupy", "model": arguments.model, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
