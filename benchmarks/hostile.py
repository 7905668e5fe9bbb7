"""Hostile requests and slow clients against a live daemon: does it answer 4xx, and drop the slow?

Why it exists: tests/server/test_hostile.py sends the same requests to a fake engine; this program
sends them to the whole daemon with a real model. Flows in: --state-dir (run.json, token). Flows
out: a summary for people and, as the last line, one JSON document. Exit code 1 when a request ends
otherwise than its table says, or a slow client is kept for longer than CLOSE_GATE_S.

    .venv/bin/python benchmarks/hostile.py --state-dir STATE
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from socket import create_connection, socket
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from hostile_case import Case, Outcome, Target, head, run_case
from hostile_requests import CASES

HOST = "127.0.0.1"
CLOSE_GATE_S = 10.0
DRIP_S = 0.5
GIVE_UP_S = 40.0


@dataclass(frozen=True)
class Slow:
    """One kind of slow client: what it sends at once, and what follows, a byte each DRIP_S."""

    kind: str
    at_once: bytes
    dripped: bytes = b""


def slow_clients(target: Target) -> list[Slow]:
    """The four kinds of slow client."""
    whole = head(target, "GET /v1/models")
    stalled = {"Content-Type": "application/json", "Content-Length": "100"}
    return [
        Slow("idle", b""),
        Slow("partial header", whole[:30]),
        Slow("header drip", b"", whole[:-4] + b"\r\nX-A: " + b"a" * 1000),
        Slow("body stall", head(target, "POST /v1/completions", {**stalled}) + b'{"prompt"'),
    ]


def time_to_close_s(target: Target, slow: Slow) -> float:
    """Seconds from connecting until the daemon has closed; GIVE_UP_S when it did not."""
    start = time.monotonic()
    dripped = slow.dripped
    with create_connection((target.host, target.port), timeout=DRIP_S) as peer:
        try:
            peer.sendall(slow.at_once)
            while time.monotonic() - start < GIVE_UP_S:
                peer.send(dripped[:1])
                dripped = dripped[1:]
                if _is_closed(peer):
                    break
        except OSError:
            pass  # a reset counts as a close
    return time.monotonic() - start


def _is_closed(peer: socket) -> bool:
    """Whether the daemon has closed; reads for DRIP_S, because a 408 may come before the end."""
    try:
        while peer.recv(65536):
            pass
    except TimeoutError:
        return False
    return True


def measure_slow(target: Target, each: int) -> dict[str, float]:
    """The longest time to close of each kind, with `each` clients of every kind at once."""
    worst: dict[str, float] = {}
    lock = threading.Lock()

    def client(slow: Slow) -> None:
        seconds = time_to_close_s(target, slow)
        with lock:
            worst[slow.kind] = max(worst.get(slow.kind, 0.0), seconds)

    threads = [
        threading.Thread(target=client, args=(slow,))
        for slow in slow_clients(target)
        for _ in range(each)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return worst


def good_answer_s(target: Target) -> float:
    """Latency of a correct request, which shows that the daemon still works."""
    start = time.monotonic()
    connection = HTTPConnection(target.host, target.port, timeout=30)
    connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {target.token}"})
    answered = connection.getresponse().status == 200
    connection.close()
    return time.monotonic() - start if answered else float("inf")


def measure_cases(target: Target) -> list[tuple[Case, Outcome]]:
    return [(case, run_case(target.host, target.port, target.token, case)) for case in CASES]


def report(results: list[tuple[Case, Outcome]], slow: dict[str, float]) -> dict[str, Any]:
    """The figures; `wrong` lists every case that did not end as its table says."""
    statuses = Counter(str(outcome.status or "closed") for _, outcome in results)
    wrong = [
        {"kind": case.kind, "name": case.name, "allowed": sorted(case.allowed), "got": got.status}
        for case, got in results
        if not got.is_right(case)
    ]
    slowest = max(results, key=lambda result: result[1].seconds)
    return {
        "cases": len(results),
        "classes": len({case.kind for case, _ in results}),
        "statuses": dict(sorted(statuses.items())),
        "server_errors": sum((outcome.status or 0) >= 500 for _, outcome in results),
        "wrong": wrong,
        "worst_latency_s": round(slowest[1].seconds, 3),
        "worst_case": f"{slowest[0].kind}: {slowest[0].name}",
        "slow_close_s": {kind: round(seconds, 2) for kind, seconds in sorted(slow.items())},
    }


def passed(figures: dict[str, Any]) -> bool:
    in_time = all(seconds <= CLOSE_GATE_S for seconds in figures["slow_close_s"].values())
    return not figures["wrong"] and figures["server_errors"] == 0 and in_time


def main() -> int:
    parser = argparse.ArgumentParser(description="hostile requests against a live daemon")
    parser.add_argument("--state-dir", type=Path, required=True, help="of the running daemon")
    parser.add_argument("--each", type=int, default=5, help="slow clients per class")
    options = parser.parse_args()
    run = json.loads((options.state_dir / "run.json").read_text())
    token = (options.state_dir / "token").read_text().strip()
    target = Target(HOST, run["port"], token)
    results = measure_cases(target)
    figures = report(results, measure_slow(target, options.each))
    after = json.loads((options.state_dir / "run.json").read_text())
    figures["daemon_survived"] = after["pid"] == run["pid"]
    figures["good_request_after_s"] = round(good_answer_s(target), 4)
    figures["passed"] = passed(figures) and figures["daemon_survived"]
    for name, value in figures.items():
        print(f"{name:>22}  {value}")
    print(json.dumps(figures))
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
