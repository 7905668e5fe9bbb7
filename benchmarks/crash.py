"""Does the daemon survive when its worker is killed, and how soon does it answer again?

Four clients stream without pause while the worker named in STATE/run.json gets SIGKILL at random
(seeded) moments: in prefill, in decode, and one time in five while the replacement still loads.
Counted: deaths of the front, clients without an end within 30 s, streams that broke without a typed
error. Measured: from the kill to the first token of a new request that then completes. Exit status
1 unless all three counts are zero.

--quarantine leaves the crash budget at its default and kills until /health says quarantined.

    .venv/bin/python benchmarks/crash.py --kills 100 --seed 1        # last line: JSON
    .venv/bin/python benchmarks/crash.py --quarantine
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import quantiles
from typing import Any

from servers import BenchmarkError, Server, edge_agent, engine_status, register
from stream_client import Address, StreamResult, ask_json, stream

CLIENTS = 4
HUNG_S = 30.0
RETRY_S = 0.02
PROBE_WORDS = 8
BUDGET_FOR_KILLS = 1000
QUARANTINE_KILLS = 20
BROKEN = ("malformed", "cut")
SETTINGS = {"slots": CLIENTS + 1, "ctx": 1024}  # the additional slot is for the probe


def ask(address: Address, model: str, words: int, max_tokens: int) -> StreamResult:
    prompt = " ".join(["river", "train", "seven"][i % 3] for i in range(words))
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "stream": True}
    return stream(address, "/v1/completions", {**body, "ignore_eos": True}, HUNG_S)


def client(
    address: Address, model: str, seed: int, stopped: threading.Event, endings: Counter[str]
) -> None:
    """Stream, count how the stream ended, repeat; pause shortly after an incomplete answer."""
    random_ = random.Random(seed)
    while not stopped.is_set():
        result = ask(address, model, random_.randint(4, 200), random_.randint(8, 64))
        endings[result.ending] += 1
        if result.ending in BROKEN:
            print(f"client saw {result.ending}: {result.detail}", file=sys.stderr)
        if result.ending != "complete":
            time.sleep(RETRY_S)


def worker_pid(server: Server, after: int | None) -> int:
    """The worker's pid in run.json, once it differs from `after`. Raises BenchmarkError."""
    deadline = time.monotonic() + HUNG_S
    while time.monotonic() < deadline:
        pid = server.run_json().get("worker_pid")
        if isinstance(pid, int) and pid != after and Path(f"/proc/{pid}").exists():
            return pid
        time.sleep(0.002)
    raise BenchmarkError(f"run.json named no new worker within {HUNG_S:g} s of killing {after}")


def kill_worker(server: Server, random_: random.Random, after: int | None) -> int:
    """SIGKILL, and one time in five again while the replacement loads.

    Returns the last pid killed.
    """
    pid = worker_pid(server, after)
    os.kill(pid, signal.SIGKILL)
    if random_.random() < 0.2:
        pid = worker_pid(server, pid)
        time.sleep(random_.uniform(0.0, 0.3))
        os.kill(pid, signal.SIGKILL)
    return pid


def recovery_s(address: Address, model: str) -> float:
    """Seconds until a new, short request gets the first token of an answer that completes."""
    killed_s = time.monotonic()
    while True:
        result = ask(address, model, PROBE_WORDS, 4)
        if result.ending == "complete" and result.piece_s:
            return result.piece_s[0] - killed_s
        if time.monotonic() - killed_s > HUNG_S:
            last = f"the last try ended {result.ending}: {result.detail}"
            raise BenchmarkError(f"no answer within {HUNG_S:g} s of a kill; {last}")
        time.sleep(RETRY_S)


def kill_often(server: Server, model: str, kills: int, random_: random.Random) -> list[float]:
    """`kills` rounds of: a random pause, a kill, the time to the next answer."""
    recoveries = []
    pid: int | None = None
    for number in range(kills):
        time.sleep(random_.uniform(0.05, 1.0))
        if server.process.poll() is not None:
            raise BenchmarkError(f"the front died (status {server.process.returncode})")
        pid = kill_worker(server, random_, pid)
        recoveries.append(recovery_s(server.address, model))
        if (number + 1) % 10 == 0:
            print(f"{number + 1}/{kills} kills", file=sys.stderr, flush=True)
    return recoveries


def storm(server: Server, model: str, kills: int, seed: int) -> dict[str, Any]:
    """The kills under load, and what the clients saw."""
    stopped, endings = threading.Event(), Counter[str]()
    arguments = [(server.address, model, seed * 100 + i, stopped, endings) for i in range(CLIENTS)]
    clients = [threading.Thread(target=client, args=each) for each in arguments]
    random_ = random.Random(seed)
    recovery_s(server.address, model)
    front_pid = server.run_json()["pid"]
    for thread in clients:
        thread.start()
    try:
        recoveries = kill_often(server, model, kills, random_)
    finally:
        stopped.set()
        for thread in clients:
            thread.join()
    died = server.process.poll() is not None or server.run_json()["pid"] != front_pid
    return {
        "kills": kills,
        "front_deaths": int(died),
        "hung_clients": endings["hung"],
        "broken_streams": sum(endings[name] for name in BROKEN),
        "unreachable": endings["unreachable"],
        "endings": dict(endings),
        **percentiles(recoveries),
    }


def percentiles(recoveries: list[float]) -> dict[str, float]:
    cuts = quantiles(recoveries, n=100, method="inclusive") if len(recoveries) > 1 else []
    p50, p99 = (cuts[49], cuts[98]) if cuts else (recoveries[0], recoveries[0])
    return {"recovery_p50_s": p50, "recovery_p99_s": p99, "recovery_max_s": max(recoveries)}


def quarantine(server: Server, model: str) -> dict[str, Any]:
    """Kill with the default budget until the model is quarantined. Raises BenchmarkError."""
    recovery_s(server.address, model)
    pid: int | None = None
    for number in range(1, QUARANTINE_KILLS + 1):
        pid = worker_pid(server, pid)
        os.kill(pid, signal.SIGKILL)
        while True:
            time.sleep(RETRY_S)
            if engine_status(server)["engine"]["state"] == "quarantined":
                return quarantined(server, model, number)
            if ask(server.address, model, PROBE_WORDS, 4).ending == "complete":
                break
    raise BenchmarkError(f"not quarantined after {QUARANTINE_KILLS} kills")


def quarantined(server: Server, model: str, kills: int) -> dict[str, Any]:
    status, health = ask_json(server.address, "/health")
    refused = ask(server.address, model, PROBE_WORDS, 4)
    told = "quarantin" in json.dumps(health).lower()
    return {
        "kills": kills,
        "health_status": status,
        "health": health,
        "request_status": refused.status,
        "request_detail": refused.detail,
        "met": told and refused.ending == "refused" and server.process.poll() is None,
    }


def run(args: argparse.Namespace, state_dir: Path) -> dict[str, Any]:
    model, _ = register(args.model, state_dir)
    if args.quarantine:
        with edge_agent(state_dir, model, SETTINGS) as server:
            return {"benchmark": "quarantine", "model": model, **quarantine(server, model)}
    settings = {**SETTINGS, "crash_budget": BUDGET_FOR_KILLS}
    with edge_agent(state_dir, model, settings) as server:
        report = storm(server, model, args.kills, args.seed)
    bad = ("front_deaths", "hung_clients", "broken_streams", "unreachable")
    met = not any(report[name] for name in bad)
    return {"benchmark": "crash", "model": model, "seed": args.seed, **report, "met": met}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded:smollm2-135m", help="what `pull` takes")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quarantine", action="store_true")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="edge-agent-crash-") as scratch:
            report = run(args, Path(scratch))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, value in report.items():
        print(f"{name:16} {value:.3f}" if isinstance(value, float) else f"{name:16} {value}")
    print(json.dumps(report))
    return 0 if report["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
