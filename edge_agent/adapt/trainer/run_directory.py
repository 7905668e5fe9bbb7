"""The trainer's files in STATE/adapt/NAME: where they lie, who may use them, how they are written.

Why it exists: a killed run must find its files again, and two trainers must not work in one
directory. Flows in: a directory. Flows out: paths, a lock against a second trainer, the run's own
copy of the data, small JSON documents that are complete or absent. Not here: the front's files in
the same directory (adapt/lesson_files.py), the contents of checkpoints (checkpoint.py) and of the
manifest (manifest.py).
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
    """Paths of the stored hidden states, and of the file that says how much of them is stored."""

    states: Path
    progress: Path

    def remove(self) -> None:
        """Remove both files. `states` goes last, so that `progress` never counts missing states."""
        self.progress.unlink(missing_ok=True)
        atomic_file.sync_directory(self.progress.parent)
        self.states.unlink(missing_ok=True)


class RunDirectory:
    """A run's directory: created when missing, locked until `close` or the end of the process."""

    def __init__(self, path: Path) -> None:
        """Raises TrainingBusy when another trainer holds the lock, and OSError."""
        self.path = path
        self.data = path / "data.jsonl"
        self.manifest = path / manifest.FILE_NAME
        self.checkpoints = path / "checkpoints"
        self.log = path / "log.jsonl"
        self.prefix = StateFiles(path / "prefix.f16", path / "prefix.json")
        self.trial_prefix = StateFiles(path / "trial.f16", path / "trial.json")
        self.earlier = path / "earlier_rows.json"
        self.rehearsal = path / "rehearsal.json"
        self.targets = path / "targets.bin"
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
        """Copy the data into the run's directory, so that later edits of `source` do not change the
        run.

        Raises DataRefused when `source` cannot be opened or is too large, and OSError when the copy
        cannot be written.
        """
        try:
            stream = open_regular(source)
        except OSError as error:
            why = error.strerror or str(error)
            raise DataRefused(f"cannot read the training data {source}", why, "") from error
        with stream:
            atomic_file.write_parts(self.data, _bounded(stream, source))


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document, durable when this returns. Raises OSError; an earlier document then
    remains."""
    text = json.dumps(document, ensure_ascii=False, indent=1)
    atomic_file.write(path, text.encode("utf-8", "backslashreplace") + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object at `path`; {} when it is missing or unreadable, so that the caller makes it
    again."""
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
