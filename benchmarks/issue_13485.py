"""llama.cpp's open question #13485: on what should a LoRA adapter for a quantized model be trained?

Answers it for off-grid twins (off_grid_twin.py says why) of two small models, and for nothing else:
train on 16 or 32 bit, merge and quantize; or train on the quantized base, merged into either base
(into the quantized one in three ways: quantized again to its type, the same off its grid, to Q8_0)
or served as an adapter; or train all weights through the quantizer (QAT), beside all weights
without it. Flows in: a twin. Flows out: a line of results for each way, type and seed in
WORK/NAME.jsonl, a table, one JSON document. Every job that is in the file is skipped, so it may
be stopped and started at will; a job takes 2 to 3 minutes for SmolLM2, 4 to 6 for Gemma. The steps
are those of quantized_arms.py. Not here: a verdict on other models.

KL is that of the way's answers to those of the same training, never quantized, with the same seed
(LoRA ways: LoRA on the twin; full and QAT: all weights on the twin). "served": llama.cpp as the
daemon runs it; floor: the file's own dequantized weights against served, which is llama.cpp's
quantization of activations.

    HOST/bin/python benchmarks/issue_13485.py smol-twin --work WORK --seeds 3 --minutes 4
    HOST/bin/python benchmarks/issue_13485.py gemma-twin --work WORK --seeds 1
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import off_grid_twin
import quantized_arms as arms
import torch
import transformers
from quantized_results import TYPES, Result, print_table, recovery, summary

from edge_agent.gguf_file import read_gguf
from train_host import qat

FEWEST_S = 130.0
"""No job starts with less than this left of --minutes."""


@dataclass(frozen=True)
class Job:
    """One training and all that is asked of it. `type` None: it serves every type."""

    training: str
    seed: int
    type: str | None = None

    @property
    def results(self) -> set[tuple[str, str, int]]:
        """(way, type, seed) of the lines it writes."""
        ways = {
            "lora": ("a", "a-adapter"),
            "lora-base": ("b-twin", "b-base", "b-off", "b-q8", "c"),
            "full": ("full",),
            "qat": ("d",),
        }[self.training]
        types = (self.type,) if self.type else TYPES
        found = {(way, name, self.seed) for way in ways for name in types}
        if self.type is None:
            found.add((f"{self.training}-f32", "F32", self.seed))
        return found


def jobs(n_seeds: int) -> Iterator[Job]:
    """A seed is whole before the next begins."""
    for seed in range(1, n_seeds + 1):
        yield Job("lora", seed)
        yield from (Job("lora-base", seed, name) for name in TYPES)
        yield Job("full", seed)
        yield from (Job("qat", seed, name) for name in TYPES)


class Bench:
    """One twin, its quantized files and its results."""

    def __init__(self, twin: Path, work: Path, budget: arms.Budget) -> None:
        self.twin, self.work, self.budget = twin, work, budget
        self.results_path = work / f"{twin.name}.jsonl"
        work.mkdir(parents=True, exist_ok=True)
        self.lesson = arms.read_lesson(self.base(TYPES[0]), budget)

    def base(self, file_type: str) -> Path:
        path = self.work / f"{self.twin.name}-{file_type}.gguf"
        return path if path.exists() else arms.quantize(self.twin, path, file_type)

    def base_directory(self, file_type: str) -> Path:
        base = self.base(file_type)
        return arms.dequantized(base, base.with_suffix(".hf"))

    def results(self) -> list[Result]:
        if not self.results_path.exists():
            return []
        lines = self.results_path.read_text().splitlines()
        found = [Result(**json.loads(line)) for line in lines]
        return list({(r.way, r.type, r.seed): r for r in found}.values())  # a later line counts

    def add(self, found: Sequence[Result]) -> None:
        """All lines of a job at once."""
        with self.results_path.open("a") as stream:
            stream.write("".join(json.dumps(asdict(result)) + "\n" for result in found))
        for result in found:
            print(f"  {result.type:7} {result.way:10} loss {result.loss:.4f}", flush=True)

    def reference_path(self, training: str, seed: int) -> Path:
        return self.work / f"{self.twin.name}-{training}-{seed}.npy"

    def reference(self, training: str, seed: int) -> Any:
        kind = "lora" if training.startswith("lora") else "full"
        return np.load(self.reference_path(kind, seed), mmap_mode="r")


class Run:
    """One job of a bench, in a scratch directory of its own."""

    def __init__(self, bench: Bench, job: Job, scratch: Path) -> None:
        self.bench, self.job, self.scratch = bench, job, scratch
        self.train_s = 0.0

    def found(self) -> list[Result]:
        steps = {
            "lora": self.lora,
            "lora-base": self.lora_base,
            "full": self.full,
            "qat": self.qat,
        }
        return list(steps[self.job.training]())

    def lora(self) -> Iterator[Result]:
        adapter = self.scratch / "adapter"
        model = self.trained(arms.train_lora, self.bench.twin, adapter)
        yield self.kept_reference(model)
        del model
        for name in TYPES:
            yield self.merged("a", name, self.bench.twin, adapter)
            yield self.unmerged("a-adapter", name, adapter)

    def lora_base(self) -> Iterator[Result]:
        adapter, name = self.scratch / "adapter", str(self.job.type)
        base = self.bench.base_directory(name)
        self.trained(arms.train_lora, base, adapter)
        yield self.merged("b-twin", name, self.bench.twin, adapter)
        yield self.merged("b-base", name, base, adapter)
        yield self.off_grid("b-off", name, base, adapter)
        yield self.of_file("b-q8", name, self.quantized(arms.merged(base, adapter), "Q8_0"))
        yield self.unmerged("c", name, adapter)

    def full(self) -> Iterator[Result]:
        model = self.trained(arms.train_full, self.bench.twin)
        yield self.kept_reference(model)
        for name in TYPES:
            yield self.of_file("full", name, self.quantized(model, name))

    def qat(self) -> Iterator[Result]:
        name = str(self.job.type)
        model = self.trained(arms.train_qat, self.bench.twin, name)
        path = self.quantized(model, name)
        differing = sum(qat.differences(model, path).values())
        yield self.of_file("d", name, path, differing)

    def trained(self, train: Any, directory: Path, *more: Any) -> Any:
        bench, began_s = self.bench, time.monotonic()
        model = train(directory, bench.lesson, bench.budget, self.job.seed, *more)
        self.train_s = time.monotonic() - began_s
        return model

    def kept_reference(self, model: Any) -> Result:
        """What the others' KL is measured against: kept for them."""
        answered, job = arms.ask_torch(model, self.bench.lesson), self.job
        np.save(self.bench.reference_path(job.training, job.seed), answered.log_probabilities)
        return self.result(f"{job.training}-f32", "F32", answered, None)

    def merged(self, way: str, name: str, directory: Path, adapter: Path) -> Result:
        model = arms.merged(directory, adapter)
        return self.of_file(way, name, self.quantized(model, name))

    def off_grid(self, way: str, name: str, directory: Path, adapter: Path) -> Result:
        """As merged(), but the sum is rescaled first, its function kept (off_grid_twin.py)."""
        merged, scaled = self.scratch / "merged", self.scratch / "scaled"
        qat.write_latent(arms.merged(directory, adapter), self.bench.twin, merged)
        off_grid_twin.write_twin(merged, scaled, self.job.seed + 100)
        path = arms.quantize(scaled, self.scratch / f"{way}-{name}.gguf", name)
        return self.of_file(way, name, path)

    def unmerged(self, way: str, name: str, adapter: Path) -> Result:
        base = self.bench.base(name)
        exact = arms.ask_torch(
            arms.adapted(self.bench.base_directory(name), adapter), self.bench.lesson
        )
        path = arms.adapter_file(adapter, base, self.scratch / f"{way}-{name}.gguf")
        served = arms.ask_served(base, self.bench.lesson, [path])
        return self.result(way, name, exact, served)

    def quantized(self, model: Any, name: str) -> Path:
        latent = self.scratch / "latent"
        shutil.rmtree(latent, ignore_errors=True)
        qat.write_latent(model, self.bench.twin, latent)
        return arms.quantize(latent, self.scratch / f"model-{name}.gguf", name)

    def of_file(self, way: str, name: str, path: Path, differing: int | None = None) -> Result:
        directory = self.scratch / "dequantized"
        shutil.rmtree(directory, ignore_errors=True)
        exact = arms.ask_file(path, self.bench.lesson, directory)
        return self.result(way, name, exact, arms.ask_served(path, self.bench.lesson), differing)

    def result(
        self,
        way: str,
        name: str,
        exact: arms.Answered,
        served: arms.Answered | None,
        differing: int | None = None,
    ) -> Result:
        reference = self.bench.reference(self.job.training, self.job.seed)
        log_p, is_reference = exact.log_probabilities, served is None
        return Result(
            model=self.bench.twin.name,
            type=name,
            seed=self.job.seed,
            way=way,
            loss=exact.loss,
            bits_per_byte=exact.bits_per_byte,
            kl=None if is_reference else arms.mean_kl(reference, log_p),
            served_loss=served and served.loss,
            served_bits_per_byte=served and served.bits_per_byte,
            served_kl=served and arms.mean_kl(reference, served.log_probabilities),
            floor_kl=served and arms.mean_kl(log_p, served.log_probabilities),
            train_s=self.train_s,
            differing=differing,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("twin", type=Path, help="what off_grid_twin.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="results and quantized twins")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=75, help="start no job after that")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("lora", "lora-base", "full", "qat"))
    parser.add_argument("--type", choices=TYPES, help="only jobs of this type and of all types")
    arguments = parser.parse_args()
    ends_s = time.monotonic() + 60 * arguments.minutes
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    bench = Bench(arguments.twin, arguments.work, arms.Budget())
    is_complete = run_jobs(bench, arguments, ends_s)
    return report(bench, is_complete)


def run_jobs(bench: Bench, arguments: argparse.Namespace, ends_s: float) -> bool:
    """Whether nothing is left to do."""
    add_untrained(bench)
    for job in jobs(arguments.seeds):
        done = {(r.way, r.type, r.seed) for r in bench.results()}
        if job.results <= done or (arguments.only or job.training) != job.training:
            continue
        if arguments.type and job.type not in (None, arguments.type):
            continue
        if ends_s - time.monotonic() < FEWEST_S and done:
            return False
        began_s = time.monotonic()
        print(f"{job.training} {job.type or 'all types'} seed {job.seed}", flush=True)
        with tempfile.TemporaryDirectory(dir=bench.work) as name:
            bench.add(Run(bench, job, Path(name)).found())
        print(f"  {time.monotonic() - began_s:.0f} s", flush=True)
    done = {(r.way, r.type, r.seed) for r in bench.results()}
    return all(job.results <= done for job in jobs(arguments.seeds))


def add_untrained(bench: Bench) -> None:
    """The quantized twin before any lesson: seed 0, no reference."""
    done = {(r.way, r.type) for r in bench.results()}
    for name in TYPES:
        if ("base", name) not in done:
            exact = arms.ask_torch(arms.load(bench.base_directory(name)), bench.lesson)
            served = arms.ask_served(bench.base(name), bench.lesson)
            floor = arms.mean_kl(exact.log_probabilities, served.log_probabilities)
            line = (exact.loss, exact.bits_per_byte, None)
            more = (served.loss, served.bits_per_byte, None, floor, 0.0)
            bench.add([Result(bench.twin.name, name, 0, "base", *line, *more)])


def report(bench: Bench, is_complete: bool) -> int:
    found = bench.results()
    rows = summary(found)
    print_table(bench.twin.name, rows)
    types = {
        name: dict(Counter(t.type for t in read_gguf(bench.base(name)).tensors)) for name in TYPES
    }
    differing = sum(r.differing or 0 for r in found)
    document = {
        "model": bench.twin.name,
        "rows": rows,
        "recovery": recovery(found),
        "tensors_by_type": types,
        "budget": asdict(bench.budget),
        "learning_rates": arms.LEARNING_RATES,
        "qat_differing_weights": differing,
        "complete": is_complete,
        "torch": torch.__version__,
    }
    print(json.dumps(document))
    return 0 if differing == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
