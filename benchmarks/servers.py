"""Starts and stops the servers that the benchmarks measure, each in a directory of its own.

Flows in: a model and settings. Flows out: a Server with an address, for the length of a `with`
block. When the block ends the process has ended too, so that two servers never share the processor.
Not here: requests and measurements.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build_llama_server import peer_program
from stream_client import Address, ask_json

PROGRAM = Path(sys.executable).parent / "edge-agent"
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Without it `python -m`, with which edge-agent starts its processes, takes the package in the
current directory, and not the program's own."""
START_S = 180.0
STOP_S = 30.0


class BenchmarkError(Exception):
    """What failed and where its log is; the scripts print it and exit 1."""


@dataclass(frozen=True)
class Server:
    """A running server. `state_dir` is edge-agent's; llama-server has none."""

    name: str
    address: Address
    process: subprocess.Popen[bytes]
    state_dir: Path | None = None

    def run_json(self) -> dict[str, Any]:
        """The content of STATE/run.json: pid, worker_pid, socket, port."""
        if self.state_dir is None:
            raise BenchmarkError(f"{self.name} has no run.json")
        document: dict[str, Any] = json.loads((self.state_dir / "run.json").read_text())
        return document


def cli(*arguments: str, state_dir: Path, program: Path = PROGRAM) -> str:
    """The output of an `edge-agent` command. Raises BenchmarkError with its error output."""
    command = [str(program), *arguments]
    env = {**os.environ, **SAFE_PATH, "EDGE_AGENT_STATE_DIR": str(state_dir)}
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise BenchmarkError(f"`{' '.join(command)}` failed: {done.stderr.decode()[-600:]}")
    return done.stdout.decode()


def register(source: str, state_dir: Path, program: Path = PROGRAM) -> tuple[str, Path]:
    """Pull `source` (embedded:NAME, hf:...

    or a file); returns its name and the GGUF file in STATE.
    """
    before = set(state_dir.glob("models/*.gguf"))
    document = json.loads(cli("pull", source, "--json", state_dir=state_dir, program=program))
    row = document.get("model", document)
    added = set(state_dir.glob("models/*.gguf")) - before
    return row["name"], added.pop() if added else Path(row["path"])


def engine_status(server: Server) -> dict[str, Any]:
    """The daemon's GET /status document."""
    status, document = ask_json(server.address, "/status")
    if status != 200:
        raise BenchmarkError(f"GET /status answered {status}: {document}")
    return dict(document)


@contextmanager
def edge_agent(
    state_dir: Path,
    model: str,
    settings: Mapping[str, object] | None = None,
    program: Path = PROGRAM,
) -> Iterator[Server]:
    """`edge-agent serve` with `settings` as EDGE_AGENT_<setting>, on any free port."""
    command = [str(program), "serve", "--port", "0"]
    command += ["--state-dir", str(state_dir), "--model", model]
    given = {f"EDGE_AGENT_{name.upper()}": str(value) for name, value in (settings or {}).items()}
    env = {**os.environ, **SAFE_PATH, "EDGE_AGENT_KEEP_ALIVE_S": "-1", **given}
    (state_dir / "run.json").unlink(missing_ok=True)
    with _process(command, env, state_dir / "serve.log") as process:
        port = _wait_for_port(state_dir, process)
        address = Address(port, (state_dir / "token").read_text().strip())
        _wait_healthy(address, process, state_dir / "serve.log")
        yield Server("edge-agent", address, process, state_dir)


@contextmanager
def llama_server(
    log_dir: Path, gguf: Path, *, threads: int, slots: int, n_ctx: int
) -> Iterator[Server]:
    """The peer, with edge-agent's batch sizes and no work beside the requests.

    Prompt cache, context checkpoints and the RAM cache are off, because they would cost time that
    edge-agent, asked with cache_prompt false, does not spend.
    """
    port = _free_port()
    command = [str(peer_program("llama-server")), "-m", str(gguf), "--port", str(port)]
    command += ["--host", "127.0.0.1", "-t", str(threads), "-tb", str(threads)]
    command += ["-np", str(slots), "-c", str(slots * n_ctx), "--no-kv-unified"]
    command += ["-b", "512", "-ub", "512", "-fa", "auto", "--no-ui", "--no-slots"]
    command += ["--no-cache-prompt", "--ctx-checkpoints", "0", "--cache-ram", "0", "--fit", "off"]
    log = log_dir / "llama-server.log"
    with _process(command, dict(os.environ), log) as process:
        address = Address(port)
        _wait_healthy(address, process, log)
        yield Server("llama-server", address, process)


@contextmanager
def _process(
    command: list[str], env: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A child in its own session: SIGTERM at the end, then SIGKILL to its whole group."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for_port(state_dir: Path, process: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            port = json.loads((state_dir / "run.json").read_text())["port"]
            return int(port)
        except (OSError, ValueError, KeyError, TypeError):
            time.sleep(0.02)
    raise BenchmarkError(f"edge-agent wrote no run.json; see {state_dir / 'serve.log'}")


def _wait_healthy(address: Address, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if ask_json(address, "/health")[0] == 200:
                return
        except (OSError, ValueError):
            pass
        time.sleep(0.05)
    tail = log.read_text(errors="replace")[-800:]
    raise BenchmarkError(f"the server on port {address.port} is not healthy; {log} ends:\n{tail}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
