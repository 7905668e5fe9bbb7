"""Are the trainer's gradients and losses those of torch autograd and peft?

Three questions, each with a limit. Gradients of real quantized files: two texts packed into one
row, half of each supervised, random B (with B = 0 half of the gradients would be 0), ours in
float32 against torch per text on the file's dequantized weights; per tensor ||g - g'|| / ||g'|| <
1e-4. The same for tiny models of all four families in float64: < 1e-9. Curves: 50 steps of AdamW on
recipes/lesson with the same start, rows and schedule; the loss of every step within 1 % of peft's.
Exit status 1 when a limit is missed. Nothing is timed.

torch's float32 cross-entropy sums a vocabulary so inexactly that its probabilities miss 1 by 1e-5,
and the gradient of a token that the model is sure of by 1e-3. Therefore two references count: torch
in float32 with the loss in float64, and torch in float64 throughout. torch in float32 throughout is
shown beside its own distance from the latter. For the curves, too, the reference with the loss in
float64 counts: AdamW's first steps are as long for a small gradient as for a large one, so the
error grows from step to step.

Needs torch, transformers and peft: run it in an environment of its own.

    HOSTVENV/bin/python benchmarks/adapt_gradients.py gemma.gguf smol.gguf   # last line: JSON
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from peft_peer import PeftLearner, PeftPeer, Text

from converters import gguf_to_hf, hf_to_gguf
from converters.gguf_output import write_model
from converters.quantizer import How
from converters.sample_texts import PASSAGES
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.dataset import read_rows
from edge_agent.adapt.trainer.decoder.decoder import Decoder, pack
from edge_agent.adapt.trainer.decoder.lora import (
    Loras,
    LoraSettings,
    LoraWeight,
    new_loras,
    parameters,
    target_sizes,
)
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.optimizer import factor
from edge_agent.adapt.trainer.packed_samples import epoch_rows
from edge_agent.adapt.trainer.preparation import prepare
from edge_agent.adapt.trainer.training_step import TrainingStep
from edge_agent.llama.type_plan import TypeRequest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests" / "helpers"))

from tiny_checkpoint import write_checkpoint  # noqa: E402

FAMILIES = ("gemma3", "qwen2", "qwen3", "llama")
F32_LIMIT, F64_LIMIT, CURVE_LIMIT = 1e-4, 1e-9, 0.01
LESSON = ROOT / "recipes" / "lesson" / "train.jsonl"
SETTINGS = RunSettings(layers="all", batch_tokens=256)
REAL_TOKENS = 576, 224
"""Lengths of the two texts; the first is longer than Gemma's window of 512."""
TINY_TOKENS = 48, 24
"""Lengths of the two texts; the tiny Gemma's window is 32."""
CURVE_LOSSES = {"peft float32": np.float32, "peft float32, loss float64": np.float64}
B_SCALE = 0.02
"""Standard deviation of the random B."""


@dataclass(frozen=True)
class Precision:
    """The types of a torch reference: of the model, and of the cross-entropy.

    No limit: only shown.
    """

    dtype: Any
    loss_dtype: Any
    limit: float | None = None

    def __str__(self) -> str:
        dtype, loss_dtype = np.dtype(self.dtype).name, np.dtype(self.loss_dtype).name
        same = dtype == loss_dtype
        return f"torch {dtype}" if same else f"torch {dtype}, loss {loss_dtype}"


EXACT = Precision(np.float64, np.float64, F32_LIMIT)
REAL = (Precision(np.float32, np.float32), Precision(np.float32, np.float64, F32_LIMIT), EXACT)
TINY = (Precision(np.float64, np.float64, F64_LIMIT),)


@dataclass(frozen=True)
class Pass:
    """One side's losses, and the gradients of their mean by name."""

    side: str
    gradients: dict[str, np.ndarray]
    losses: np.ndarray

    @property
    def loss(self) -> float:
        return float(self.losses.mean(dtype="f8"))


@dataclass(frozen=True)
class Gradients:
    """Relative errors of one side over all tensors of one model, and both mean losses."""

    model: str
    side: str
    reference: str
    tensors: int
    worst: float
    worst_tensor: str
    median: float
    loss: float
    reference_loss: float
    limit: float | None

    @property
    def is_met(self) -> bool:
        return self.limit is None or self.worst < self.limit


@dataclass(frozen=True)
class Curve:
    """Losses of every step on both sides."""

    model: str
    side: str
    reference: str
    losses: list[float]
    peer_losses: list[float]
    limit: float | None = CURVE_LIMIT

    @property
    def differences(self) -> list[float]:
        """Relative difference of each step."""
        both = zip(self.losses, self.peer_losses, strict=True)
        return [abs(ours - theirs) / theirs for ours, theirs in both]

    @property
    def is_met(self) -> bool:
        return self.limit is None or max(self.differences) < self.limit


@dataclass(frozen=True)
class Base:
    """One model in both forms: GGUF file and directory."""

    gguf: Path
    directory: Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", help="GGUF files")
    parser.add_argument("--hf", type=Path, nargs="+", help="their directories, when made before")
    parser.add_argument("--steps", type=int, default=50, help="of the curves; 0: none")
    parser.add_argument("--only", choices=("gradients", "curves"))
    arguments = parser.parse_args()
    if arguments.hf and len(arguments.hf) != len(arguments.models):
        parser.error("--hf needs one directory for each model")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    gradients, curves = [], []
    for family in FAMILIES if arguments.only != "curves" else ():
        gradients += shown(tiny_gradients(family))
    for number, path in enumerate(arguments.models):
        with opened(path, arguments.hf[number] if arguments.hf else None) as base:
            if arguments.only != "curves":
                gradients += shown(real_gradients(base))
            if arguments.only != "gradients" and arguments.steps:
                curves += curves_of(base, arguments.steps)
    is_met = all(found.is_met for found in (*gradients, *curves))
    print(json.dumps(report(gradients, curves, is_met)))
    return 0 if is_met else 1


def report(gradients: Sequence[Gradients], curves: Sequence[Curve], is_met: bool) -> dict[str, Any]:
    return {
        "gradients": [{**asdict(found), "met": found.is_met} for found in gradients],
        "curves": [
            {**asdict(found), "worst": max(found.differences), "met": found.is_met}
            for found in curves
        ],
        "met": is_met,
    }


def shown(found: Iterable[Gradients]) -> Iterator[Gradients]:
    for row in found:
        judged = "only shown" if row.limit is None else verdict(row.is_met, f"{row.limit:g}")
        print(
            f"{row.model:12} {row.side:13} against {row.reference + ':':28} {row.tensors:3}"
            f" tensors, worst {row.worst:.2e} ({row.worst_tensor}), median {row.median:.2e},"
            f" loss {row.loss:.6f} and {row.reference_loss:.6f}: {judged}",
            flush=True,
        )
        yield row


def curve_line(found: Curve) -> str:
    differences = found.differences
    worst = max(differences)
    judged = "only shown" if found.limit is None else verdict(found.is_met, f"{found.limit:.0%}")
    return (
        f"{found.model:12} {found.side} against {found.reference}: {len(differences)} steps, loss"
        f" {found.losses[0]:.4f} -> {found.losses[-1]:.4f} and {found.peer_losses[-1]:.4f}, worst"
        f" {100 * worst:.4f} % at step {differences.index(worst) + 1}, median"
        f" {100 * float(np.median(differences)):.4f} %: {judged}"
    )


def verdict(is_met: bool, limit: str) -> str:
    return f"{'below' if is_met else 'NOT BELOW'} {limit}"


@contextmanager
def opened(path: Path, directory: Path | None) -> Iterator[Base]:
    """The model also as a directory, which is made for the duration unless given."""
    if directory is not None:
        yield Base(path, directory)
        return
    with tempfile.TemporaryDirectory() as name:
        gguf_to_hf.convert(path, Path(name) / "hf")
        yield Base(path, Path(name) / "hf")


def tiny_gradients(family: str) -> Iterator[Gradients]:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_checkpoint(scratch / "checkpoint", family)
        path = scratch / f"tiny-{family}.gguf"
        write_model(path, *hf_to_gguf.load(scratch / "checkpoint"), TypeRequest("F32"), How())
        rng = np.random.default_rng(3)
        texts = [half_learned(rng.integers(20, 200, n).tolist()) for n in TINY_TOKENS]
        with opened(path, None) as base:
            yield from compared(base, texts, np.float64, TINY)


def real_gradients(base: Base) -> Iterator[Gradients]:
    """The last row is torch against itself: the distance of plain float32 from float64."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base.directory)
    answers = "\n".join(row.messages[-1].content for row in read_rows(LESSON))
    whole = [answers, "\n".join(PASSAGES.values())]
    ids = [tokenizer(text)["input_ids"][:n] for text, n in zip(whole, REAL_TOKENS, strict=True)]
    yield from compared(base, [half_learned(one) for one in ids], np.float32, REAL)


def half_learned(ids: list[int]) -> Text:
    asked = len(ids) // 2
    return ids, [False] * asked + [True] * (len(ids) - asked)


def compared(
    base: Base, texts: list[Text], dtype: Any, references: Sequence[Precision]
) -> Iterator[Gradients]:
    """Ours against each reference on the same adapters; then the first reference against the
    last."""
    weights, settings = PackedWeights(base.gguf, dtype), LoraSettings()
    loras = random_loras(weights, settings, dtype)
    batch = pack(texts)
    losses = Decoder(weights, loras).step(batch, 1.0 / len(batch.supervised)).losses
    ours = Pass(
        f"ours {np.dtype(dtype).name}", {name: g for name, _, g in parameters(loras)}, losses
    )
    found = []
    for precision in references:
        found.append(torch_pass(base, texts, precision, loras))
        yield errors(base, ours, found[-1], precision.limit)
    if len(found) > 1:
        yield errors(base, found[0], found[-1], None)


def torch_pass(base: Base, texts: list[Text], precision: Precision, loras: Loras) -> Pass:
    peer = PeftPeer(base.directory, base.gguf, LoraSettings(), precision.dtype)
    peer.put(loras)
    losses = peer.backward(texts, precision.loss_dtype)
    return Pass(str(precision), dict(peer.gradients()), losses)


def errors(base: Base, side: Pass, reference: Pass, limit: float | None) -> Gradients:
    """Raises ValueError when the two sides have different tensors."""
    if set(side.gradients) != set(reference.gradients):
        raise ValueError("the two sides have different tensors")
    found = {
        name: relative_error(gradient, reference.gradients[name])
        for name, gradient in side.gradients.items()
    }
    worst = max(found, key=lambda name: found[name])
    return Gradients(
        model=base.gguf.stem,
        side=side.side,
        reference=reference.side,
        tensors=len(found),
        worst=found[worst],
        worst_tensor=worst,
        median=float(np.median(list(found.values()))),
        loss=side.loss,
        reference_loss=reference.loss,
        limit=limit,
    )


def random_loras(
    weights: PackedWeights, settings: LoraSettings, dtype: Any
) -> dict[str, LoraWeight]:
    loras = new_loras(target_sizes(weights.gguf, settings), settings, seed=1, dtype=dtype)
    rng = np.random.default_rng(2)
    for lora in loras.values():
        lora.b[:] = rng.standard_normal(lora.b.shape) * B_SCALE
    return loras


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    difference = np.linalg.norm(ours.astype("f8") - theirs)
    return float(difference / np.linalg.norm(theirs.astype("f8")))


def curves_of(base: Base, n_steps: int) -> Iterator[Curve]:
    """`n_steps` of all three on the lesson's rows, every block trained, from B = 0.

    Ours is compared with both references, then peft in float32 with peft with the loss in float64.
    """
    packed = prepare(LESSON, base.gguf, SETTINGS).packed
    weights, settings = PackedWeights(base.gguf), LoraSettings()
    loras = new_loras(target_sizes(weights.gguf, settings), settings, seed=1)
    peers = [PeftPeer(base.directory, base.gguf, settings) for _ in CURVE_LOSSES]
    for peer in peers:
        peer.put(loras)
    ours = TrainingStep(Decoder(weights, loras), loras, packed, SETTINGS, n_steps)
    theirs = [
        PeftLearner(
            peer, SETTINGS, lambda n: factor(n, n_steps, SETTINGS.warmup_ratio), np.dtype(dtype)
        )
        for peer, dtype in zip(peers, CURVE_LOSSES.values(), strict=True)
    ]
    losses: list[list[float]] = [[] for _ in range(1 + len(peers))]
    for number, row in enumerate(rows(packed.samples[: len(packed.train)], n_steps)):
        print(f"\rcurves: step {number + 1} of {n_steps}", end="", file=sys.stderr, flush=True)
        losses[0].append(ours.step([row], number).loss)
        texts = [(list(packed.samples[n].ids), packed.samples[n].learned) for n in row]
        for place, peer_learner in enumerate(theirs, 1):
            losses[place].append(peer_learner.step(texts, number))
    print(file=sys.stderr)
    name, (plain, exact) = base.gguf.stem, CURVE_LOSSES
    for found in (
        Curve(name, "ours", exact, losses[0], losses[2]),
        Curve(name, "ours", plain, losses[0], losses[1], None),
        Curve(name, plain, exact, losses[1], losses[2], None),
    ):
        print(curve_line(found), flush=True)
        yield found


def rows(samples: Sequence[Any], n_steps: int) -> list[list[int]]:
    """`n_steps` packed rows, epoch after epoch."""
    found: list[list[int]] = []
    while len(found) < n_steps:
        epoch = len(found)
        found += epoch_rows(samples, SETTINGS.batch_tokens, SETTINGS.seed, epoch)
    return found[:n_steps]


if __name__ == "__main__":
    sys.exit(main())
