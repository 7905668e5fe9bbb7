"""The trainer's files in STATE/adapt/NAME: where they lie, who may use them, how they are written.

Flows in: a directory. Flows out: paths, a lock against a second trainer, a frozen copy of the data,
small JSON documents that are whole or not there. What the front keeps in the same directory
(request, outcome) is adapt/lesson_files.py's. Not here: what checkpoints and manifest mean.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edge_agent import atomic_file
from edge_agent.adapt.trainer import manifest
from edge_agent.adapt.trainer.dataset import MAX_FILE_BYTES
from edge_agent.errors import DataRefused, TrainingBusy
from edge_agent.regular_file import open_regular

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class StateFiles:
    """Stored hidden states, and how much of them is there."""

    states: Path
    progress: Path

    def remove(self) -> None:
        """The states last, so that nothing is ever said to be there that is not."""
        self.progress.unlink(missing_ok=True)
        atomic_file.sync_directory(self.progress.parent)
        self.states.unlink(missing_ok=True)


class RunDirectory:
    """Made if need be; locked until `close` or the end of the process."""

    def __init__(self, path: Path) -> None:
        """Raises TrainingBusy when another trainer works in it, OSError."""
        self.path = path
        self.data = path / "data.jsonl"
        self.manifest = path / manifest.FILE_NAME
        self.checkpoints = path / "checkpoints"
        self.log = path / "log.jsonl"
        self.prefix = StateFiles(path / "prefix.f16", path / "prefix.json")
        self.trial_prefix = StateFiles(path / "trial.f16", path / "trial.json")
        self.trials = path / "trials.json"
        self.split = path / "split.json"
        self.adapter = path / "adapter.gguf"
        self.result = path / "result.json"
        self.checkpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_file.sync_directory(path)
        self._lock = self._locked()

    def _locked(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path / "lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise TrainingBusy(
                f"{self.path} is in use", "another trainer works there", "wait for it, or stop it"
            ) from error
        return descriptor

    def close(self) -> None:
        os.close(self._lock)

    def freeze_data(self, source: Path) -> None:
        """Copy the data: what is edited later belongs to another run. Raises DataRefused, OSError
        for the copy."""
        try:
            stream = open_regular(source)
        except OSError as error:
            why = error.strerror or str(error)
            raise DataRefused(f"cannot read the training data {source}", why, "") from error
        with stream:
            atomic_file.write_parts(self.data, _bounded(stream, source))


def write_json(path: Path, document: Any) -> None:
    """Whole and durable, or not there. Raises OSError."""
    text = json.dumps(document, ensure_ascii=False, indent=1)
    atomic_file.write(path, text.encode("utf-8", "backslashreplace") + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """{} when there is none, or none that can be read: it is then made again."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _bounded(stream: BinaryIO, source: Path) -> Iterator[bytes]:
    left = MAX_FILE_BYTES
    while block := stream.read(_BLOCK_BYTES):
        left -= len(block)
        if left < 0:
            raise DataRefused(
                f"{source} is too large",
                f"a lesson may have {MAX_FILE_BYTES >> 20} MB",
                "divide it into several",
            )
        yield block
