"""A few optimizer steps of the trainer's own parts, timed: one program for one measurement.

Why it exists: memory belongs to a process, so each measurement has a process of its own. Flows in:
a job, a JSON file that adapt.py writes: model, layers, rows of texts, threads, bytes that may be
kept, a limit. Flows out: one line of JSON. It opens the file, makes adapters, stores the states
below the lowest trained block if there is one, and learns, with the parts and in the order of
edge_agent/adapt/trainer/training_run.py, but without data, checkpoints and reports. The first step
is not timed. Not here: targets (adapt.py).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.adapt.trainer import blas, heap

if TYPE_CHECKING:
    from edge_agent.adapt.trainer.decoder.decoder import Decoder
    from edge_agent.adapt.trainer.packed_samples import PackedSamples

SGEMM_SIZES = (2048, 3072)
SGEMM_REPEATS = 4


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    if job["limit_bytes"]:
        resource.setrlimit(resource.RLIMIT_AS, (job["limit_bytes"], job["limit_bytes"]))
    blas.announce(job["n_threads"], os.environ)
    heap.map_large_blocks()
    before = sgemm_flops_s()
    began_s = time.monotonic()
    found = steps(job)
    found["window_s"] = began_s, time.monotonic()
    best = max(before, sgemm_flops_s())
    status = Path("/proc/self/status").read_text()
    address = next(line for line in status.splitlines() if line.startswith("VmPeak:"))
    found |= {"sgemm_flops_s": best, "blas": blas.loaded().description}
    print(json.dumps({**found, "peak_address_bytes": int(address.split()[1]) * 1024}))
    return 0


def sgemm_flops_s() -> float:
    """The best rate of large square float32 products, in the library that NumPy calls."""
    import numpy as np

    best = 0.0
    for n in SGEMM_SIZES:
        a, out = np.ones((n, n), np.float32), np.empty((n, n), np.float32)
        for _ in range(SGEMM_REPEATS):
            began_s = time.perf_counter()
            np.matmul(a, a, out=out)
            best = max(best, 2.0 * n**3 / (time.perf_counter() - began_s))
    return best


def steps(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds, processor seconds and loss of each step; the floating-point operations of a step."""
    from edge_agent.adapt.messages import RunSettings
    from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
    from edge_agent.adapt.trainer.layer_choice import new_decoder, parse_layers
    from edge_agent.adapt.trainer.training_step import TrainingStep

    weights = PackedWeights(Path(job["model"]), n_threads=job["n_threads"])
    heap.give_back()
    packed, rows = lesson(job)
    row_tokens = max(map(packed.tokens, rows))
    settings = RunSettings(r=job["r"], layers=job["layers"], batch_tokens=row_tokens)
    layers = parse_layers(settings.layers, weights.gguf.n_layer) or []
    decoder, loras = new_decoder(weights, settings, layers)
    planned = plan(job, decoder, packed, settings, layers)
    prefix_s = store_prefix(decoder, packed, rows, Path(job["scratch"]) / "prefix.f16")
    training_step = TrainingStep(decoder, loras, packed, settings, len(rows))
    walls, processor, losses = [], [], []
    with CountedProducts() as counted:
        losses.append(training_step.step([rows[0]], 0).loss)
    for number, row in enumerate(rows[1:], 1):
        began_s, used_s = time.perf_counter(), time.process_time()
        losses.append(training_step.step([row], number).loss)
        walls.append(time.perf_counter() - began_s)
        processor.append(time.process_time() - used_s)
    return {"step_s": walls, "cpu_s": processor, "losses": losses, "flops": counted.flops,
            "tokens": row_tokens, "prefix_s": prefix_s, **planned}  # fmt: skip


class CountedProducts:
    """Counts in `flops` two per multiply-add of each np.matmul within the block, in any thread."""

    def __enter__(self) -> CountedProducts:
        import numpy as np

        self.flops, self._lock, self._matmul = 0, threading.Lock(), np.matmul
        np.matmul = self._counted
        return self

    def __exit__(self, *_: object) -> None:
        import numpy as np

        np.matmul = self._matmul

    def _counted(self, a: Any, b: Any, out: Any) -> Any:
        with self._lock:
            self.flops += 2 * out.size * a.shape[-1]
        return self._matmul(a, b, out=out)


def lesson(job: dict[str, Any]) -> tuple[PackedSamples, list[list[int]]]:
    """The texts of the job as samples, and the rows that they make."""
    from array import array

    from edge_agent.adapt.trainer.dataset import Sample
    from edge_agent.adapt.trainer.packed_samples import PackedSamples

    samples: list[Sample] = []
    rows = []
    for row in job["rows"]:
        rows.append([len(samples) + place for place in range(len(row))])
        for ids in row:
            first = len(ids) - round(job["supervised"] * len(ids))
            learned = [place >= first for place in range(len(ids))]
            samples.append(Sample(0, array("i", ids), learned, 1))
    return PackedSamples(samples, []), rows


def plan(
    job: dict[str, Any], decoder: Decoder, packed: PackedSamples, settings: Any, layers: list[int]
) -> dict[str, Any]:
    """The bytes that the trainer's plan expects; what `memory_bytes` leaves is spent on speed."""
    from edge_agent.adapt.trainer.memory_estimate import MemoryEstimate, row_sizes
    from edge_agent.adapt.trainer.rehearsal import Rehearsal
    from edge_agent.gguf.model_file import read_gguf

    memory_estimate = MemoryEstimate(
        read_gguf(Path(job["model"])),
        row_sizes(packed, Rehearsal(), settings.batch_tokens),
        settings,
        job["n_threads"],
    )
    spare = max(0, job["memory_bytes"] - memory_estimate.bytes_of(layers)["total"])
    kept = decoder.keep_within(spare, [len(ids) for ids in job["rows"][0]])
    total = memory_estimate.bytes_of(layers, kept.n_bytes)["total"]
    return {"planned_bytes": total, "kept_bytes": kept.n_bytes}


def store_prefix(
    decoder: Decoder, packed: PackedSamples, rows: list[list[int]], path: Path
) -> float | None:
    """Seconds to store the states that enter the lowest trained block; None when that is block
    0."""
    from edge_agent.adapt.trainer.stored_states import StateStore

    if decoder.lowest == 0:
        return None
    began_s = time.perf_counter()
    store = StateStore.create(path, packed.n_tokens, decoder.shape.n_embd)
    for row in rows:
        batch, _ = packed.batch(row)
        store.write(packed.first_token(row[0]), decoder.states(batch, decoder.lowest))
    store.finish()
    packed.prefix = store
    return time.perf_counter() - began_s


if __name__ == "__main__":
    sys.exit(main())
