"""A real trainer process at the other end of a socketpair, driven synchronously by tests."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from waiting import DEADLINE_S

from edge_agent.adapt.messages import (
    Finished,
    FromTrainer,
    Start,
    ToTrainer,
    TrainerFailed,
    TrainingProgress,
)
from edge_agent.adapt.run_settings import RunSettings
from edge_agent.wire import FrameDecoder, encode

QUICK = {
    **{"layers": "top:1", "r": 2, "epochs": 2, "patience": 2, "checkpoint_steps": 3},
    **{"batch_tokens": 96, "max_length": 96, "n_threads": 1, "memory_bytes": 400 << 20},
}
"""Settings with which a tiny model takes a second or two."""

Record = TypeVar("Record")


def write_lesson(path: Path, n_rows: int = 30) -> Path:
    """Short questions with one right answer each."""
    with path.open("w") as lines:
        for number in range(n_rows):
            row = {
                "instruction": f"What is the code of box {number}?",
                "output": f"It is {number * 7}.",
            }
            lines.write(json.dumps(row) + "\n")
    return path


def start_message(model: Path, run_dir: Path, data: Path, **fields: Any) -> Start:
    """`fields` are Start's or RunSettings' by name, on top of QUICK."""
    own = {name: fields.pop(name) for name in ("resume", "plan_only") if name in fields}
    return Start(
        run_dir=str(run_dir),
        name=run_dir.name,
        model="tiny",
        model_path=str(model),
        model_sha256=hashlib.sha256(model.read_bytes()).hexdigest(),
        data_path=str(data),
        settings=RunSettings(**{**QUICK, **fields}),
        **own,
    )


class TrainerProcess:
    """Context manager that starts a trainer, sends and receives records, and kills it if it
    stays."""

    def __init__(self, start: Start | None = None, argv: list[str] | None = None) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(DEADLINE_S)
        command = argv or [sys.executable, "-m", "edge_agent.adapt.trainer.process"]
        self.process = subprocess.Popen(
            [*command, "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
            start_new_session=True,
        )
        theirs.close()
        self._decoder: FrameDecoder[FromTrainer] = FrameDecoder(
            msgspec.msgpack.Decoder(FromTrainer)
        )
        self._ready: list[FromTrainer] = []
        if start is not None:
            self.send(start)

    def __enter__(self) -> TrainerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def send(self, *records: ToTrainer) -> None:
        self.socket.sendall(b"".join(encode(record) for record in records))

    def records(self) -> Iterator[FromTrainer]:
        """All records until the process closes its side."""
        while True:
            while self._ready:
                yield self._ready.pop(0)
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return
            if not data:
                return
            self._ready = self._decoder.feed(data)

    def wait_for(self, kind: type[Record], phase: str | None = None) -> Record:
        """The next record of this kind; of a TrainingProgress, the next of this phase."""
        for record in self.records():
            if isinstance(record, kind):
                if phase is None or (
                    isinstance(record, TrainingProgress) and record.phase == phase
                ):
                    return record
            elif isinstance(record, TrainerFailed):
                raise AssertionError(record)
        raise AssertionError(
            f"it ended with {self.process.wait(DEADLINE_S)} before a {kind.__name__}"
        )

    def finish(self) -> Finished:
        finished = self.wait_for(Finished)
        assert self.process.wait(DEADLINE_S) == 0
        return finished

    def failure(self) -> TrainerFailed:
        """The TrainerFailed with which it refuses."""
        last = [*self.records()][-1]
        assert isinstance(last, TrainerFailed), last
        assert self.process.wait(DEADLINE_S) == 10
        return last

    def kill(self) -> None:
        """SIGKILL: like a power cut, except that written data survives unsynced."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE_S)


def train(start: Start) -> Finished:
    """Run a whole lesson."""
    with TrainerProcess(start) as trainer:
        return trainer.finish()
