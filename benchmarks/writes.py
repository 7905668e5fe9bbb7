"""How much does the daemon write to its disk, at idle and while it answers? It wears SD cards.

Measured: the bytes that the front process caused to be written (write_bytes in /proc/PID/io, which
counts whole pages as they become dirty) and the growth of the state directory, over whole minutes
because samples are written once a minute; both as bytes per hour. The worker writes nothing and is
counted too, as a check. The bytes that the whole disk wrote meanwhile (/proc/diskstats) include the
file system's journal and every other program, and are an upper bound on a quiet machine. A
directory in memory (tmpfs) has no writes and is refused.

    .venv/bin/python benchmarks/writes.py --minutes 30 --dir ~/.cache    # last line: JSON
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from servers import BenchmarkError, Server, edge_agent, register
from stream_client import Address, stream

SECTOR_BYTES = 512
"""The unit of /proc/diskstats, on any disk."""
ANSWERS_AN_HOUR = 360
FLUSH_S = 60
PROC = Path("/proc")


@dataclass(frozen=True)
class Counters:
    """Cumulative bytes at one moment. None: this machine does not count them."""

    at_s: float
    front_bytes: int
    worker_bytes: int
    disk_bytes: int | None
    state_bytes: int


@dataclass(frozen=True)
class Phase:
    """One row of the table. Rates are in bytes per hour."""

    name: str
    minutes: float
    answers: int
    front_bytes_h: float
    worker_bytes_h: float
    disk_bytes_h: float | None
    state_growth_h: float


def written_bytes(pid: int) -> int:
    """write_bytes of a process (proc_pid_io(5)), which its own user may read."""
    for line in (PROC / str(pid) / "io").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "write_bytes":
            return int(value)
    raise BenchmarkError(f"/proc/{pid}/io has no write_bytes")


def disk_bytes(directory: Path) -> int | None:
    """Bytes that the device below `directory` has written since boot; None when it is not a
    disk."""
    device = os.stat(directory).st_dev
    for line in (PROC / "diskstats").read_text().splitlines():
        words = line.split()
        if (int(words[0]), int(words[1])) == (os.major(device), os.minor(device)):
            return int(words[9]) * SECTOR_BYTES
    return None


def counters(server: Server, state: Path) -> Counters:
    run = server.run_json()
    files = [file.stat().st_size for file in state.glob("edge-agent.db*")]
    return Counters(
        at_s=time.monotonic(),
        front_bytes=written_bytes(run["pid"]),
        worker_bytes=written_bytes(run["worker_pid"]),
        disk_bytes=disk_bytes(state),
        state_bytes=sum(files),
    )


def per_hour(name: str, answers: int, before: Counters, after: Counters) -> Phase:
    hours = (after.at_s - before.at_s) / 3600
    disk = None
    if before.disk_bytes is not None and after.disk_bytes is not None:
        disk = (after.disk_bytes - before.disk_bytes) / hours
    return Phase(
        name=name,
        minutes=hours * 60,
        answers=answers,
        front_bytes_h=(after.front_bytes - before.front_bytes) / hours,
        worker_bytes_h=(after.worker_bytes - before.worker_bytes) / hours,
        disk_bytes_h=disk,
        state_growth_h=(after.state_bytes - before.state_bytes) / hours,
    )


def ask(address: Address, model: str) -> None:
    body = {"model": model, "prompt": "The river", "max_tokens": 32, "stream": True}
    stream(address, "/v1/completions", body)


def answer_until(address: Address, model: str, stopped: threading.Event) -> int:
    """Answers at a steady rate, as on a board in use. Returns how many."""
    answers = 0
    while not stopped.wait(3600 / ANSWERS_AN_HOUR):
        ask(address, model)
        answers += 1
    return answers


def idle_until(stopped: threading.Event) -> int:
    stopped.wait()
    return 0


def phase(
    name: str, minutes: int, server: Server, state: Path, work: Callable[[threading.Event], int]
) -> Phase:
    """Measure while `work` runs, for so many minutes."""
    stopped = threading.Event()
    timer = threading.Timer(minutes * FLUSH_S, stopped.set)
    before = counters(server, state)
    timer.start()
    try:
        answers = work(stopped)
    finally:
        timer.cancel()
    return per_hour(name, answers, before, counters(server, state))


def check_disk(directory: Path) -> None:
    """Raise BenchmarkError for a file system in memory."""
    mounts = [line.split() for line in (PROC / "mounts").read_text().splitlines()]
    inside = [m for m in mounts if directory.resolve().is_relative_to(m[1])]
    kind = max(inside, key=lambda mount: len(mount[1]))[2]
    if kind in ("tmpfs", "ramfs"):
        raise BenchmarkError(f"{directory} is on {kind}: nothing is written; give --dir on a disk")


def measure(source: str, minutes: int, directory: Path) -> list[Phase]:
    check_disk(directory)
    with tempfile.TemporaryDirectory(prefix="edge-agent-writes-", dir=directory) as scratch:
        state = Path(scratch)
        model, _ = register(source, state)
        with edge_agent(state, model) as server:
            ask(server.address, model)
            time.sleep(FLUSH_S)  # rows of the start do not belong to the steady state
            return [
                phase("idle", minutes, server, state, idle_until),
                phase(
                    "answering",
                    minutes,
                    server,
                    state,
                    lambda stopped: answer_until(server.address, model, stopped),
                ),
            ]


def table(phases: list[Phase]) -> str:
    head = (
        f"{'':10} {'answers':>8} {'front kB/h':>11} {'worker kB/h':>12} "
        f"{'whole disk kB/h':>16} {'database grows kB/h':>20}"
    )
    return "\n".join([head, *map(_line, phases)])


def _line(one: Phase) -> str:
    disk = "unknown" if one.disk_bytes_h is None else f"{one.disk_bytes_h / 1e3:.0f}"
    return (
        f"{one.name:10} {one.answers:8d} {one.front_bytes_h / 1e3:11.0f} "
        f"{one.worker_bytes_h / 1e3:12.0f} {disk:>16} {one.state_growth_h / 1e3:20.0f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=30, help="length of each of two phases")
    parser.add_argument("--model", default="embedded:smollm2-135m", help="what `pull` takes")
    parser.add_argument("--dir", type=Path, default=Path.home(), help="a directory on the disk")
    args = parser.parse_args()
    try:
        phases = measure(args.model, args.minutes, args.dir)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(phases))
    report: dict[str, Any] = {"benchmark": "writes", "phases": [asdict(one) for one in phases]}
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
