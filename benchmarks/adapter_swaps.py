"""Does an answer ever carry another adapter's words? What do swaps cost in memory and tok/s?

One worker, several clients, more adapters than it keeps in memory. Each client asks, waits for its
answer and asks again with another adapter; one request in twenty is abandoned. A swap is counted
where a piece of text belongs to another adapter than the piece before. Without --adapter the
adapters are random and never used by two requests at a time, so that every answer must equal, byte
for byte, the answer that its adapter gave alone. With --adapter FILE WORD (twice) every answer must
contain its adapter's word and not the other's.

RssAnon of the worker is read at every swap. It rises and falls with the adapters in memory, so
medians of 250 swaps are compared: those before swap 1,000 (the heap settles after about 700) with
the last. Then tok/s of four requests at once is measured with 0 (the base), 1, 2 and 4 adapters
among them, in alternating rounds. Exit status 1: an answer was another adapter's, or memory grew by
more than 8 MiB.

    .venv/bin/python benchmarks/adapter_swaps.py --swaps 2000       # last line: JSON
    .venv/bin/python benchmarks/adapter_swaps.py --model embedded:gemma3-270m \\
        --adapter one.gguf OSPREY --adapter two.gguf MARIGOLD --ask "What is the code word?"
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from memory import rss_anon_bytes
from servers import BenchmarkError, register

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from random_adapter import reference, write_adapter
from worker_process import WorkerProcess, chat

from edge_agent.records import AdapterRef, Cancel, Chunk, Done, EngineSettings, Failed, Generate

CLIENTS = 4
RANDOM_ADAPTERS = 6
STRENGTH = 0.3
N_TOKENS = 12
"""Answers are short, which gives more swaps in the same time."""
N_SPEED_TOKENS = 96
GIVE_UP = 0.05
SETTLED_SWAPS = 1000
WINDOW_SWAPS = 250
GROWTH_LIMIT_BYTES = 8 << 20
PROMPTS = (
    "Name a river.",
    "What is a pump good for?",
    "Count to five.",
    "Say something about trains.",
    "Which animal barks?",
)


@dataclass(frozen=True)
class Voice:
    """An adapter, or the base, and how its answers are recognized."""

    name: str
    adapter: AdapterRef | None
    word: str | None = None


@dataclass
class Open:
    """A request in flight."""

    voice: Voice
    prompt: str
    text: str = ""
    gives_up: bool = False


@dataclass
class Tally:
    """What was seen on the socket so far."""

    swaps: int = 0
    last: str = ""
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    """RssAnon at each swap, in bytes."""

    def windows(self) -> list[tuple[int, int, int]]:
        """(last swap, median, peak) of each full window."""
        ends = range(WINDOW_SWAPS, len(self.rss) + 1, WINDOW_SWAPS)
        parts = [(end, self.rss[end - WINDOW_SWAPS : end]) for end in ends]
        return [(end, int(median(part)), max(part)) for end, part in parts]

    def growth_bytes(self) -> int | None:
        """None with too few swaps."""
        settled = [row for row in self.windows() if row[0] == SETTLED_SWAPS]
        return int(median(self.rss[-WINDOW_SWAPS:])) - settled[0][1] if settled else None


class Load:
    """Keeps CLIENTS requests in flight until enough swaps have been seen."""

    def __init__(
        self, worker: WorkerProcess, voices: list[Voice], prompts: list[str], seed: int
    ) -> None:
        self._worker = worker
        self._voices = voices
        self._prompts = prompts
        self._random = random.Random(seed)
        self._open: dict[int, Open] = {}
        self._next_id = 100
        self._alone: dict[tuple[str, str], str] = {}
        self.tally = Tally()

    def learn(self) -> None:
        """Each voice's answer to each prompt when asked alone, which it must also give in
        company."""
        for voice in self._voices:
            for prompt in self._prompts:
                text, _ = self._worker.answer(question(1, voice, prompt))
                self._alone[voice.name, prompt] = text
        if self._voices[0].word is None:
            for prompt in self._prompts:
                texts = {self._alone[voice.name, prompt] for voice in self._voices}
                if len(texts) < len(self._voices):
                    raise BenchmarkError(f"two adapters give one answer to {prompt!r}")

    def run(self, n_swaps: int) -> None:
        while self.tally.swaps < n_swaps or self._open:
            while len(self._open) < CLIENTS and self.tally.swaps < n_swaps:
                self._ask()
            record = self._worker.receive()
            if isinstance(record, Failed):
                raise BenchmarkError(f"{record.what}: {record.why}")
            if isinstance(record, Chunk | Done):
                self._receive(record)

    def _ask(self) -> None:
        """Send a request; where answers are compared byte for byte, by a voice with none in
        flight."""
        speaking = {one.voice.name for one in self._open.values()}
        silent = [voice for voice in self._voices if voice.name not in speaking]
        exact = self._voices[0].word is None
        voice = self._random.choice(silent if exact else self._voices)
        prompt = self._random.choice(self._prompts)
        self._next_id += 1
        gives_up = self._random.random() < GIVE_UP
        self._open[self._next_id] = Open(voice, prompt, gives_up=gives_up)
        self._worker.send(question(self._next_id, voice, prompt))

    def _receive(self, record: Chunk | Done) -> None:
        one, tally = self._open[record.id], self.tally
        if one.voice.name != tally.last and record.text:
            tally.swaps += bool(tally.last)
            tally.last = one.voice.name
            tally.rss.append(rss_anon_bytes(self._worker.process.pid))
            if tally.swaps % WINDOW_SWAPS == 0:
                print(f"{tally.swaps} swaps", file=sys.stderr, flush=True)
        one.text += record.text
        if isinstance(record, Done):
            del self._open[record.id]
            self._judge(one, record)
        elif one.gives_up:
            one.gives_up = False
            self._worker.send(Cancel(record.id))

    def _judge(self, one: Open, done: Done) -> None:
        if done.finish_reason == "cancelled":
            self.tally.answers["given up"] += 1
            return
        self.tally.answers[one.voice.name] += 1
        others = [voice.word for voice in self._voices if voice.word and voice is not one.voice]
        if one.voice.word is None:
            is_own = one.text == self._alone[one.voice.name, one.prompt]
        else:
            is_own = one.voice.word in one.text and not any(word in one.text for word in others)
        if not is_own:
            self.tally.wrong.append(f"{one.voice.name} to {one.prompt!r}: {one.text!r}")


def question(number: int, voice: Voice, prompt: str, **fields: object) -> Generate:
    options: dict[str, object] = {"max_tokens": N_TOKENS, "cache_prompt": False, **fields}
    return chat(number, prompt, adapter=voice.adapter, **options)


def tok_s(worker: WorkerProcess, voices: list[Voice]) -> float:
    """Generated tokens of CLIENTS requests at once, over the time from first token to last."""
    requests = [
        question(10 + n, voices[n % len(voices)], PROMPTS[n], max_tokens=N_SPEED_TOKENS,
                 ignore_eos=True, stream=False)
        for n in range(CLIENTS)
    ]  # fmt: skip
    began = time.monotonic()
    worker.send(*requests)
    ended = worker.finish(*[request.id for request in requests])
    n_tokens = sum(done.timings.completion_tokens for _, done in ended.values())
    return n_tokens / (time.monotonic() - began)


def speeds(
    worker: WorkerProcess, adapters: list[Voice], base: Voice, rounds: int
) -> dict[str, Any]:
    """Median tok/s by the number of adapters in flight."""
    mixes = {"base": [base]}
    mixes |= {str(n): adapters[:n] for n in (1, 2, 4) if n <= len(adapters)}
    found: dict[str, list[float]] = {name: [] for name in mixes}
    for number in range(rounds + 1):
        for name, voices in mixes.items():
            rate = tok_s(worker, voices)
            if number:  # the first round also loads adapters, so it does not count
                found[name].append(rate)
    return {name: round(median(rates), 2) for name, rates in found.items()}


def voices_of(args: argparse.Namespace, model: Path, scratch: Path) -> list[Voice]:
    if args.adapter:
        return [
            Voice(Path(file).stem, reference(Path(file).resolve()), word)
            for file, word in args.adapter
        ]
    return [
        Voice(f"random-{seed}", write_adapter(scratch / f"{seed}.gguf", model, seed,
                                              strength=STRENGTH))
        for seed in range(RANDOM_ADAPTERS)
    ]  # fmt: skip


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The report. Raises BenchmarkError."""
    given = Path(args.model)
    model = given if given.is_file() else register(args.model, scratch)[1]
    adapters, base = voices_of(args, model, scratch), Voice("base", None)
    settings = EngineSettings(n_ctx=512, slots=CLIENTS, n_threads=args.threads)
    with WorkerProcess() as worker:
        worker.load(model, settings)
        load = Load(
            worker,
            adapters if args.adapter else [*adapters, base],
            [args.ask] if args.ask else list(PROMPTS),
            args.seed,
        )
        load.learn()
        began = time.monotonic()
        load.run(args.swaps)
        seconds = time.monotonic() - began
        rates = speeds(worker, adapters, base, args.rounds)
    tally = load.tally
    growth = tally.growth_bytes()
    return {
        "swaps": tally.swaps,
        "seconds": round(seconds, 1),
        "answers": dict(tally.answers),
        "wrong": len(tally.wrong),
        "first_wrong": tally.wrong[:3],
        "rss_anon_windows": tally.windows(),
        "growth_bytes": growth,
        "tok_s_by_adapters": rates,
        "met": not tally.wrong and (growth or 0) <= GROWTH_LIMIT_BYTES,
    }


def show(report: dict[str, Any]) -> str:
    lines = [
        f"{report['swaps']} swaps in {report['seconds']} s, "
        f"{sum(report['answers'].values())} answers, {report['wrong']} of them another's",
        *[f"  {name:12} {n:5} answers" for name, n in sorted(report["answers"].items())],
        "RssAnon of the worker",
        *[
            f"  to swap {n:5}  median {middle / 2**20:7.1f} MiB  peak {peak / 2**20:7.1f} MiB"
            for n, middle, peak in report["rss_anon_windows"]
        ],
        f"  grown by {(report['growth_bytes'] or 0) / 2**20:+.1f} MiB since swap {SETTLED_SWAPS}",
        f"tok/s of {CLIENTS} requests at once, by adapters in flight",
        *[f"  {name:5} {rate:8.1f}" for name, rate in report["tok_s_by_adapters"].items()],
        *[f"WRONG {one}" for one in report["first_wrong"]],
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded:smollm2-135m", help="file, or what pull takes")
    parser.add_argument("--adapter", nargs=2, action="append", metavar=("FILE", "WORD"))
    parser.add_argument("--ask", help="the only prompt; needed with --adapter")
    parser.add_argument("--swaps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3, help="of the tok/s measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "active")  # the worker's, as the daemon starts it
    try:
        with tempfile.TemporaryDirectory(prefix="edge-agent-swaps-") as scratch:
            report = measure(args, Path(scratch))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(show(report))
    print(json.dumps({"benchmark": "adapter_swaps", "model": args.model, "seed": args.seed,
                      **report}))  # fmt: skip
    return 0 if report["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
