"""Does a lesson that is killed at any moment end with the same bytes as one that is not killed?

A run of a random tiny model is carried out once without a kill. Then it is repeated with SIGKILL at
random moments of any phase, or while the temporary file of a checkpoint exists (inside a save), and
resumed until it finishes. Target: every adapter.gguf equals the first one, bit for bit. The blocks
are given (top:1), because the choice of `auto` depends on how far its trials get in time.

    .venv/bin/python benchmarks/adapt_kills.py --kills 50 --inside-saves 10
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from tiny_gguf import write_tiny_model
from trainer_runner import TrainerProcess, start_message, write_lesson

from edge_agent.adapt.messages import Start
from edge_agent.atomic_file import TEMP_SUFFIX

RUN = {"epochs": 20, "patience": 20, "checkpoint_steps": 1, "r": 16, "layers": "top:1"}
LOOK_S = 0.0002
"""Seconds between two looks into the checkpoint directory for a save in progress."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--inside-saves", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory(dir=Path.home()) as name:
        root = Path(name)
        model = write_tiny_model(root / "tiny.gguf")
        data = write_lesson(root / "lesson.jsonl", 40)
        began_s = time.monotonic()
        wanted = finish(start_message(model, root / "undisturbed" / "lesson", data, **RUN))
        whole_s = time.monotonic() - began_s
        found = {"kills": 0, "inside_saves": 0, "runs": 0, "equal": 0}
        while found["kills"] < args.kills or found["inside_saves"] < args.inside_saves:
            start = start_message(model, root / f"run-{found['runs']}" / "lesson", data, **RUN)
            killed = disturb(start, args.kills - found["kills"], whole_s, moments, found)
            found["runs"] += 1
            found["equal"] += killed == wanted
    met = found["equal"] == found["runs"]
    print(
        f"{found['kills']} kills in {found['runs']} runs of {whole_s:.1f} s,"
        f" {found['inside_saves']} inside a save: {found['equal']} adapters are the undisturbed one"
    )
    print(json.dumps({**found, "whole_s": whole_s, "met": met}))
    return 0 if met else 1


def disturb(start: Start, left: int, whole_s: float, moments: random.Random, found: dict) -> str:
    """Kill the run up to five times, half of them inside a save, then let it finish; its
    SHA-256."""
    for number in range(min(5, max(1, left))):
        if Path(start.run_dir, "result.json").exists():
            break
        resumed = start if number == 0 else again(start)
        process = TrainerProcess(resumed)
        inside = moments.random() < 0.5
        if inside:
            wait_for_save(Path(start.run_dir) / "checkpoints", process, whole_s, moments)
        else:
            time.sleep(moments.uniform(0, whole_s))
        found["inside_saves"] += inside and is_saving(Path(start.run_dir) / "checkpoints")
        if process.process.poll() is None:
            process.kill()
            found["kills"] += 1
        process.socket.close()
        process.process.wait()
    return finish(again(start))


def again(start: Start) -> Start:
    """The same run, resumed if it has begun (a kill before the manifest leaves nothing to
    resume)."""
    has_begun = Path(start.run_dir, "manifest.json").exists()
    return type(start)(**{**{f: getattr(start, f) for f in start.__struct_fields__},
                          "resume": has_begun})  # fmt: skip


def wait_for_save(
    directory: Path, process: TrainerProcess, limit_s: float, moments: random.Random
) -> None:
    """Wait until the temporary file of a save exists, not always of the first save."""
    skip, deadline = moments.randrange(8), time.monotonic() + limit_s
    was_saving = False
    while time.monotonic() < deadline and process.process.poll() is None:
        now = is_saving(directory)
        if now and not was_saving:
            skip -= 1
            if skip < 0:
                return
        was_saving = now
        time.sleep(LOOK_S)


def is_saving(directory: Path) -> bool:
    return any(directory.glob(f".*{TEMP_SUFFIX}"))


def finish(start: Start) -> str:
    """SHA-256 of the adapter. Its header names the run, so all runs have the same name."""
    with TrainerProcess(start) as process:
        adapter = Path(process.finish().adapter_path)
    return hashlib.sha256(adapter.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
