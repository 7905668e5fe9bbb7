"""A daemon process with the fake worker of fakes.py, and a state directory for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import fakes
from waiting import DEADLINE_S, until

from edge_agent.config import Settings
from edge_agent.store.store import Store

ARGV = [sys.executable, str(Path(fakes.__file__)), "daemon", "--settings"]


def settings_json(state: Path, **fields: Any) -> str:
    chosen = {"port": 0, "drain_s": 5.0, **fields}
    return Settings(state_dir=state, **chosen).model_dump_json()


class RunningDaemon:
    """A daemon process; the test's fixture stops it."""

    def __init__(self, state: Path, environ: dict[str, str] | None = None, **fields: Any) -> None:
        self.state = state
        self.stderr = (state.parent / f"{state.name}.stderr").open("w+")
        self.process = subprocess.Popen(
            [*ARGV, settings_json(state, **fields)],
            stderr=self.stderr,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environ or {})},
        )

    def run_json(self) -> dict[str, Any] | None:
        assert self.process.poll() is None, self.log()
        try:
            values = json.loads((self.state / "run.json").read_text())
        except FileNotFoundError:
            return None
        assert isinstance(values, dict), "a reader never sees half a file"
        return values if values["pid"] == self.process.pid else None

    def log(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read()

    def ready(self) -> RunningDaemon:
        until(self.run_json)
        until(lambda: "listening on" in self.log())
        return self

    def worker_pid(self) -> int:
        pid = until(lambda: (self.run_json() or {}).get("worker_pid"))
        assert isinstance(pid, int)
        return pid

    def connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=DEADLINE_S)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(DEADLINE_S)
        connection.sock.connect(str(self.state / "agent.sock"))
        return connection

    def get(self, path: str) -> dict[str, Any]:
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path)
            values = json.loads(connection.getresponse().read())
            assert isinstance(values, dict)
            return values

    def start(self, **plan: object) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self.connect()
        connection.request("POST", "/generate", json.dumps(plan))
        return connection, connection.getresponse()

    def generate(self, **plan: object) -> list[Any]:
        connection, response = self.start(**plan)
        with contextlib.closing(connection):
            return [json.loads(line) for line in response.read().splitlines()]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.stderr.close()
        return code


def make_state(parent: Path) -> Path:
    """A state directory with one registered model."""
    state = parent / "s"
    state.mkdir()
    with Store(state / "edge-agent.db") as store:
        store.add_model(fakes.register(state))
    return state
