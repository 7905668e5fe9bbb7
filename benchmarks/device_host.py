"""Do the device's trainer and the host's end at the same loss, from the same start and rows?

Both have one adapter file (A random, B zero), one order of rows, a token-mean loss over the same
rows in each step, the device's default settings (AdamW, warm-up and half cosine, clipping, r 8),
float32 and no dropout. The device learns beside the packed GGUF file, in NumPy; `edge-train sft
--adapter --order` learns beside the same file, dequantized, in torch. One torch evaluation then
measures both results with base and adapter: the mean loss per token, on the rows that were learned
and on other wordings. Limit: 1 % on both. llama.cpp's losses are shown and not judged, because it
quantizes activations. Exit status 1 when the limit is missed, or when a setting or a step's tokens
differ. Rows: facts of recipes/lesson in English. Nothing is timed; OMP_NUM_THREADS and
OPENBLAS_NUM_THREADS set the threads of both.

Needs torch, transformers, peft and trl: run it in an environment of its own.

    HOSTVENV/bin/python benchmarks/device_host.py smol.gguf --hf smol-hf   # last line: JSON
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from adapt_gradients import Base, opened
from lesson_rows import LESSON, Fact, read_facts
from numpy.typing import NDArray
from peft_peer import PeftPeer, Text

from converters.adapter import read_adapter
from converters.base_model import open_base
from converters.logits import LlamaLogits
from converters.lora_to_gguf import convert
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.adapter_writer import AdapterHeader, write_adapter
from edge_agent.adapt.trainer.dataset import Sample
from edge_agent.adapt.trainer.decoder.compute import blas_threads
from edge_agent.adapt.trainer.decoder.decoder import Decoder
from edge_agent.adapt.trainer.decoder.lora import LoraWeight, new_loras, target_sizes
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.layer_choice import lora_settings
from edge_agent.adapt.trainer.packed_samples import PackedSamples, epoch_order
from edge_agent.adapt.trainer.preparation import prepare
from edge_agent.adapt.trainer.training_step import TrainingStep
from edge_agent.cli.terminal import Terminal
from edge_agent.gguf.base_identity import identify_base
from edge_agent.gguf.model_file import read_gguf
from edge_agent.regular_file import sha256_of
from train_host.cli import main_with

LIMIT = 0.01
SETTINGS = RunSettings(layers="all", audit=False, validation_share=0.0)
EQUAL = ("r", "lora_alpha", "lora_dropout", "learning_rate", "weight_decay", "warmup_ratio",
         "max_grad_norm")  # fmt: skip
"""Settings with the same name on both sides; Adam's betas and epsilon are torch's defaults."""


@dataclass(frozen=True)
class Budget:
    """How much is learned. There are facts times wordings rows, a multiple of batch_rows."""

    facts: int
    wordings: int
    batch_rows: int
    epochs: int

    @property
    def n_rows(self) -> int:
        return self.facts * self.wordings


@dataclass(frozen=True)
class Course:
    """One side's training: loss and tokens of every step, and the resulting adapter."""

    losses: list[float]
    tokens: list[int]
    adapter: Path


@dataclass(frozen=True)
class Loss:
    """Nats per token on one set of rows: of the base, and with each side's adapter."""

    rows: str
    base: float
    device: float
    host: float

    @property
    def difference(self) -> float:
        return abs(self.device - self.host) / self.host


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="GGUF file")
    parser.add_argument("--hf", type=Path, help="its directory, when made before")
    parser.add_argument("--facts", type=int, default=24)
    parser.add_argument("--wordings", type=int, default=4, help="of each fact, at most 5")
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    budget = Budget(given.facts, given.wordings, given.batch_rows, given.epochs)
    if budget.n_rows % budget.batch_rows:
        parser.error("facts times wordings must be a multiple of --batch-rows")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with opened(given.model, given.hf) as base, tempfile.TemporaryDirectory() as scratch:
        document = compared(base, budget, Path(scratch))
    print(json.dumps(document))
    return 0 if document["met"] else 1


def compared(base: Base, budget: Budget, scratch: Path) -> dict[str, Any]:
    """Both trainings and both evaluations; the document of the last line."""
    packed, held_out = read_lesson(base.gguf, budget, scratch)
    order = row_order(budget)
    start = write_start(base.gguf, scratch / "start.gguf")
    device = on_device(base.gguf, packed, order, budget, scratch)
    print(step_line("device", device), flush=True)
    host, settings = on_host(base.gguf, packed, order, budget, scratch)
    print(step_line("host", host), flush=True)
    sets = {"learned": packed.samples, "held out": held_out}
    adapters = {"base": start, "device": device.adapter, "host": host.adapter}
    losses = show("torch", torch_losses(base, sets, adapters))
    served = show("llama.cpp", llama_losses(base.gguf, sets, {**adapters, "base": None}))
    unequal = [key for key in EQUAL if settings[key] != getattr(SETTINGS, key)]
    apart = [abs(a - b) / b for a, b in zip(device.losses, host.losses, strict=True)]
    is_same = not unequal and device.tokens == host.tokens and settings["dtype"] == "fp32"
    return {
        "model": base.gguf.name,
        "budget": {**asdict(budget), "steps": len(order)},
        "settings": {key: settings[key] for key in EQUAL},
        "unequal_settings": unequal,
        "same_tokens_in_every_step": device.tokens == host.tokens,
        "steps": {"device": device.losses, "host": host.losses, "worst": max(apart)},
        "torch": [{**asdict(loss), "difference": loss.difference} for loss in losses],
        "llama_cpp": [asdict(loss) for loss in served],
        "limit": LIMIT,
        "met": is_same and all(loss.difference < LIMIT for loss in losses),
    }


# ---- what is learned, and from where ----------------------------------------------------------


def read_lesson(gguf: Path, budget: Budget, scratch: Path) -> tuple[PackedSamples, list[Sample]]:
    """The rows to learn, also written to rows.jsonl, and other wordings of the same facts."""
    facts = [fact for fact in read_facts(LESSON) if fact.language == "en"][: budget.facts]
    write_rows(scratch / "rows.jsonl", facts, [fact.questions[: budget.wordings] for fact in facts])
    write_rows(scratch / "held.jsonl", facts, [fact.held_out for fact in facts])
    packed, held_out = (
        prepare(scratch / name, gguf, SETTINGS).packed for name in ("rows.jsonl", "held.jsonl")
    )
    if [sample.row for sample in packed.samples] != list(range(1, budget.n_rows + 1)):
        raise SystemExit(f"{budget.n_rows} rows, one sample of each, are wanted: take fewer facts")
    return packed, held_out.samples


def write_rows(path: Path, facts: Sequence[Fact], questions: Sequence[Sequence[str]]) -> None:
    pairs = zip(facts, questions, strict=True)
    rows = [{"instruction": q, "output": fact.answer} for fact, asked in pairs for q in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row_order(budget: Budget) -> list[list[int]]:
    """Steps of sample numbers, epoch after epoch, shuffled as on the device."""
    steps = []
    for epoch in range(budget.epochs):
        rows = epoch_order(budget.n_rows, SETTINGS.seed, epoch)
        steps += [rows[n : n + budget.batch_rows] for n in range(0, len(rows), budget.batch_rows)]
    return steps


def write_start(gguf: Path, path: Path) -> Path:
    """A fresh adapter for every block."""
    model = read_gguf(gguf)
    chosen = lora_settings(SETTINGS, range(model.n_layer))
    loras = new_loras(target_sizes(model, chosen), chosen, SETTINGS.seed)
    return write(path, loras, gguf)


def write(path: Path, loras: Mapping[str, LoraWeight], gguf: Path) -> Path:
    model = read_gguf(gguf)
    identity = identify_base(model, sha256_of(gguf))
    write_adapter(path, loras, AdapterHeader(path.stem, model.architecture, identity))
    return path


def read(path: Path, gguf: Path) -> dict[str, LoraWeight]:
    adapter = read_adapter(path, open_base(gguf).placements)
    return {name: LoraWeight(pair.a, pair.b, pair.scale) for name, pair in adapter.items()}


# ---- training ----------------------------------------------------------------------------------


def on_device(
    gguf: Path, packed: PackedSamples, order: Sequence[Sequence[int]], budget: Budget, scratch: Path
) -> Course:
    """The device's training; the rows of a step are one packed row."""
    loras = read(scratch / "start.gguf", gguf)
    decoder = Decoder(PackedWeights(gguf), loras)
    training_step = TrainingStep(decoder, loras, packed, SETTINGS, len(order))
    done = [training_step.step([rows], number) for number, rows in enumerate(order)]
    losses, tokens = [step.loss for step in done], [step.n_tokens for step in done]
    return Course(losses, tokens, write(scratch / "device.gguf", loras, gguf))


def on_host(
    gguf: Path, packed: PackedSamples, order: Sequence[Sequence[int]], budget: Budget, scratch: Path
) -> tuple[Course, dict[str, Any]]:
    """`edge-train sft` in this process, and the settings in its run.json."""
    lines = [packed.samples[number].row for rows in order for number in rows]
    (scratch / "order.txt").write_text("".join(f"{line}\n" for line in lines))
    run = scratch / "run"
    options = {
        "model": gguf,
        "data": scratch / "rows.jsonl",
        "output": run,
        "cache": scratch / "cache",
        "adapter": scratch / "start.gguf",
        "order": scratch / "order.txt",
        "epochs": 1,
        "batch-size": budget.batch_rows,
        "lr": SETTINGS.learning_rate,
        "max-length": SETTINGS.max_length,
        "dtype": "fp32",
        "validation-share": 0,
        "save-every": len(order),
        "threads": blas_threads(),
    }
    argv = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    terminal = Terminal(io.StringIO(), io.StringIO(), sys.stderr, os.environ)
    if main_with(["sft", *argv, "--json"], terminal):
        raise SystemExit("edge-train sft failed")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    adapter = scratch / "host.gguf"
    convert(run / "adapter", gguf, adapter)
    resumable = Course([row["loss"] for row in log], [row["tokens"] for row in log], adapter)
    return resumable, json.loads((run / "run.json").read_text())["settings"]


# ---- asking ------------------------------------------------------------------------------------

Sets = Mapping[str, Sequence[Sample]]


def torch_losses(base: Base, sets: Sets, adapters: Mapping[str, Path]) -> list[Loss]:
    """Losses of peft's base with adapter, in float32."""
    model = read_gguf(base.gguf)
    peer = PeftPeer(base.directory, base.gguf, lora_settings(SETTINGS, range(model.n_layer)))
    found: dict[str, dict[str, float]] = {name: {} for name in sets}
    for side, adapter in adapters.items():
        peer.put(read(adapter, base.gguf))
        for name, samples in sets.items():
            found[name][side] = float(peer.losses(texts(samples)).mean(dtype="f8"))
    return [Loss(name, **sides) for name, sides in found.items()]


def llama_losses(gguf: Path, sets: Sets, adapters: Mapping[str, Path | None]) -> list[Loss]:
    """Losses of the file as the daemon serves it."""
    found: dict[str, dict[str, float]] = {name: {} for name in sets}
    for side, adapter in adapters.items():
        files = [adapter] if adapter else []
        source = LlamaLogits(gguf, exact=False, threads=blas_threads(), adapters=files)
        try:
            for name, samples in sets.items():
                losses = [llama_loss(source, text) for text in texts(samples)]
                found[name][side] = float(np.concatenate(losses).mean(dtype="f8"))
        finally:
            source.close()
    return [Loss(name, **sides) for name, sides in found.items()]


def llama_loss(source: LlamaLogits, text: Text) -> NDArray[np.float32]:
    """Losses at the supervised positions, float32."""
    ids, learned = text
    places = np.flatnonzero(np.asarray(learned[1:], bool))
    logits = torch.from_numpy(source.logits(ids)[places])
    targets = torch.tensor(list(ids))[places + 1]
    found: NDArray[np.float32] = torch.nn.functional.cross_entropy(
        logits, targets, reduction="none"
    ).numpy()
    return found


def texts(samples: Sequence[Sample]) -> list[Text]:
    return [(list(sample.ids), sample.learned) for sample in samples]


# ---- telling -----------------------------------------------------------------------------------


def step_line(side: str, resumable: Course) -> str:
    losses = resumable.losses
    return f"{side:7} {len(losses)} steps, loss {losses[0]:.4f} -> {losses[-1]:.4f}"


def show(evaluation: str, losses: list[Loss]) -> list[Loss]:
    for loss in losses:
        print(
            f"{evaluation:9} {loss.rows:8} base {loss.base:.4f}, device {loss.device:.5f},"
            f" host {loss.host:.5f}: {100 * loss.difference:.3f} % apart",
            flush=True,
        )
    return losses


if __name__ == "__main__":
    sys.exit(main())
