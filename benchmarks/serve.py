"""Is the daemon as fast as llama.cpp's own server? The price of three processes and Python.

The same streaming client, prompts, sampler and GGUF file against `edge-agent serve` and
`llama-server` (build_llama_server.py: same source, same CMake arguments), in alternating pairs; a
server has ended before the next begins. Each pair gives one ratio per metric, so that a machine
that slows down for a minute slows both sides; the result is the median of the ratios.

    decode      tok/s of one stream, 128 tokens after a short prompt, between first and last piece
    prefill     tok/s of a prompt of about 512 tokens: tokens over the client's time to first token
    prefill*    the same by the server's own timings
    four        tok/s of four streams together, 128 tokens each
    ttft_ms     milliseconds from opening a connection to the first piece, short prompt

Prompt caches are off on both sides. llama-bench (no HTTP, no sampling, no tokenizer) is printed as
the upper limit. Not covered: GPUs, prefix reuse (prefix.py), memory (memory.py).

    .venv/bin/python benchmarks/serve.py --pairs 5        # last line: one JSON document
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

from build_llama_server import peer_program
from servers import BenchmarkError, Server, edge_agent, llama_server, register
from stream_client import Address, StreamResult, stream

from edge_agent.machine import default_threads

N_CTX = 2048
SLOTS = 4
N_DECODE = 128
SHORT_PROMPT = "The three largest rivers of India are"
LONG_PROMPT = "\n".join(
    f"Note {i}: the pump in hall {i * 7 % 23} ran {i * 13 % 60} minutes and used {i * 3} litres."
    for i in range(22)
)
SAMPLER = {
    "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.0, "seed": 42,
    "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "ignore_eos": True, "cache_prompt": False,
}  # fmt: skip
# A field of the peer only, which shortens its sampler chain to edge-agent's.
PEER_CHAIN = {"samplers": ["top_k", "top_p", "temperature"]}

TARGETS = {"decode": 0.97, "prefill": 0.95, "prefill*": 0.95, "four": 1.0}
ADDED_TTFT_MS = 5.0
QUIET_LOAD = 0.7

Metrics = dict[str, float]
Start = Callable[[], AbstractContextManager[Server]]


def complete(address: Address, model: str, prompt: str, max_tokens: int) -> StreamResult:
    """One streamed completion. Raises BenchmarkError when it is not complete."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "stream": True}
    body["stream_options"] = {"include_usage": True}
    peer = PEER_CHAIN if address.token is None else {}
    result = stream(address, "/v1/completions", {**body, **SAMPLER, **peer})
    if result.ending == "hung":
        raise BenchmarkError("a completion had no end in 120 s: does something else compute here?")
    if result.ending != "complete" or not result.piece_s:
        raise BenchmarkError(f"a completion ended {result.ending}: {result.detail}")
    return result


def measure_decode(address: Address, model: str) -> Metrics:
    runs = [complete(address, model, SHORT_PROMPT, N_DECODE) for _ in range(3)]
    short = [run.completion_tokens for run in runs if run.completion_tokens != N_DECODE]
    if short:
        raise BenchmarkError(f"{short} of {N_DECODE} tokens: the server ended early (ignore_eos?)")
    return {"decode": median(run.decode_tok_s for run in runs)}


def measure_prefill(address: Address, model: str) -> Metrics:
    runs = [complete(address, model, LONG_PROMPT, 1) for _ in range(3)]
    return {
        "prefill": median(run.prompt_tokens / run.ttft_s for run in runs),
        "prefill*": median(run.timings.get("prompt_per_second") or 0.0 for run in runs),
        "prompt_tokens": runs[0].prompt_tokens,
    }


def measure_ttft(address: Address, model: str) -> Metrics:
    runs = [complete(address, model, SHORT_PROMPT, 1) for _ in range(15)]
    return {"ttft_ms": 1000 * median(run.ttft_s for run in runs)}


def measure_four(address: Address, model: str) -> Metrics:
    """Four clients at once: all their tokens over the time from first request to last piece."""
    results: list[StreamResult | BenchmarkError] = []

    def one(number: int) -> None:
        try:
            results.append(complete(address, model, f"{number}. {SHORT_PROMPT}", N_DECODE))
        except BenchmarkError as error:
            results.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    streams = [result for result in results if isinstance(result, StreamResult)]
    if len(streams) < len(threads):
        raise BenchmarkError(f"of four clients some failed: {results}")
    span_s = max(r.piece_s[-1] for r in streams) - min(r.sent_s for r in streams)
    return {"four": sum(result.completion_tokens for result in streams) / span_s}


def measure(start: Start, model: str) -> Metrics:
    """Every metric of one freshly started server, after one warm-up request."""
    with start() as server:
        address = server.address
        complete(address, model, LONG_PROMPT, 8)
        metrics = measure_decode(address, model) | measure_prefill(address, model)
        return metrics | measure_ttft(address, model) | measure_four(address, model)


def alternate(ours: Start, peer: Start, model: str, pairs: int) -> list[tuple[Metrics, Metrics]]:
    """(ours, peer) of each pair; the order alternates."""
    rows = []
    for index in range(pairs):
        order = (ours, peer) if index % 2 == 0 else (peer, ours)
        first, second = (measure(start, model) for start in order)
        row = (first, second) if index % 2 == 0 else (second, first)
        if row[0]["prompt_tokens"] != row[1]["prompt_tokens"]:
            raise BenchmarkError(f"the two count the same prompt differently: {row}")
        rows.append(row)
        print(f"pair {index + 1}/{pairs} done", file=sys.stderr, flush=True)
    return rows


def llama_bench(gguf: Path, threads: int) -> Metrics:
    """The upper limit: tok/s of pp512 and tg128 without HTTP, tokenizer and sampler."""
    command = [str(peer_program("llama-bench")), "-m", str(gguf), "-p", "512", "-n", "128"]
    command += ["-t", str(threads), "-b", "512", "-ub", "512", "-fa", "auto", "-r", "3"]
    done = subprocess.run([*command, "-o", "json"], capture_output=True, check=True)
    rows = json.loads(done.stdout)
    return {"pp512": rows[0]["avg_ts"], "tg128": rows[1]["avg_ts"]}


def summarize(rows: list[tuple[Metrics, Metrics]]) -> dict[str, dict[str, Any]]:
    """Per metric: medians and ranges of both sides, median and range of the pairs' ratios."""
    summary: dict[str, dict[str, Any]] = {}
    for name in (*TARGETS, "ttft_ms"):
        ours, peer = ([pair[side][name] for pair in rows] for side in (0, 1))
        ratios = [a / b for a, b in zip(ours, peer, strict=True)]
        summary[name] = {
            "ours": median(ours), "ours_range": [min(ours), max(ours)],
            "peer": median(peer), "peer_range": [min(peer), max(peer)],
            "ratio": median(ratios), "ratio_range": [min(ratios), max(ratios)],
        }  # fmt: skip
    added = [pair[0]["ttft_ms"] - pair[1]["ttft_ms"] for pair in rows]
    summary["ttft_ms"]["added_ms"] = median(added)
    summary["ttft_ms"]["added_range_ms"] = [min(added), max(added)]
    return summary


def met(name: str, row: dict[str, Any]) -> bool:
    return row["added_ms"] <= ADDED_TTFT_MS if name == "ttft_ms" else row["ratio"] >= TARGETS[name]


def spread(middle: float, ends: list[float], digits: int) -> str:
    return f"{middle:.{digits}f} ({ends[0]:.{digits}f}-{ends[1]:.{digits}f})"


def table(summary: dict[str, dict[str, Any]]) -> str:
    """Medians with ranges, one metric a line."""
    lines = [f"{'metric':9} {'edge-agent':>22} {'llama-server':>22} {'ratio':>21}  target"]
    for name, row in summary.items():
        ours = spread(row["ours"], row["ours_range"], 1)
        peer = spread(row["peer"], row["peer_range"], 1)
        ratio = spread(row["ratio"], row["ratio_range"], 3)
        target = f">= {TARGETS[name]}" if name in TARGETS else f"added <= {ADDED_TTFT_MS} ms"
        if "added_ms" in row:
            target += f", is {spread(row['added_ms'], row['added_range_ms'], 1)}"
        verdict = "met" if met(name, row) else "MISSED"
        lines.append(f"{name:9} {ours:>22} {peer:>22} {ratio:>21}  {target}: {verdict}")
    return "\n".join(lines)


def run(args: argparse.Namespace, state_dir: Path) -> dict[str, Any]:
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        print(f"warning: load average {load:.1f}: figures of a busy machine", file=sys.stderr)
    model, gguf = register(args.model, state_dir)
    settings = {"threads": args.threads, "slots": SLOTS, "ctx": N_CTX, "flash_attn": "auto"}
    rows = alternate(
        lambda: edge_agent(state_dir, model, settings),
        lambda: llama_server(state_dir, gguf, threads=args.threads, slots=SLOTS, n_ctx=N_CTX),
        model,
        args.pairs,
    )
    roof = llama_bench(gguf, args.threads)
    summary = summarize(rows)
    report = {"benchmark": "serve", "model": model, "threads": args.threads, "pairs": args.pairs}
    report |= {"prompt_tokens": rows[0][0]["prompt_tokens"], "summary": summary, "roof": roof}
    report |= {"load_average_before": load}
    return report | {"rows": rows, "met": all(met(name, row) for name, row in summary.items())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded:gemma3-270m", help="what `pull` takes")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--json", action="store_true", help="print only the JSON document")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="edge-agent-serve-") as scratch:
            report = run(args, Path(scratch))
    except (BenchmarkError, FileNotFoundError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not args.json:
        print(f"{report['model']}, {args.threads} threads, {SLOTS} slots of {N_CTX} tokens")
        print(table(report["summary"]))
        print("llama-bench  pp512 {pp512:.1f}  tg128 {tg128:.1f} tok/s".format(**report["roof"]))
    print(json.dumps(report))
    return 0 if report["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
