"""How fast does a checkpoint become a quantized file, and in how much memory, against llama.cpp?

A random checkpoint of Gemma 3 1B's shape (bf16) with Gemma's tokenizer. Ours: `edge-convert hf`.
Theirs, the faster of two ways: `convert_hf_to_gguf.py --outtype q8_0`, or bf16 and llama-quantize.
The programs alternate, each alone on the machine. With --wide also a sharded checkpoint of a 7B
model's widths and few layers, for its memory only. Memory is RssAnon of /proc/PID/status, sampled
every 20 ms, which excludes mapped files.

    .venv/bin/python benchmarks/convert_speed.py --python HOSTVENV/bin/python --llama-cpp SRC \\
        --gemma gemma-hf --runs 3 --wide
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from build_llama_server import peer_program
from convert_checkpoints import family, qwen_tokenizer, write_random, write_tokenizer

GEMMA_1B = {
    **{"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "head_dim": 256},
    **{"num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 262144},
    **{"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6},
    **{"rope_local_base_freq": 10000.0, "sliding_window": 512, "tie_word_embeddings": True},
}
QWEN_7B_WIDE = {
    **{"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 3},
    **{"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
    **{"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6},
    "tie_word_embeddings": False,
}
LIMIT_BYTES = 600_000_000


def measured(command: list[str], environment: dict[str, str] | None = None) -> tuple[float, int]:
    """Seconds and the peak of RssAnon in bytes. Ends the benchmark when the program fails."""
    start, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **(environment or {})},
        )
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.02)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{command[:3]} failed:\n{errors.read()[-2000:]}")
    return time.monotonic() - start, peak


def anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(match.group(1)) * 1024 if match else 0


class Ways:
    """The programs to be timed, each of which writes its file anew."""

    def __init__(self, args: argparse.Namespace, directory: Path, scratch: Path) -> None:
        self.args, self.directory, self.scratch = args, directory, scratch
        self.environment = {"PYTHONPATH": str(args.llama_cpp / "gguf-py")}

    def ours(self, kind: str) -> tuple[float, int]:
        program = [sys.executable, "-m", "converters.cli", "hf", str(self.directory)]
        path = self.scratch / "ours.gguf"
        path.unlink(missing_ok=True)
        return measured([*program, "-o", str(path), "--type", kind])

    def converter(self, kind: str) -> tuple[float, int]:
        """convert_hf_to_gguf.py alone, which can write q8_0 and the float types."""
        path = self.scratch / f"converter-{kind}.gguf"
        path.unlink(missing_ok=True)
        script = self.args.llama_cpp / "convert_hf_to_gguf.py"
        command = [self.args.python, script, self.directory, "--outfile", path, "--outtype", kind]
        return measured([str(word) for word in command], self.environment)

    def two_steps(self, kind: str) -> tuple[float, int]:
        """The converter at bf16, then llama-quantize."""
        first_s, first_peak = self.converter("bf16")
        path = self.scratch / "quantized.gguf"
        path.unlink(missing_ok=True)
        command = [peer_program("llama-quantize"), self.scratch / "converter-bf16.gguf", path]
        second_s, second_peak = measured([*map(str, command), kind, str(os.cpu_count())])
        return first_s + second_s, max(first_peak, second_peak)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, required=True, help="has torch and transformers")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="llama.cpp's source tree")
    parser.add_argument("--gemma", type=Path, required=True, help="for its tokenizer files")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--wide", action="store_true", help="the 7B widths too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.home()) as name:
        scratch = Path(name)
        directory = scratch / "gemma-3-1b-random"
        write_random(directory, family("gemma3"), GEMMA_1B)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(args.gemma / file, directory)
        ways = Ways(args, directory, scratch)
        theirs = {"q8_0": [ways.converter, ways.two_steps], "q4_k_m": [ways.two_steps]}
        rows = [row(kind, ways, theirs[kind], args.runs) for kind in theirs]
        if args.wide:
            rows.append(wide(args, scratch))
    print(json.dumps({"rows": rows}))
    return 0


def row(
    kind: str,
    ways: Ways,
    theirs: list[Callable[[str], tuple[float, int]]],
    runs: int,
) -> dict[str, Any]:
    """Alternating runs; the ratio is the faster of their medians over ours."""
    found: dict[str, list[tuple[float, int]]] = {}
    for _ in range(runs):
        for way in (ways.ours, *theirs):
            found.setdefault(way.__name__, []).append(way(kind))
    seconds = {name: median(s for s, _ in values) for name, values in found.items()}
    peaks = {name: max(peak for _, peak in values) for name, values in found.items()}
    best = min(value for name, value in seconds.items() if name != "ours")
    ratio = best / seconds["ours"]
    for name, value in seconds.items():
        all_s = ", ".join(f"{s:.1f}" for s, _ in found[name])
        print(f"{kind:7} {name:10} {value:6.1f} s ({all_s})  RssAnon {peaks[name] / 1e6:.0f} MB")
    print(f"{kind:7} {ratio:.2f} x faster than the faster of theirs", flush=True)
    met = peaks["ours"] <= LIMIT_BYTES
    return {"type": kind, "ratio": ratio, "median_s": seconds, "peak": peaks, "memory_met": met}


def wide(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Memory at a 7B model's widths, in four shards."""
    directory = scratch / "qwen-7b-wide"
    write_random(directory, family("qwen2"), QWEN_7B_WIDE, shards=4)
    write_tokenizer(directory, qwen_tokenizer(args.llama_cpp / "models/ggml-vocab-qwen2.gguf"))
    seconds, peak = Ways(args, directory, scratch).ours("q4_k_m")
    print(f"7B widths, 3 layers, 4 shards: {seconds:.1f} s, RssAnon {peak / 1e6:.0f} MB")
    return {"type": "q4_k_m at 7B widths", "s": seconds, "peak": peak, "met": peak <= LIMIT_BYTES}


if __name__ == "__main__":
    sys.exit(main())
