"""How fast is a step that rehearses, and in how much memory, against peft with the same mixed loss?

A lesson's rows (facts8 of lesson_arms.py) with what a run rehearses beside them: cross-entropy on
the lesson, and weight x KL to the stored distributions (32 tokens and the tail) or cross-entropy on
general answers. Both sides get the same packed rows in the same order, the same initial matrices,
rates, clipping and optimizer, float32, the same threads. The losses of every step are compared; the
step times alternate, each run a process of its own (adapt_step.py, adapt_peft.py). The peer gets
the distributions ready-made and computes logits at the supervised positions only, which is more
than peft users have. With `top:K` ours stores the states below the lowest trained block in 16 bits,
so losses agree less closely than with `all`. Exit status 1 when losses differ by more than LIMITS.

    .venv/bin/python benchmarks/adapt_mixed.py --gguf smol.gguf --hf smol-hf --kind kl \\
        --layers top:8 --python HOST/bin/python                         # last line: JSON
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from adapt import MB, R, is_disturbed
from lesson_arms import chosen
from measured_child import ChildFailed, Measured, environment, run, wait_for_quiet

from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.blas import choose_threads
from edge_agent.adapt.trainer.decoder.decoder import Decoder, PackedRow
from edge_agent.adapt.trainer.decoder.lora import TARGETS, LoraWeight
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.layer_choice import new_decoder, parse_layers
from edge_agent.adapt.trainer.optimizer import factor
from edge_agent.adapt.trainer.own_texts import write_texts
from edge_agent.adapt.trainer.packed_samples import PackedSamples
from edge_agent.adapt.trainer.preparation import prepare
from edge_agent.adapt.trainer.rehearsal import (
    OWN_TOKENS,
    Rehearsal,
    RehearsalOrder,
    choose,
    openings,
)
from edge_agent.adapt.trainer.rehearsal_targets import K, RehearsalTargets
from edge_agent.adapt.trainer.training_loop import EpochOrder

HERE = Path(__file__).resolve().parent
LIMITS = {"all": 1e-3, "top": 2e-2}
"""Largest relative difference of a step's lesson loss. AdamW's first steps are as long for a small
gradient as for a large one, so float noise grows from step to step."""
FIRST_LIMIT = 2e-4
"""The same before the first update, when both sides have the same weights."""


class Job:
    """Builds the job that both sides read. The files are in `scratch`."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self._args, self._scratch = args, scratch
        self.settings = RunSettings(
            r=R, layers=args.layers, batch_tokens=args.batch_tokens, validation_share=0.0
        )
        self._weights = PackedWeights(args.gguf, n_threads=args.threads)
        self._layers = parse_layers(args.layers, self._weights.gguf.n_layer) or []

    def write(self) -> Path:
        """The path of job.json."""
        packed, rehearsal = self._samples()
        ids, q = distributions(Decoder(self._weights, {}), packed, rehearsal)
        numbers = rehearsal.soft(packed.rehearsal.start)
        packed.targets = RehearsalTargets(packed, numbers, ids, q)
        rows = self._rows(packed)
        np.savez(self._scratch / "targets.npz", ids=ids, q=q)
        mixed = mixed_rows(packed, rehearsal, rows, self.settings.seed)
        _, loras = new_decoder(self._weights, self.settings, self._layers)
        np.savez(self._scratch / "packed.npz", **arrays(mixed), **initial(loras))
        shape = [len(rows), self.settings.warmup_ratio]
        rates = [self.settings.learning_rate * factor(n, *shape) for n in range(len(rows))]
        job = {
            "model": str(self._args.gguf.resolve()), "hf": str(self._args.hf.resolve()),
            "n_threads": self._args.threads, "r": R, "memory_bytes": 0, "limit_bytes": 0,
            "scratch": str(self._scratch), "layers": self._args.layers, "blocks": self._layers,
            "attention": self._args.attention, "loss_dtype": self._args.loss_dtype,
            "samples": [[list(one.ids), one.learned] for one in packed.samples],
            "n_train": len(packed.train), "kind": rehearsal.kind, "rows": rows, "rates": rates,
            "pools": [[len(p.samples), p.weight, p.tokens, p.is_soft] for p in rehearsal.pools],
            "n_lesson": [packed.supervised(row) for row in rows],
            "targets": str(self._scratch / "targets.npz"),
            "packed": str(self._scratch / "packed.npz"),
        }  # fmt: skip
        path = self._scratch / "job.json"
        path.write_text(json.dumps(job))
        return path

    def _samples(self) -> tuple[PackedSamples, Rehearsal]:
        data = self._scratch / "rows.jsonl"
        rows = chosen(["facts8"])[0].rows()
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        lesson = prepare(data, self._args.gguf, self.settings)
        own = []
        if self._args.kind == "answers":
            threads = self._args.threads
            own = write_texts(self._args.gguf, openings(), OWN_TOKENS, 1, threads, lambda _: None)
        kind = self._args.kind
        pools = choose(kind, self.settings, lesson.general, lesson.identity, [], own)
        rehearsal = Rehearsal(kind, pools)
        train = [lesson.packed.samples[n] for n in lesson.packed.train]
        return PackedSamples(train, [], rehearsal.samples), rehearsal

    def _rows(self, packed: PackedSamples) -> list[list[int]]:
        """The rows of one untimed step and --steps timed ones."""
        train = [packed.samples[n] for n in packed.train]
        order = EpochOrder(train, self.settings, self._args.batch_tokens)
        found: list[list[int]] = []
        epoch = 0
        while len(found) <= self._args.steps:
            found += [row for step in order.epoch(epoch) for row in step]
            epoch += 1
        return found[: 1 + self._args.steps]


def distributions(decoder: Decoder, packed: PackedSamples, rehearsal: Rehearsal) -> tuple[Any, Any]:
    """(ids, q) of the samples whose distributions are kept, of the model without adapters."""
    parts = [
        decoder.likeliest(packed.batch([n])[0], K) for n in rehearsal.soft(packed.rehearsal.start)
    ]
    ids, q = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(q)


def mixed_rows(
    packed: PackedSamples, rehearsal: Rehearsal, rows: Sequence[Sequence[int]], seed: int
) -> list[PackedRow]:
    """Each row with what stands beside it, and the weights: the mean over the lesson's positions,
    plus each pool's weight times the mean over its own."""
    order = RehearsalOrder(rehearsal, packed.rehearsal.start, seed)
    found = []
    for number, row in enumerate(rows):
        numbers, weights = list(row), [1.0] * len(row)
        for pool, part in order.beside(number):
            numbers += part
            share = packed.supervised(row) / packed.supervised(part)
            weights += [pool.weight * share] * len(part)
        found.append(packed.batch(numbers, weights)[0])
    return found


def arrays(rows: Sequence[PackedRow]) -> dict[str, Any]:
    """The rows as arrays, named NUMBER.FIELD."""
    found: dict[str, Any] = {}
    for number, row in enumerate(rows):
        soft = row.soft
        assert soft is not None and row.weights is not None
        fields = {"tokens": row.tokens, "targets": row.targets, "lengths": np.array(row.lengths),
                  "weights": row.weights, "places": soft.places, "ids": soft.ids,
                  "q": soft.q}  # fmt: skip
        found |= {f"{number}.{name}": value for name, value in fields.items()}
    return found


def initial(loras: dict[str, LoraWeight]) -> dict[str, Any]:
    """The initial A of each adapter, named LAYER.MODULE.a with peft's module names."""
    modules = {gguf: module for module, gguf in TARGETS.items()}
    found = {}
    for name, lora in loras.items():
        _, layer, weight, _ = name.split(".")
        found[f"{layer}.{modules[weight]}.a"] = np.asarray(lora.a)
    return found


# ---- runs ------------------------------------------------------------------------------------


def compare(job: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Alternating pairs; ratios of the median steps."""
    environ = environment(args.threads)
    ours_command = [sys.executable, str(HERE / "adapt_step.py"), str(job)]
    peer_command = [str(args.python), str(HERE / "adapt_peft.py"), str(job)]
    pairs: list[tuple[Measured, Measured]] = []
    for number in range(args.pairs):
        wait_for_quiet(args.wait)
        commands = [ours_command, peer_command]
        found = [run(one, environ) for one in (commands if number % 2 == 0 else commands[::-1])]
        ours, peer = found if number % 2 == 0 else found[::-1]
        pairs.append((ours, peer))
        print(pair_line(ours, peer), flush=True)
    apart = differences(*pairs[0])
    ratios = [step_s(peer) / step_s(ours) for ours, peer in pairs]
    limit = LIMITS["all" if args.layers == "all" else "top"]
    return {
        "kind": args.kind, "layers": args.layers, "threads": args.threads,
        "loss_dtype": args.loss_dtype, "ratio": median(ratios), "ratios": ratios,
        **apart, "runs": [{"ours": asdict(ours), "peer": asdict(peer)} for ours, peer in pairs],
        "met": apart["first"] < FIRST_LIMIT and apart["worst"] < limit,
    }  # fmt: skip


def differences(ours: Measured, peer: Measured) -> dict[str, float]:
    """Relative differences of the lesson's loss, before the first update and the worst; the worst
    absolute difference of the rehearsal's, in nats."""
    left, right = ours.document, peer.document
    pairs = zip(left["losses"], right["losses"], strict=True)
    lesson = [abs(a - b) / abs(b) for a, b in pairs]
    beside = zip(left["rehearsal_losses"], right["rehearsal_losses"], strict=True)
    return {
        "first": lesson[0],
        "worst": max(lesson),
        "worst_rehearsal_nats": max(abs(a - b) for a, b in beside),
    }


def step_s(measured: Measured) -> float:
    return float(median(measured.document["step_s"]))


def pair_line(ours: Measured, peer: Measured) -> str:
    star = "*" if is_disturbed(ours) or is_disturbed(peer) else " "
    stored = ours.document["prefix_s"]
    return (
        f"{star} a step {step_s(ours):.3f} s against {step_s(peer):.3f}:"
        f" {step_s(peer) / step_s(ours):.2f} x; RssAnon {ours.peak_anon_bytes / MB:.0f} against"
        f" {peer.peak_anon_bytes / MB:.0f} MB, RSS {ours.peak_resident_bytes / MB:.0f} against"
        f" {peer.peak_resident_bytes / MB:.0f}; others {ours.others_cores:.2f},"
        f" {peer.others_cores:.2f} core; states stored once in"
        f" {'-' if stored is None else f'{stored:.1f} s'}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--hf", type=Path, required=True, help="`edge-convert to-hf` of it")
    parser.add_argument("--python", type=Path, required=True, help="has torch and peft")
    parser.add_argument("--kind", choices=("kl", "answers"), default="kl")
    parser.add_argument("--layers", default="top:8")
    parser.add_argument("--batch-tokens", type=int, default=256, help="of the lesson's rows")
    parser.add_argument("--attention", default="", help="of the peer [transformers' default]")
    parser.add_argument("--loss-dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--threads", type=int, default=choose_threads(None))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="timed steps a run")
    parser.add_argument("--wait", type=float, default=60, help="seconds for a quiet machine")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(dir=Path.home()) as scratch:
            report = compare(Job(args, Path(scratch)).write(), args)
    except ChildFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{report['ratio']:.2f} x; lesson losses differ by {report['first']:.1e} at first,"
        f" {report['worst']:.1e} at worst; rehearsal by {report['worst_rehearsal_nats']:.1e} nats"
    )
    print(json.dumps({"benchmark": "adapt_mixed", **report}))
    return 0 if report["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
