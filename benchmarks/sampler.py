"""How much processor time does watching the board cost, and how punctual is it?

Processor seconds of the sampler's two threads per second, at the idle and the busy rate, on a copy
of each board's sensor tree and on this machine; how far the intervals between power samples are
from the period; missed ticks. Exit status 1 when 10 Hz costs more than 1 % of a core. The trees
contain plain files: reading a real I2C bus takes a millisecond of sleep in the kernel, which costs
punctuality and no processor time. Not covered: an event loop in the same process (sampler_decode.py
runs a whole daemon).

    .venv/bin/python benchmarks/sampler.py --seconds 30      # last line: one JSON document
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import quantiles
from typing import Any

from edge_agent.monitor.board_sampler import BoardSampler

TARGET = 0.01
HZ = {"idle": 10.0, "busy": 20.0}
SETTLE_S = 1.2
"""Time for the start, in which sensors are looked for and the first snapshot is taken."""
FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "sysfs"


def cpu_s(sampler_threads: list[threading.Thread]) -> float:
    """Processor seconds that running threads have used so far."""
    clocks = [time.pthread_getcpuclockid(one.ident) for one in sampler_threads if one.ident]
    return sum(time.clock_gettime(clock) for clock in clocks)


def jitter_s(times_s: list[float], period_s: float) -> dict[str, float] | None:
    """Distance of each interval from the nearest whole number of periods; None without samples."""
    intervals = [after - before for before, after in zip(times_s, times_s[1:], strict=False)]
    found = sorted(abs(one - max(1, round(one / period_s)) * period_s) for one in intervals)
    if not found:
        return None
    cuts = quantiles(found, n=100, method="inclusive") if len(found) > 1 else found * 99
    return {"p50": cuts[49], "p99": cuts[98], "max": found[-1]}


def measure(root: Path, *, is_busy: bool, seconds: float) -> dict[str, Any]:
    """One run of a sampler below `root`."""
    before = set(threading.enumerate())
    sampler = BoardSampler(root, pids=lambda: {"front": os.getpid()})
    sampler.start()
    sampler.set_busy(is_busy)
    try:
        time.sleep(SETTLE_S)
        threads = [one for one in threading.enumerate() if one not in before]
        began_cpu_s, began_s = cpu_s(threads), time.monotonic()
        time.sleep(seconds)
        used_s, ended_s = cpu_s(threads) - began_cpu_s, time.monotonic()
        snapshot = sampler.snapshot()
        trace = sampler.trace(began_s, ended_s)
    finally:
        sampler.close()
    if snapshot is None:
        raise RuntimeError(f"no snapshot of {root} within {seconds} s: its reads hang")
    period_s = 1.0 / HZ["busy" if is_busy else "idle"]
    times_s = [at for at in trace.times_s if began_s <= at <= ended_s]
    return {
        "source": trace.source,
        "cpu_share": used_s / (ended_s - began_s),
        "jitter_s": jitter_s(times_s, period_s),
        "samples": len(times_s),
        "missed_ticks": snapshot.missed_ticks,
    }


def roots(scratch: Path) -> Iterator[tuple[str, Path]]:
    """Every fixture tree, copied so that nothing else reads it, and this machine's root."""
    for path in sorted(FIXTURES.iterdir()):
        if path.is_dir():
            yield path.name, Path(shutil.copytree(path, scratch / path.name))
    yield "this machine", Path("/")


def row_text(row: dict[str, Any]) -> str:
    jitter = row["jitter_s"]
    times = [f"{jitter[key] * 1e3:8.3f}" for key in jitter] if jitter else ["       -"] * 3
    return (
        f"{row['root']:28} {row['hz']:4.0f} {row['source']:8} {row['cpu_share']:8.3%}"
        f" {' '.join(times)} {row['missed_ticks']:7}"
    )


def run(seconds: float) -> dict[str, Any]:
    print(f"{'root':28} {'Hz':>4} {'source':8} {'core':>8}  p50 ms   p99 ms   max ms   missed")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, root in roots(Path(scratch)):
            for rate, hz in HZ.items():
                found = measure(root, is_busy=rate == "busy", seconds=seconds)
                rows.append({"root": name, "hz": hz, **found})
                print(row_text(rows[-1]))
    at_idle = [row["cpu_share"] for row in rows if row["hz"] == HZ["idle"]]
    return {"rows": rows, "seconds": seconds, "worst_cpu_share": max(at_idle), "target": TARGET}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    result = run(parser.parse_args().seconds)
    print(json.dumps(result))
    return 0 if result["worst_cpu_share"] <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
