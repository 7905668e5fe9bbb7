"""Does `edge-agent bench` measure what llama-bench measures? Prefill and decode without sampling.

The same GGUF file, threads, batch and types in alternating pairs of `edge-agent bench --scenario
raw` and `llama-bench` of the same llama.cpp (build_llama_server.py builds it); each process ends
before the next begins. A pair gives one ratio of the mean rates that both programs print. The
result is the median of the ratios; the target is 0.97 to 1.03.

    .venv/bin/python benchmarks/bench.py --pairs 5        # last line: one JSON document
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from build_llama_server import peer_program
from servers import BenchmarkError, cli, register

from edge_agent.machine import default_threads

LOW, HIGH = 0.97, 1.03


def ours(model: str, state: Path, args: argparse.Namespace, threads: int) -> dict[str, float]:
    """Mean tok/s by test name, from `edge-agent bench --json`."""
    flags = ["-p", str(args.p), "-n", str(args.n), "-r", str(args.r), "-t", str(threads)]
    quiet = ["--scenario", "raw", "--idle-s", "0", "--no-store", "--json"]
    documents = json.loads(cli("bench", model, *flags, *quiet, state_dir=state))
    return {one["scenario"]: one["avg_ts"] for one in documents}


def theirs(gguf: Path, args: argparse.Namespace, threads: int) -> dict[str, float]:
    """Mean tok/s by test name, from llama-bench."""
    command = [str(peer_program("llama-bench")), "-m", str(gguf), "-o", "json"]
    command += ["-p", str(args.p), "-n", str(args.n), "-r", str(args.r), "-t", str(threads)]
    command += ["-b", "512", "-ub", "512", "-fa", "auto"]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise BenchmarkError(f"llama-bench failed: {done.stderr.decode()[-600:]}")
    rows = json.loads(done.stdout)
    return {"prefill" if row["n_prompt"] else "decode": row["avg_ts"] for row in rows}


def run(args: argparse.Namespace) -> dict[str, Any]:
    threads = default_threads()
    ratios: dict[str, list[float]] = {"prefill": [], "decode": []}
    with tempfile.TemporaryDirectory() as scratch:
        state = Path(scratch)
        model, gguf = register(args.model, state)
        for number in range(args.pairs):
            if number % 2 == 0:
                a, b = ours(model, state, args, threads), theirs(gguf, args, threads)
            else:
                b, a = theirs(gguf, args, threads), ours(model, state, args, threads)
            for name, values in ratios.items():
                values.append(a[name] / b[name])
            shown = ", ".join(f"{name} {a[name]:.2f} / {b[name]:.2f}" for name in ratios)
            print(f"pair {number + 1}/{args.pairs}: {shown} tok/s", flush=True)
    return {
        name: {"ratio": median(values), "min": min(values), "max": max(values)}
        for name, values in ratios.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--model", default="embedded:gemma3-270m")
    parser.add_argument("-p", type=int, default=512)
    parser.add_argument("-n", type=int, default=128)
    parser.add_argument("-r", type=int, default=3)
    args = parser.parse_args()
    try:
        result = run(args)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, row in result.items():
        print(f"{name}: {row['ratio']:.3f} ({row['min']:.3f}-{row['max']:.3f})")
    print(json.dumps(result))
    return 0 if LOW <= result["decode"]["ratio"] <= HIGH else 1


if __name__ == "__main__":
    sys.exit(main())
