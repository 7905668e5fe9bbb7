"""The directory of a run: its files, the lock on it, and what `export` reads of it.

    RUN/run.json          every resolved setting, versions, hashes of data and model
    RUN/data.jsonl        the rows as they were given; a later edit belongs to another run
    RUN/train_rows.jsonl  those that were trained on (for an importance matrix)
    RUN/log.jsonl         a line for each step and each validation
    RUN/checkpoints/      see checkpoints.py
    RUN/adapter/ | model/ what was learned: a PEFT directory, or a whole model (full, qat)
    RUN/metrics.json      the result; written last, so a run that has it is finished
    RUN/curves.svg        losses over steps
    RUN/tensorboard/      when TensorBoard is installed

Flows in: a path. Flows out: paths, documents, a frozen FinishedRun. Imports no torch. Not here: how
the files are made (sft.py).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent import atomic_file
from edge_agent.errors import TrainingBusy, UsageError

VERSION = 1


@dataclass(frozen=True)
class RunFiles:
    """The paths of a run's files. `path` is the directory itself."""

    path: Path

    @property
    def run(self) -> Path:
        return self.path / "run.json"

    @property
    def data(self) -> Path:
        return self.path / "data.jsonl"

    @property
    def train_rows(self) -> Path:
        return self.path / "train_rows.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def curves(self) -> Path:
        return self.path / "curves.svg"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"


@dataclass(frozen=True)
class FinishedRun:
    """A finished run as `export` and `merge` see it. Either `adapter` or `model` is None.

    `base_gguf` is set when --model was a GGUF file; `base_directory` is then the directory made of
    it.
    """

    path: Path
    method: str
    settings: Mapping[str, Any]
    origin: str
    base_directory: Path
    base_gguf: Path | None
    base_sha256: str
    adapter: Path | None
    model: Path | None
    data: Path
    data_origin: str
    data_sha256: str
    document: Mapping[str, Any]
    metrics: Mapping[str, Any]


def read_run(path: Path) -> FinishedRun:
    """Open a finished run. Raises UsageError for a directory that is none.

    Example: `read_run(Path("my-run")).metrics["final_loss"]`
    """
    files = RunFiles(path)
    document, metrics = _object(files.run, path), _object(files.metrics, path)
    base, data = document["model"], document["data"]
    return FinishedRun(
        path=path,
        method=document["method"],
        settings=document["settings"],
        origin=base["origin"],
        base_directory=Path(base["directory"]),
        base_gguf=Path(base["gguf"]) if base["gguf"] else None,
        base_sha256=base["sha256"],
        adapter=files.adapter if files.adapter.is_dir() else None,
        model=files.model if files.model.is_dir() else None,
        data=files.train_rows,
        data_origin=data["origin"],
        data_sha256=data["sha256"],
        document=document,
        metrics=metrics,
    )


_ANEW = "make the run anew, in another directory"


def _object(file: Path, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        why, hint = f"it has no {file.name}", "repeat its command with --resume"
        raise UsageError(f"{path} is not a finished run", why, hint) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a finished run", f"{file.name}: {error}", _ANEW) from None
    if not isinstance(found, dict) or found.get("v") != VERSION:
        raise UsageError(f"{path} is not a run of this version", f"see {file.name}", _ANEW)
    return found


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a complete, durable JSON file with `v` added, or leave the old one. Raises OSError."""
    text = json.dumps({"v": VERSION, **document}, ensure_ascii=False, indent=1, allow_nan=False)
    atomic_file.write(path, text.encode("utf-8", "backslashreplace") + b"\n", 0o644)


def lock(path: Path) -> int:
    """Create the directory if needed, and keep other processes out until this one ends.

    Returns the descriptor to close. Raises TrainingBusy, OSError.
    """
    path.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path / "lock", flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise TrainingBusy(
            f"{path} is in use", "another run works there", "wait for it, or give another directory"
        ) from None
    return descriptor


def check_start(files: RunFiles, resume: bool) -> None:
    """Raise UsageError for a finished run, and for an unfinished one without `resume`."""
    if files.metrics.exists():
        raise UsageError(
            f"{files.path} holds a finished run", "it has a metrics.json", "give another directory"
        )
    if files.run.exists() and not resume:
        raise UsageError(
            f"{files.path} holds a run already",
            "it is never written over",
            "go on with --resume, or give another -o",
        )


def check_same(files: RunFiles, document: Mapping[str, Any]) -> None:
    """Raise UsageError that names the first difference to the run that is to be resumed."""
    begun = json.loads(files.run.read_bytes())
    for part in ("settings", "model", "data", "adapter", "order"):
        for key, value in document.get(part, {}).items():
            was = begun.get(part, {}).get(key)
            if key not in ("origin", "directory", "gguf") and was != value:
                raise UsageError(
                    f"cannot resume {files.path}",
                    f"{part}.{key} was {was!r} and is {value!r} now",
                    "repeat the command it began with, or give another directory",
                )
