"""Is our importance matrix llama-imatrix's? The same file, text and chunks, both on this machine.

Compared per weight: the sum of |ours - theirs| over the columns, divided by the sum of theirs. The
largest over all weights must stay below 1e-3 (float32 sums in another order), and the counts must
be equal.

    .venv/bin/python benchmarks/convert_imatrix.py model.gguf --data text.txt --chunks 4
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from build_llama_server import peer_program

from converters.imatrix import N_CTX, compute
from converters.imatrix_file import read_imatrix
from converters.quantizer import How

LIMIT = 1e-3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=4)
    args = parser.parse_args()
    threads = str(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "theirs.gguf"
        command = [peer_program("llama-imatrix"), "-m", args.model, "-f", args.data, "-o", path]
        flags = ["-c", N_CTX, "-b", N_CTX, "-ub", N_CTX, "--chunks", args.chunks, "-t", threads]
        start = time.monotonic()
        done = subprocess.run(
            [str(word) for word in (*command, *flags, "--no-ppl")], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"llama-imatrix failed:\n{done.stderr[-2000:]}")
        theirs_s = time.monotonic() - start
        theirs = read_imatrix(path)
    start = time.monotonic()
    ours = compute(args.model, args.data, How(), args.chunks)
    ours_s = time.monotonic() - start
    differences = {
        weight: float(np.abs(ours.sums[weight] - sums).sum() / sums.sum())
        for weight, sums in theirs.sums.items()
    }
    worst = max(differences, key=lambda weight: differences[weight])
    same = set(ours.sums) == set(theirs.sums) and dict(ours.counts) == dict(theirs.counts)
    met = same and differences[worst] < LIMIT
    print(f"{len(differences)} weights, largest difference {differences[worst]:.1e} ({worst})")
    print(f"llama-imatrix {theirs_s:.1f} s, ours {ours_s:.1f} s for {args.chunks} chunks")
    print(
        json.dumps(
            {
                **{"weights": len(differences), "same_names_and_counts": same},
                **{"largest": differences[worst], "worst": worst, "limit": LIMIT, "met": met},
                **{"median": float(np.median(list(differences.values())))},
                **{"theirs_s": theirs_s, "ours_s": ours_s},
            }
        )
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
