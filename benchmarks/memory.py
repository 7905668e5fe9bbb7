"""How much memory of their own do the two processes take under load?

RssAnon of both processes (pages that cannot be dropped and read again, as the mapped weights can)
is sampled 20 times a second while four clients send short chats, long prompts, JSON schemas,
log-probabilities and requests that they abandon. The peaks are printed beside the key-value cache
and the compute buffer that the daemon announced. Exit status 1 above the limits: front 70 MB,
worker KV + compute + 120 MB (MB = 10^6 bytes). Not covered: page cache, GPUs.

    .venv/bin/python benchmarks/memory.py --seconds 60 --seed 1      # last line: JSON
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from servers import BenchmarkError, Server, edge_agent, engine_status, register
from stream_client import Address, stream

MB = 1_000_000
FRONT_LIMIT_BYTES = 70 * MB
WORKER_MARGIN_BYTES = 120 * MB
PERIOD_S = 0.05
CLIENTS = 4
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
    "required": ["city", "people"],
}


def rss_anon_bytes(pid: int) -> int:
    """RssAnon of a process (proc(5)); 0 when it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")]
    return found[0] if found else 0


class Sampler(threading.Thread):
    """Records the peaks of both processes until `stopped` is set."""

    def __init__(self, server: Server, stopped: threading.Event) -> None:
        super().__init__()
        self._server, self._stopped = server, stopped
        self.peak_bytes = {"front": 0, "worker": 0}
        self.samples = 0

    def run(self) -> None:
        run = self._server.run_json()
        pids = {"front": run["pid"], "worker": run["worker_pid"]}
        while not self._stopped.wait(PERIOD_S):
            for name, pid in pids.items():
                self.peak_bytes[name] = max(self.peak_bytes[name], rss_anon_bytes(pid))
            self.samples += 1


def request(model: str, random_: random.Random) -> tuple[str, str, dict[str, Any]]:
    """(kind, path, body) of one request of the mix."""
    kind = random_.choice(["chat", "long", "schema", "logprobs", "abandon"])
    words = " ".join(random_.choice(["river", "train", "pump", "seven", "नदी"]) for _ in range(600))
    prompt = {"long": f"{words}\nHow many rivers?", "schema": "A city as JSON."}
    message = {"role": "user", "content": prompt.get(kind, f"Tell me about {words[:40]}.")}
    body: dict[str, Any] = {"model": model, "messages": [message], "stream": True}
    body |= {"max_tokens": random_.randint(16, 96), "seed": random_.randrange(1000)}
    if kind == "schema":
        body["response_format"] = {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    if kind == "logprobs":
        body |= {"logprobs": True, "top_logprobs": 5}
    return kind, "/v1/chat/completions", body


def abandon(address: Address, path: str, body: dict[str, Any]) -> None:
    """Send a request, read a little, close the connection."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=30)
    try:
        connection.request("POST", path, body=json.dumps(body), headers=address.headers())
        connection.getresponse().read(64)
    finally:
        connection.close()


def client(
    address: Address, model: str, seed: int, stopped: threading.Event, tally: Counter[str]
) -> None:
    random_ = random.Random(seed)
    while not stopped.is_set():
        kind, path, body = request(model, random_)
        if kind == "abandon":
            abandon(address, path, body)
            tally["abandon"] += 1
        else:
            tally[f"{kind} {stream(address, path, body).ending}"] += 1


def measure(server: Server, model: str, seconds: float, seed: int) -> dict[str, Any]:
    """Load for `seconds`, then the figures. Raises BenchmarkError when a request failed."""
    stream(server.address, "/v1/completions", {"model": model, "prompt": "Hi", "stream": True})
    stopped, tally = threading.Event(), Counter[str]()
    sampler = Sampler(server, stopped)
    clients = [
        threading.Thread(target=client, args=(server.address, model, seed + i, stopped, tally))
        for i in range(CLIENTS)
    ]
    for thread in (sampler, *clients):
        thread.start()
    time.sleep(seconds)
    stopped.set()
    for thread in (sampler, *clients):
        thread.join()
    failed = {name: n for name, n in tally.items() if not name.endswith(("complete", "abandon"))}
    if failed:
        raise BenchmarkError(f"requests of the load failed: {failed}")
    info = engine_status(server)["model_info"]
    known = {name: info[name] for name in ("kv_bytes", "compute_bytes", "n_ctx", "slots")}
    peaks = {f"{name}_peak_bytes": peak for name, peak in sampler.peak_bytes.items()}
    return {**peaks, **known, "samples": sampler.samples, "requests": dict(tally)}


def with_limits(report: dict[str, Any]) -> dict[str, Any]:
    limit = report["kv_bytes"] + report["compute_bytes"] + WORKER_MARGIN_BYTES
    met = report["front_peak_bytes"] <= FRONT_LIMIT_BYTES and report["worker_peak_bytes"] <= limit
    return {
        **report,
        "front_limit_bytes": FRONT_LIMIT_BYTES,
        "worker_limit_bytes": limit,
        "met": met,
    }


def show(report: dict[str, Any]) -> str:
    mb = {name: value / MB for name, value in report.items() if name.endswith("_bytes")}
    return (
        "front   peak {front_peak_bytes:7.1f} MB   limit {front_limit_bytes:7.1f} MB\n"
        "worker  peak {worker_peak_bytes:7.1f} MB   limit {worker_limit_bytes:7.1f} MB "
        "(KV {kv_bytes:.1f} + compute {compute_bytes:.1f} + 120)".format(**mb)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded:gemma3-270m", help="what `pull` takes")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="edge-agent-memory-") as scratch:
            model, _ = register(args.model, Path(scratch))
            with edge_agent(Path(scratch), model) as server:
                report = with_limits(measure(server, model, args.seconds, args.seed))
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(show(report))
    print(json.dumps({"benchmark": "memory", "model": model, "seed": args.seed, **report}))
    return 0 if report["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
