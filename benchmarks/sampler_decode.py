"""Does watching the board slow the answers? Decode with the sampler on against decode without.

Two daemons in alternating pairs; one has ended before the other begins. On: the default settings,
10 and 20 Hz, on a tree of sensor files (by default a copy of the Orin Nano's fixture, which has
more files than this machine). Off: no power source, a tick every 1,000 s, no guard, no history.
Each pair gives a ratio of streamed tok/s; the result is the median of the ratios, the target 0.99.
The sensor files are plain files, so the time of a real I2C bus (a millisecond a read) is not
included.

    .venv/bin/python benchmarks/sampler_decode.py --pairs 7     # last line: one JSON document
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from serve import SHORT_PROMPT, complete
from servers import BenchmarkError, edge_agent, register
from stream_client import Address

TARGET = 0.99
N_DECODE = 256
REPEATS = 3
FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "sysfs"
OFF = {"power_source": "none", "sample_idle_hz": 0.001, "sample_busy_hz": 0.001}
OFF |= {"guard": "false", "keep_samples_days": 0}


def decode_tok_s(address: Address, model: str) -> float:
    """Median speed of a few streams after a warm-up, between first and last piece."""
    runs = [complete(address, model, SHORT_PROMPT, N_DECODE) for _ in range(REPEATS + 1)]
    return median(one.decode_tok_s for one in runs[1:])


def pair(state: Path, model: str, root: Path, *, on_first: bool) -> dict[str, float]:
    """One pair, in the given order."""
    found: dict[str, float] = {}
    for is_on in (on_first, not on_first):
        with edge_agent(state, model, {"sensors_root": root} if is_on else OFF) as server:
            found["on" if is_on else "off"] = decode_tok_s(server.address, model)
    return found


def run(pairs: int, board: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "board"
        shutil.copytree(FIXTURES / board, root)
        state = Path(scratch) / "state"
        state.mkdir()
        model, _ = register("embedded:gemma3-270m", state)
        rows = []
        for number in range(pairs):
            row = pair(state, model, root, on_first=number % 2 == 0)
            rows.append(row)
            print(f"pair {number + 1}: on {row['on']:.2f}, off {row['off']:.2f} tok/s")
    ratios = sorted(row["on"] / row["off"] for row in rows)
    return {
        "board": board, "pairs": rows, "ratio": median(ratios),
        "ratio_min": ratios[0], "ratio_max": ratios[-1], "target": TARGET,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--board", default="jetson-orin-nano_jetpack6")
    arguments = parser.parse_args()
    try:
        result = run(arguments.pairs, arguments.board)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    spread = f"{result['ratio_min']:.3f}-{result['ratio_max']:.3f}"
    print(f"decode on/off: {result['ratio']:.3f} ({spread})")
    print(json.dumps(result))
    return 0 if result["ratio"] >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
