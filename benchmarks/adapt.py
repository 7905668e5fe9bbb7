"""How fast does the trainer learn, in how much memory, against peft + torch on the CPU?

`--show 2` runs steps of the trainer's own parts (adapt_step.py) and the same steps in peft
(adapt_peft.py, float32): rows of 2 x 256 tokens, r 8, every linear layer. Its parts:

    270m-all   real Gemma 3 270M, all blocks, half of the tokens supervised: at least 1.0 times the
               peer's speed in at most 1/6 of its memory
    270m-top   the top ceil(L/4) blocks, the states below them stored; the peer trains all blocks:
               at least 2.5 times
    1b-top     random weights of Gemma 3 1B's shape, Q8_0, a quarter supervised: at least 4 times
    1b-all     the same with all blocks: no target
    270m-same, 1b-same   as *-top, but the peer also trains only the top blocks: no target

`--show 3` has no peer: one text of 512 tokens, half supervised, all blocks, r 8, random weights of
three models. Targets: RssAnon of at most 400 MB, and all GEMM work of a step divided by its seconds
at least 60 % of the best large sgemm of the same process. The part `limit` trains the largest model
under RLIMIT_AS of 2.0 GB, which limits address space (mapped weights included) and thus RSS.

Each measurement is a process of its own, one at a time, and the order alternates. RssAnon is read
from /proc/PID/status every 20 ms. Both use the same BLAS and OpenMP threads, without the machine's
OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE. A pair or run from which other programs took more than 0.1
core is repeated up to --retries times, then kept and marked with a star.

    .venv/bin/python benchmarks/adapt.py --show 2 --gguf gemma.gguf --hf gemma-hf \\
        --python HOSTVENV/bin/python                                        # last line: JSON
    .venv/bin/python benchmarks/adapt.py --show 3
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from measured_child import ChildFailed, Measured, environment, run, wait_for_quiet
from random_models import SIZES, Size, write_random_model

from edge_agent.adapt.trainer.blas import choose_threads

HERE = Path(__file__).resolve().parent
R = 8
MB = 1_000_000
DISTURBED_CORES = 0.1
LIMIT_BYTES = 2_000_000_000
ANON_LIMIT_BYTES = 400 * MB
LEAST_SHARE = 0.60
SEED = 1


@dataclass(frozen=True)
class Pair:
    """A part of --show 2.

    `memory`: the most that our peak may be, as a share of the peer's. `ratio`: the least speed
    against the peer's. `peer_layers`: all blocks, or the same as ours.
    """

    name: str
    model: str
    layers: str
    supervised: float
    ratio: float | None = None
    memory: float | None = None
    peer_layers: str = "all"


@dataclass(frozen=True)
class Alone:
    """A part of --show 3."""

    name: str
    model: str
    type_name: str
    limit_bytes: int = 0


PAIRS = (
    Pair("270m-all", "gemma3-270m", "all", 0.5, ratio=1.0, memory=1 / 6),
    Pair("270m-top", "gemma3-270m", "top", 0.5, ratio=2.5),
    Pair("1b-top", "gemma3-1b", "top", 0.25, ratio=4.0),
    Pair("1b-all", "gemma3-1b", "all", 0.25),
    Pair("270m-same", "gemma3-270m", "top", 0.5, peer_layers="same"),
    Pair("1b-same", "gemma3-1b", "top", 0.25, peer_layers="same"),
)
ALONE = (
    Alone("1b-q8_0", "gemma3-1b", "Q8_0"),
    Alone("1b-q4_0", "gemma3-1b", "Q4_0"),
    Alone("0.5b-q8_0", "qwen2.5-0.5b", "Q8_0"),
    Alone("limit", "gemma3-1b", "Q8_0", LIMIT_BYTES),
)
PAIR_LENGTHS, ALONE_LENGTHS = (256, 256), (512,)


class Bench:
    """What all parts share: files, threads, repeats."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self._args, self._scratch = args, scratch
        self._environ = environment(args.threads)

    def model(self, name: str, type_name: str = "Q8_0") -> Path:
        """The real Gemma 3 270M, or random weights of that shape."""
        if name == "gemma3-270m":
            return self._args.gguf
        path = self._scratch / f"{name}-{type_name}.gguf"
        if not path.exists():
            print(f"writing {path.name}", file=sys.stderr)
            write_random_model(path, SIZES[name], type_name)
        return path

    def job(self, model: Path, size: Size, lengths: tuple[int, ...], **fields: Any) -> Path:
        """A job file for both programs. Its first row is not timed."""
        rng = random.Random(SEED)
        rows = [[rng.choices(range(size.n_vocab), k=n) for n in lengths]
                for _ in range(1 + self._args.steps)]  # fmt: skip
        job = {"model": str(model), "rows": rows, "n_threads": self._args.threads, "r": R,
               "memory_bytes": self._args.memory * MB, "limit_bytes": 0, "hf": "", "config": {},
               "attention": self._args.attention, "scratch": str(self._scratch)}  # fmt: skip
        path = self._scratch / "job.json"
        path.write_text(json.dumps({**job, **fields}))
        return path

    def ours(self, job: Path) -> Measured:
        return run([sys.executable, str(HERE / "adapt_step.py"), str(job)], self._environ)

    def peer(self, job: Path) -> Measured:
        return run([str(self._args.python), str(HERE / "adapt_peft.py"), str(job)], self._environ)

    def undisturbed(self, measure: Callable[[], list[Measured]]) -> list[Measured]:
        """Measure again while others disturbed it; returns the least disturbed try."""
        tries: list[list[Measured]] = []
        for _ in range(1 + self._args.retries):
            wait_for_quiet(self._args.wait)
            tries.append(measure())
            if not any(map(is_disturbed, tries[-1])):
                break
        return min(tries, key=lambda found: max(one.others_cores for one in found))


def is_disturbed(measured: Measured) -> bool:
    return measured.others_cores > DISTURBED_CORES


# ---- show 2 ------------------------------------------------------------------------------------


def compare(bench: Bench, part: Pair, args: argparse.Namespace) -> dict[str, Any]:
    """Alternating runs; each pair gives a ratio, and the median of the ratios is the result."""
    size = SIZES[part.model]
    count = size.n_layer if part.layers == "all" else math.ceil(size.n_layer / 4)
    blocks = None if part.layers == "all" else list(range(size.n_layer - count, size.n_layer))
    is_real = part.model == "gemma3-270m"
    job = bench.job(
        bench.model(part.model),
        size,
        PAIR_LENGTHS,
        layers="all" if blocks is None else f"top:{count}",
        blocks=blocks if part.peer_layers == "same" else None,
        supervised=part.supervised,
        hf=str(args.hf.resolve()) if is_real else "",
        config={} if is_real else peer_config(size),
    )
    pairs = []
    for number in range(args.pairs):
        order = (bench.ours, bench.peer) if number % 2 == 0 else (bench.peer, bench.ours)
        found = bench.undisturbed(lambda order=order: [one(job) for one in order])
        ours, peer = found if number % 2 == 0 else found[::-1]
        pairs.append((ours, peer))
        print(pair_line(part, ours, peer), flush=True)
    if is_real:
        check_same_loss(*pairs[0])
    return summary(part, pairs)


def peer_config(size: Size) -> dict[str, Any]:
    """Gemma3TextConfig of the same shape."""
    return {
        **{"hidden_size": size.n_embd, "intermediate_size": size.n_ff},
        **{"num_hidden_layers": size.n_layer, "head_dim": size.head_dim},
        **{"num_attention_heads": size.n_head, "num_key_value_heads": size.n_head_kv},
        **{"vocab_size": size.n_vocab, "sliding_window": size.sliding_window},
        **{"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    }


def check_same_loss(ours: Measured, peer: Measured) -> None:
    """Raise ChildFailed unless both have the same loss, and so the same weights, before the first
    step."""
    first, theirs = ours.document["losses"][0], peer.document["losses"][0]
    if abs(first - theirs) > 1e-4 * theirs:
        raise ChildFailed(f"not the same work: first loss {first}, the peer's {theirs}")


def tok_s(measured: Measured) -> float:
    """Tokens per second of the median step."""
    return float(measured.document["tokens"] / median(measured.document["step_s"]))


def pair_line(part: Pair, ours: Measured, peer: Measured) -> str:
    star = "*" if is_disturbed(ours) or is_disturbed(peer) else " "
    return (
        f"{part.name:9}{star} {tok_s(ours):7.1f} against {tok_s(peer):7.1f} tok/s:"
        f" {tok_s(ours) / tok_s(peer):5.2f} x; RssAnon {ours.peak_anon_bytes / MB:5.0f} against"
        f" {peer.peak_anon_bytes / MB:5.0f} MB; others {ours.others_cores:.2f},"
        f" {peer.others_cores:.2f} core"
    )


def summary(part: Pair, pairs: list[tuple[Measured, Measured]]) -> dict[str, Any]:
    """Medians and ranges; peaks: our highest, the peer's lowest."""
    ratios = [tok_s(ours) / tok_s(peer) for ours, peer in pairs]
    cpu = [processor_s(peer) / processor_s(ours) for ours, peer in pairs]
    anon = max(o.peak_anon_bytes for o, _ in pairs) / min(p.peak_anon_bytes for _, p in pairs)
    whole = max(o.peak_resident_bytes for o, _ in pairs) / min(
        p.peak_resident_bytes for _, p in pairs
    )
    found = {
        **{"ratio": median(ratios), "ratios": ratios, "processor_ratio": median(cpu)},
        **{"memory": anon, "resident": whole},
        "runs": [{"ours": asdict(ours), "peer": asdict(peer)} for ours, peer in pairs],
    }
    unmet = []
    if part.ratio is not None and found["ratio"] < part.ratio:
        unmet.append(f"{part.name}: {found['ratio']:.2f} x, wanted {part.ratio} x")
    if part.memory is not None and anon > part.memory:
        unmet.append(f"{part.name}: {anon:.3f} of the peer's memory, wanted {part.memory:.3f}")
    print(
        f"{part.name:9}  {found['ratio']:.2f} x (pairs {min(ratios):.2f}-{max(ratios):.2f};"
        f" by processor time {median(cpu):.2f}); 1/{1 / anon:.1f} of its RssAnon,"
        f" 1/{1 / whole:.1f} of its RSS{prefix_words(pairs)}",
        flush=True,
    )
    return {"part": part.name, **found, "unmet": unmet}


def processor_s(measured: Measured) -> float:
    return float(median(measured.document["cpu_s"]))


def prefix_words(pairs: list[tuple[Measured, Measured]]) -> str:
    """How long storing the states took, which is not part of any step."""
    stored = [ours.document for ours, _ in pairs if ours.document["prefix_s"] is not None]
    if not stored:
        return ""
    rows = [found["prefix_s"] / (1 + len(found["step_s"])) for found in stored]
    return f"; states stored once, {median(rows):.2f} s a row"


# ---- show 3 ------------------------------------------------------------------------------------


def alone(bench: Bench, part: Alone) -> dict[str, Any]:
    """One run of the trainer's parts, with the targets that it missed."""
    job = bench.job(
        bench.model(part.model, part.type_name),
        SIZES[part.model],
        ALONE_LENGTHS,
        layers="all",
        supervised=0.5,
        limit_bytes=part.limit_bytes,
    )
    (found,) = bench.undisturbed(lambda: [bench.ours(job)])
    document = found.document
    rate = document["flops"] / median(document["step_s"])
    share = rate / document["sgemm_flops_s"]
    print(
        f"{part.name:9}{'*' if is_disturbed(found) else ' '} {tok_s(found):6.1f} tok/s,"
        f" {rate / 1e9:4.0f} GFLOP/s = {share:.0%} of {document['sgemm_flops_s'] / 1e9:.0f};"
        f" RssAnon {found.peak_anon_bytes / MB:.0f} MB (planned"
        f" {document['planned_bytes'] / MB:.0f}), RSS {found.peak_resident_bytes / MB:.0f}, address"
        f" space {document['peak_address_bytes'] / MB:.0f}; others {found.others_cores:.2f} core",
        flush=True,
    )
    unmet = []
    if found.peak_anon_bytes > ANON_LIMIT_BYTES:
        unmet.append(f"{part.name}: RssAnon {found.peak_anon_bytes / MB:.0f} MB")
    if share < LEAST_SHARE:
        unmet.append(f"{part.name}: {share:.0%} of the best sgemm")
    return {"part": part.name, "gemm_share": share, "run": asdict(found), "unmet": unmet}


# ---- command -----------------------------------------------------------------------------------


def parts(bench: Bench, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The result of each requested part."""
    wanted = set(args.only or [])
    if args.show == 3:
        for one in ALONE:
            if not wanted or one.name in wanted:
                yield alone(bench, one)
        return
    for pair in PAIRS:
        if not wanted or pair.name in wanted:
            yield compare(bench, pair, args)


@contextmanager
def scratch_directory(given: Path | None) -> Iterator[Path]:
    """`given`, which is kept; or a temporary directory on a disk and not in memory."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(dir=Path.home()) as name:
        yield Path(name)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--show", type=int, choices=(2, 3), required=True)
    parser.add_argument("--only", nargs="+", help="names of parts [all]")
    parser.add_argument("--gguf", type=Path, help="the real Gemma 3 270M")
    parser.add_argument("--python", type=Path, help="has torch, transformers and peft")
    parser.add_argument("--hf", type=Path, help="`edge-convert to-hf` of the GGUF file")
    parser.add_argument("--attention", default="", help="of the peer [transformers' default]")
    parser.add_argument("--threads", type=int, default=choose_threads(None))
    parser.add_argument("--memory", type=int, default=0, help="MB that ours may take [the least]")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="timed steps a run")
    parser.add_argument(
        "--wait", type=float, default=60, help="seconds for the machine to be quiet"
    )
    parser.add_argument("--retries", type=int, default=2, help="of what was disturbed")
    parser.add_argument("--scratch", type=Path, help="keep random models there [a temporary one]")
    parser.add_argument("--quick", action="store_true", help="once, one step: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.steps, args.retries, args.wait = 1, 1, 0, 0
    if args.show == 2 and None in (args.gguf, args.python, args.hf):
        parser.error("show 2 needs --gguf, --python and --hf")
    return args


def main() -> int:
    args = arguments()
    print(f"{args.threads} threads, load {os.getloadavg()}, * = others ran beside it")
    try:
        with scratch_directory(args.scratch) as scratch:
            found = list(parts(Bench(args, scratch), args))
    except ChildFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    unmet = [target for part in found for target in part["unmet"]]
    for target in unmet:
        print(f"missed: {target}")
    print(json.dumps({"benchmark": "adapt", "show": args.show, "threads": args.threads,
                      "parts": found, "unmet": unmet}))  # fmt: skip
    return 1 if unmet else 0


if __name__ == "__main__":
    sys.exit(main())
