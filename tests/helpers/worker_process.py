"""A real worker process at the other end of a socketpair, driven synchronously by tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from waiting import DEADLINE_S

from edge_agent.records import (
    Chunk,
    Done,
    EngineSettings,
    Failed,
    FromWorker,
    Generate,
    Load,
    Loaded,
    Message,
    ModelInfo,
    Sampling,
    ToWorker,
)
from edge_agent.wire import encode, to_front

GREEDY = Sampling(temperature=0.0)


class WorkerProcess:
    """Context manager that starts a worker, sends and receives records."""

    def __init__(self, argv: list[str] | None = None) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(DEADLINE_S)
        command = argv or [sys.executable, "-m", "edge_agent.engine.worker"]
        self.process = subprocess.Popen(
            [*command, "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            # Tests share two cores with other programs, where spinning threads are 50 times slower
            # than passive waiting. On a quiet machine passive waiting gives a third of the tokens
            # per second; benchmarks therefore set "active".
            env={"OMP_WAIT_POLICY": "passive", **os.environ, "GGML_NO_BACKTRACE": "1"},
        )
        theirs.close()
        self._decoder = to_front()
        self._ready: list[FromWorker] = []

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def send(self, *records: ToWorker) -> None:
        self.socket.sendall(b"".join(encode(record) for record in records))

    def receive(self) -> FromWorker:
        while not self._ready:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError(f"worker ended with {self.process.wait()}")
            self._ready = self._decoder.feed(data)
        return self._ready.pop(0)

    def load(
        self, path: Path, settings: EngineSettings | None = None, **fields: object
    ) -> ModelInfo:
        chosen = settings or EngineSettings(n_ctx=512, slots=2)
        self.send(Load("test", str(path), chosen, **fields))  # type: ignore[arg-type]
        answer = self.receive()
        assert isinstance(answer, Loaded), answer
        return answer.info

    def answer(self, request: Generate) -> tuple[str, Done]:
        """Run one request alone; returns its whole text and its Done. Raises RuntimeError on
        Failed."""
        self.send(request)
        return self.collect(request.id)

    def collect(self, request_id: int) -> tuple[str, Done]:
        return self.finish(request_id)[request_id]

    def finish(self, *request_ids: int) -> dict[int, tuple[str, Done]]:
        """Read until all of these requests have ended: id -> (whole text, Done)."""
        texts = dict.fromkeys(request_ids, "")
        ended: dict[int, tuple[str, Done]] = {}
        while len(ended) < len(request_ids):
            record = self.receive()
            if isinstance(record, Failed):
                raise RuntimeError(f"{record.code}: {record.what}: {record.why}")
            if isinstance(record, Chunk | Done) and record.id in texts:
                texts[record.id] += record.text
            if isinstance(record, Done) and record.id in texts:
                ended[record.id] = (texts[record.id], record)
        return ended


def chat(request_id: int, *contents: str, **fields: object) -> Generate:
    """A Generate of alternating user and assistant turns; greedy and 16 tokens by default."""
    roles = ("user", "assistant")
    messages = [Message(roles[index % 2], text) for index, text in enumerate(contents)]
    options: dict[str, object] = {"sampling": GREEDY, "max_tokens": 16, **fields}
    return Generate(id=request_id, messages=messages, **options)  # type: ignore[arg-type]
