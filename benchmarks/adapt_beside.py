"""How much does a lesson slow the answers, and answering the lesson, under each policy?

A daemon with Gemma 3 270M learns recipes/lesson while one client asks (`adapt run --while idle`,
`always`, `exclusive`). Under `idle` and `always`, pairs of questions are asked: one while `adapt
pause` holds the lesson, one while it runs, GAP_S apart so that the pause of `idle` is over each
time. Then the trainer's steps are counted without any client, and with a client that never stops.
Under `exclusive` the question must be refused with 429 and the reason. The result is the median of
the pairs' ratios. There is no target: exit status 1 only when an answer fails or the trainer stops.

    .venv/bin/python benchmarks/adapt_beside.py --pairs 5           # last line: JSON
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lesson_rows import LESSON
from servers import BenchmarkError, Server, edge_agent, register
from stream_client import StreamResult, ask_json, stream

MODEL = "gemma3-270m"
PROMPT = " ".join(f"On day {n} the gate was open for {n + 3} hours." for n in range(1, 9))
N_TOKENS = 64
GAP_S = 8.0
"""More than pause_policy.QUIET_S plus the second in which the trainer notices a pause."""
WINDOW_S = 20.0
BEGIN_S = 180.0
REFUSED = 429
EXCLUSIVE = "exclusive"
POLICIES = ("idle", "always", EXCLUSIVE)


@dataclass(frozen=True)
class Asked:
    """The time to first token and the speed of one answer."""

    ttft_s: float
    decode_tok_s: float


@dataclass(frozen=True)
class Beside:
    """One policy. `steps_s`: the trainer's steps per second without any client.

    `steps_s_asked`: the same with a client that asks without pause, whose answers are `asked`.
    """

    policy: str
    held: list[Asked]
    learning: list[Asked]
    asked: list[Asked]
    steps_s: float
    steps_s_asked: float


def question() -> dict[str, Any]:
    fixed = {"temperature": 0, "stream": True, "cache_prompt": False, "ignore_eos": True}
    return {"model": f"{MODEL}:base", "prompt": PROMPT, "max_tokens": N_TOKENS, **fixed}


def ask(server: Server) -> StreamResult:
    return stream(server.address, "/v1/completions", question())


def answered(server: Server) -> Asked:
    """Ask once. Raises BenchmarkError when no complete answer came."""
    result = ask(server)
    if result.ending != "complete":
        raise BenchmarkError(f"the answer ended as {result.ending}: {result.detail}")
    return Asked(result.ttft_s, result.decode_tok_s)


def lesson(server: Server) -> dict[str, Any]:
    return dict(ask_json(server.address, "/adapt")[1])


def step(server: Server) -> int:
    return int((lesson(server).get("progress") or {}).get("step") or 0)


def post(server: Server, path: str) -> None:
    status, document = ask_json(server.address, path, {})
    if status >= 400:
        raise BenchmarkError(f"POST {path} answered {status}: {document}")


@contextmanager
def learning(server: Server, policy: str, layers: str) -> Iterator[None]:
    """A lesson that has made its first steps; it is stopped when the daemon ends."""
    command = [str(Path(sys.executable).parent / "edge-agent"), "adapt", "run", "--json"]
    command += [
        "--from",
        str(LESSON / "train.jsonl"),
        "--model",
        MODEL,
        "--name",
        f"beside-{policy}",
    ]
    command += ["--layers", layers, "--while", policy, "--no-activate", "--epochs", "100"]
    env = {**os.environ, "EDGE_AGENT_STATE_DIR": str(server.state_dir)}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=env, stdin=quiet, stdout=quiet, stderr=quiet) as client:
        try:
            wait_for_step(server, 3)
            yield
        finally:
            client.terminate()


def wait_for_step(server: Server, least: int) -> None:
    """Raise BenchmarkError when the trainer does not reach this step in time."""
    ends_s = time.monotonic() + BEGIN_S
    while step(server) < least:
        if time.monotonic() > ends_s:
            raise BenchmarkError(f"no step {least} in {BEGIN_S:.0f} s: {lesson(server)}")
        time.sleep(0.5)


def pair(server: Server) -> tuple[Asked, Asked]:
    """One answer while the lesson is held, one while it runs."""
    post(server, "/adapt/pause")
    time.sleep(GAP_S)
    held = answered(server)
    reached = step(server)
    post(server, "/adapt/resume")
    wait_for_step(server, reached + 2)
    time.sleep(GAP_S)
    return held, answered(server)


def rate(server: Server, asked: list[Asked] | None = None) -> float:
    """Steps per second over WINDOW_S; with `asked`, beside a client that fills that list."""
    began_s, began = time.monotonic(), step(server)
    while (elapsed_s := time.monotonic() - began_s) < WINDOW_S:
        if asked is None:
            time.sleep(WINDOW_S - elapsed_s)
        else:
            asked.append(answered(server))
    return (step(server) - began) / (time.monotonic() - began_s)


def beside(server: Server, policy: str, args: argparse.Namespace) -> Beside:
    with learning(server, policy, args.layers):
        pairs = [pair(server) for _ in range(args.pairs)]
        time.sleep(GAP_S)
        alone, asked = rate(server), list[Asked]()
        return Beside(
            policy,
            [held for held, _ in pairs],
            [learned for _, learned in pairs],
            asked,
            alone,
            rate(server, asked),
        )


def exclusive(server: Server, layers: str) -> dict[str, Any]:
    """The refusal that a question gets, and the trainer's rate."""
    with learning(server, EXCLUSIVE, layers):
        result = ask(server)
        return {"status": result.status, "detail": result.detail[:200], "steps_s": rate(server)}


def row(found: Beside) -> dict[str, Any]:
    """Medians, and medians of the pairs' ratios."""
    pairs = list(zip(found.learning, found.held, strict=True))
    return {
        **asdict(found),
        "ttft_ratio": median(one.ttft_s / other.ttft_s for one, other in pairs),
        "decode_ratio": median(one.decode_tok_s / other.decode_tok_s for one, other in pairs),
    }


def show(found: dict[str, Any]) -> None:
    def middle(name: str, key: str) -> float:
        return float(median(one[key] for one in found[name]))

    print(
        f"{found['policy']:10} ttft {middle('held', 'ttft_s'):.2f} -> "
        f"{middle('learning', 'ttft_s'):.2f} s ({found['ttft_ratio']:.2f} x), decode "
        f"{middle('held', 'decode_tok_s'):.1f} -> {middle('learning', 'decode_tok_s'):.1f} tok/s "
        f"({found['decode_ratio']:.2f} x); trainer {found['steps_s']:.2f} steps/s, "
        f"{found['steps_s_asked']:.2f} beside a client that never stops, who gets "
        f"{middle('asked', 'decode_tok_s'):.1f} tok/s",
        flush=True,
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    document: dict[str, Any] = {"benchmark": "adapt_beside", "model": MODEL, "layers": args.layers}
    for policy in args.only:
        with tempfile.TemporaryDirectory(prefix="edge-agent-beside-") as scratch:
            register(f"embedded:{MODEL}", Path(scratch))
            with edge_agent(Path(scratch), MODEL) as server:
                ask(server)
                if policy == EXCLUSIVE:
                    document[policy] = exclusive(server, args.layers)
                    print(f"{policy:10} {document[policy]}", flush=True)
                else:
                    document[policy] = row(beside(server, policy, args))
                    show(document[policy])
    return document


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--layers", default="top:4")
    parser.add_argument("--only", nargs="+", choices=POLICIES, default=POLICIES)
    args = parser.parse_args(argv)
    try:
        document = measure(args)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(document))
    return 0 if document.get(EXCLUSIVE, {"status": REFUSED})["status"] == REFUSED else 1


if __name__ == "__main__":
    sys.exit(main())
