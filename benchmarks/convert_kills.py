"""Does a killed conversion ever leave half a file? SIGKILL at random moments, many times.

After each kill the output must be absent, or equal the output of an undisturbed conversion.

    .venv/bin/python benchmarks/convert_kills.py smol-hf --kills 50 --seed 1
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory(dir=Path.home()) as name:
        path = Path(name) / "m.gguf"
        start = time.monotonic()
        subprocess.run(command(args.directory, path), check=True, capture_output=True)
        whole_s = time.monotonic() - start
        whole = digest(path)
        found = {"absent": 0, "whole": 0, "broken": 0, "finished": 0}
        for _ in range(args.kills):
            path.unlink(missing_ok=True)
            process = subprocess.Popen(
                command(args.directory, path),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(moments.uniform(0, 1.1 * whole_s))
            found["finished"] += process.poll() is not None
            process.send_signal(signal.SIGKILL)
            process.wait()
            state = "absent" if not path.exists() else "whole"
            found["broken" if state == "whole" and digest(path) != whole else state] += 1
        path.unlink(missing_ok=True)
        subprocess.run(command(args.directory, path), check=True, capture_output=True)
        left = [entry.name for entry in Path(name).iterdir() if entry != path]
    print(f"{args.kills} kills in {whole_s:.1f} s of work each: {found}; left over: {left}")
    print(json.dumps({"kills": args.kills, "seed": args.seed, **found, "left_over": left}))
    return 1 if found["broken"] or left else 0


def command(directory: Path, path: Path) -> list[str]:
    program = [sys.executable, "-m", "converters.cli", "hf", str(directory), "-o", str(path)]
    return [*program, "--type", "q8_0"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
