"""Does a host training run that is killed many times give the same curve as one that is not?

    python benchmarks/host_kills.py --steps 20 --saves 5

A tiny random model learns with LoRA and dropout, so that weights, optimizer, order of the rows and
random numbers must all be restored. One run is not disturbed; the other is killed with SIGKILL at
random steps and inside saves, and resumed each time. Both logs must then contain the same numbers,
bit for bit, and both adapters the same bytes. The run is a child that was forked after torch was
imported, so a kill costs a second. Flows out: one JSON document; exit code 1 when the curves
differ. Needs the host environment.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

POLL_S = 0.0005
LIMIT_S = 120.0
COMPARED = ("step", "loss", "grad_norm", "learning_rate", "tokens", "validation_loss")
RUN_STEPS = 60


def write_data(path: Path) -> None:
    rows = [{"instruction": f"What is {n}?", "output": f"{n} is number {n}."} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def arguments(scratch: Path, run: Path) -> list[str]:
    return [
        *("sft", "--model", str(scratch / "model"), "--data", str(scratch / "data.jsonl")),
        *("-o", str(run), "--cache", str(scratch / "cache"), "--resume", "--threads", "1"),
        *("--max-steps", str(RUN_STEPS), "--batch-size", "4", "--r", "4", "--lr", "3e-3"),
        *("--lora-dropout", "0.1", "--save-every", "3", "--patience", "0"),
    ]


def start(argv: list[str], log: Path) -> int:
    """The process id of a child that runs edge-train.

    torch must not have computed in this process.
    """
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        from edge_agent.cli.terminal import Terminal
        from train_host.cli import main_with

        with log.open("a") as stream:
            terminal = Terminal(io.StringIO(), stream, stream, os.environ)
            code = main_with(argv, terminal)
    finally:
        os._exit(code)


def finish(argv: list[str], log: Path) -> None:
    _, status = os.waitpid(start(argv, log), 0)
    if status:
        raise SystemExit(f"edge-train ended with {status}:\n{log.read_text()}")


def kill_when(argv: list[str], log: Path, is_due: Callable[[], bool]) -> bool:
    """Run, and SIGKILL as soon as it is due. False: the run ended before."""
    child = start(argv, log)
    give_up_s = time.monotonic() + LIMIT_S
    while time.monotonic() < give_up_s:
        if is_due():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(POLL_S)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise SystemExit(f"nothing happened for {LIMIT_S:.0f} s:\n{log.read_text()}")


def steps_logged(run: Path) -> int:
    """The highest step in the log."""
    try:
        lines = (run / "log.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines if line), default=0)


def open_saves(run: Path, since_s: float) -> list[Path]:
    """Checkpoint directories that are being written now, without those that an earlier kill
    left."""
    return [path for path in (run / "checkpoints").glob("checkpoint-*") if _is_open(path, since_s)]


def _is_open(path: Path, since_s: float) -> bool:
    try:
        return path.stat().st_mtime >= since_s and not (path / "complete.json").exists()
    except FileNotFoundError:
        return False


def curve(run: Path) -> list[tuple[Any, ...]]:
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [tuple(row.get(name) for name in COMPARED) for row in rows]


def sha256(run: Path) -> str:
    data = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    return hashlib.sha256(data).hexdigest()


def tortured(argv: list[str], run: Path, kills: list[str], seed: int) -> dict[str, int]:
    """Kill once for each of `kills` ("step" or "save"), spread over the run; counts what was
    hit."""
    rng, log = random.Random(seed), run.with_suffix(".out")
    rng.shuffle(kills)
    hit = {"at a step": 0, "inside a save": 0}
    for place, kind in enumerate(kills):
        target = round(RUN_STEPS * (place + rng.random()) / (len(kills) + 1))

        began_s = time.time()

        def is_due(target: int = target, kind: str = kind, began_s: float = began_s) -> bool:
            if steps_logged(run) < target:
                return False
            return kind == "step" or bool(open_saves(run, began_s))

        if kind == "step":
            time.sleep(rng.random() * POLL_S)
        if kill_when(argv, log, is_due):
            hit["inside a save" if open_saves(run, began_s) else "at a step"] += 1
    finish(argv, log)
    return hit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=20, help="kills at random steps")
    parser.add_argument("--saves", type=int, default=5, help="kills inside a save")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # CUDA cannot be used after a fork
    from tiny_run import write_tiny

    import train_host.trainer  # noqa: F401  before the fork

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_tiny(scratch / "model", "llama")
        write_data(scratch / "data.jsonl")
        alone, killed = scratch / "alone", scratch / "killed"
        finish(arguments(scratch, alone), scratch / "alone.out")
        kills = ["step"] * given.steps + ["save"] * given.saves
        hit = tortured(arguments(scratch, killed), killed, kills, given.seed)
        is_same = curve(alone) == curve(killed) and sha256(alone) == sha256(killed)
        document = {"steps": RUN_STEPS, "kills": hit, "same_curve_and_adapter": is_same}
    print(json.dumps(document, indent=2))
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
