"""A few optimizer steps of the trainer's own parts, timed: one program for one measurement.

Why it exists: memory belongs to a process, so each measurement has a process of its own. Flows in:
a job, a JSON file that adapt.py writes: model, layers, rows of texts, threads, bytes that may be
kept, a limit; adapt_mixed.py's jobs also say what is rehearsed. Flows out: one line of JSON. It
opens the file, makes adapters, stores the states below the lowest trained block if there is one,
and learns, with the parts and in the order of edge_agent/adapt/trainer/training_run.py, but without
data, checkpoints and reports. The first step is not timed. Not here: targets (adapt.py).
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
    from edge_agent.adapt.trainer.rehearsal import Rehearsal

    Learned = tuple[PackedSamples, list[list[int]], Rehearsal]
    """Samples, the lesson's rows of their numbers, and what is rehearsed beside them."""

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
    """Seconds, processor seconds and losses of each step; the floating-point operations of one."""
    from edge_agent.adapt.run_settings import RunSettings
    from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
    from edge_agent.adapt.trainer.layer_choice import new_decoder, parse_layers
    from edge_agent.adapt.trainer.rehearsal import RehearsalOrder
    from edge_agent.adapt.trainer.training_step import TrainingStep

    weights = PackedWeights(Path(job["model"]), n_threads=job["n_threads"])
    heap.give_back()
    learned = mixed_lesson(job) if "pools" in job else lesson(job)
    packed, rows, rehearsal = learned
    row_tokens = max(map(packed.tokens, rows))
    settings = RunSettings(r=job["r"], layers=job["layers"], batch_tokens=row_tokens)
    layers = parse_layers(settings.layers, weights.gguf.n_layer) or []
    decoder, loras = new_decoder(weights, settings, layers)
    planned = plan(job, decoder, learned, settings, layers)
    prefix_s = store_prefix(decoder, packed, row_tokens, Path(job["scratch"]) / "prefix.f16")
    order = RehearsalOrder(rehearsal, packed.rehearsal.start, settings.seed)
    training_step = TrainingStep(decoder, loras, packed, settings, len(rows), order)
    walls, processor = [], []
    with CountedProducts() as counted:
        done = [training_step.step([rows[0]], 0)]
    for number, row in enumerate(rows[1:], 1):
        began_s, used_s = time.perf_counter(), time.process_time()
        done.append(training_step.step([row], number))
        walls.append(time.perf_counter() - began_s)
        processor.append(time.process_time() - used_s)
    return {"step_s": walls, "cpu_s": processor, "losses": [one.loss for one in done],
            "rehearsal_losses": [one.rehearsal_loss for one in done], "flops": counted.flops,
            "tokens": max(one.n_tokens for one in done), "prefix_s": prefix_s,
            **planned}  # fmt: skip


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


def lesson(job: dict[str, Any]) -> Learned:
    """The texts of the job as samples, and the rows that they make; nothing is rehearsed."""
    from array import array

    from edge_agent.adapt.trainer.dataset import Sample
    from edge_agent.adapt.trainer.packed_samples import PackedSamples
    from edge_agent.adapt.trainer.rehearsal import Rehearsal

    samples: list[Sample] = []
    rows = []
    for row in job["rows"]:
        rows.append([len(samples) + place for place in range(len(row))])
        for ids in row:
            first = len(ids) - round(job["supervised"] * len(ids))
            learned = [place >= first for place in range(len(ids))]
            samples.append(Sample(0, array("i", ids), learned, 1))
    return PackedSamples(samples, []), rows, Rehearsal()


def mixed_lesson(job: dict[str, Any]) -> Learned:
    """The samples, rows, rehearsal and stored distributions that adapt_mixed.py wrote."""
    from array import array

    import numpy as np

    from edge_agent.adapt.trainer.dataset import Sample
    from edge_agent.adapt.trainer.packed_samples import PackedSamples
    from edge_agent.adapt.trainer.rehearsal import Rehearsal, RehearsalPool
    from edge_agent.adapt.trainer.rehearsal_targets import RehearsalTargets

    samples = [Sample(0, array("i", ids), learned, 1) for ids, learned in job["samples"]]
    first, pools = job["n_train"], []
    packed = PackedSamples(samples[:first], [], samples[first:])
    for count, weight, tokens, is_soft in job["pools"]:
        part = tuple(samples[first : first + count])
        pools.append(RehearsalPool(part, weight, tokens, is_soft))
        first += count
    rehearsal = Rehearsal(job["kind"], tuple(pools))
    with np.load(job["targets"]) as stored:
        numbers = rehearsal.soft(packed.rehearsal.start)
        packed.targets = RehearsalTargets(packed, numbers, stored["ids"], stored["q"])
    return packed, job["rows"], rehearsal


def plan(
    job: dict[str, Any],
    decoder: Decoder,
    learned: Learned,
    settings: Any,
    layers: list[int],
) -> dict[str, Any]:
    """The bytes that the trainer's plan expects; what `memory_bytes` leaves is spent on speed."""
    from edge_agent.adapt.trainer.memory_estimate import MemoryEstimate, row_sizes
    from edge_agent.gguf.model_file import read_gguf

    packed, rows, rehearsal = learned
    memory_estimate = MemoryEstimate(
        read_gguf(Path(job["model"])),
        row_sizes(packed, rehearsal, settings.batch_tokens),
        settings,
        job["n_threads"],
    )
    spare = max(0, job["memory_bytes"] - memory_estimate.bytes_of(layers)["total"])
    kept = decoder.keep_within(spare, [len(packed.samples[n]) for n in rows[0]])
    total = memory_estimate.bytes_of(layers, kept.n_bytes)["total"]
    return {"planned_bytes": total, "kept_bytes": kept.n_bytes}


def store_prefix(
    decoder: Decoder, packed: PackedSamples, row_tokens: int, path: Path
) -> float | None:
    """Seconds to store the states that enter the lowest trained block; None when that is block
    0."""
    from edge_agent.adapt.trainer.packed_samples import bins
    from edge_agent.adapt.trainer.stored_states import StateStore

    if decoder.lowest == 0:
        return None
    began_s = time.perf_counter()
    store = StateStore.create(path, packed.n_tokens, decoder.shape.n_embd)
    longest = max(row_tokens, *map(len, packed.samples))
    for row in bins(packed.samples, longest, range(len(packed.samples))):
        states, place = decoder.states(packed.batch(row)[0], decoder.lowest), 0
        for sample in row:
            n = len(packed.samples[sample])
            store.write(packed.first_token(sample), states[place : place + n])
            place += n
    store.finish()
    packed.prefix = store
    return time.perf_counter() - began_s


if __name__ == "__main__":
    sys.exit(main())
