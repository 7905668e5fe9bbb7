"""Which of the Trainer's checkpoints are complete: those with our marker, which is written last.

Why it exists: the Trainer writes its files one after the other into the final directory, so a kill
leaves a directory that looks like a checkpoint and is none. `seal` hashes and syncs every file and
then writes `complete.json` beside them (temporary file, fsync, rename, fsync of the directory). A
directory counts only if its files are exactly those of its marker. Flows in: directories
`checkpoint-STEP`. Flows out: the newest complete one. Old ones are removed after a new one is
sealed, never before. Imports no torch. Not here: what the files mean.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from edge_agent import atomic_file
from edge_agent.regular_file import sha256_of

MARKER = "complete.json"
PREFIX = "checkpoint-"
KEEP = 2
"""Number of newest checkpoints to keep; the best one is kept as well."""


@dataclass(frozen=True)
class Sealed:
    """A complete checkpoint."""

    path: Path
    step: int


def seal(directory: Path) -> None:
    """Make what was saved durable and mark it complete. After an OSError it does not count."""
    files = {}
    for path in _files(directory):
        files[str(path.relative_to(directory))] = _synced_sha256(path)
    for folder in {path.parent for path in _files(directory)} | {directory}:
        atomic_file.sync_directory(folder)
    document = json.dumps({"v": 1, "files": files}, indent=1).encode()
    atomic_file.write(directory / MARKER, document, 0o644)
    atomic_file.sync_directory(directory.parent)


def newest(root: Path) -> Sealed | None:
    """The newest complete checkpoint; None when there is none.

    Example: `found = newest(RunFiles(path).checkpoints)`
    """
    return next((found for found in _by_age(root) if is_complete(found.path)), None)


def is_complete(directory: Path) -> bool:
    """Whether the marker exists and lists exactly the files that exist, with their content."""
    try:
        expected = json.loads((directory / MARKER).read_bytes())["files"]
        found = {str(path.relative_to(directory)): path for path in _files(directory)}
        return expected.keys() == found.keys() and all(
            sha256_of(path) == expected[name] for name, path in found.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def clear_incomplete(root: Path) -> list[str]:
    """Remove what a killed save or removal left. Returns the names of the removed directories."""
    broken = [found.path for found in _by_age(root) if not is_complete(found.path)]
    for path in broken:
        shutil.rmtree(path)
    return [path.name for path in broken]


def prune(root: Path, best: Path | None) -> None:
    """Remove all checkpoints but the KEEP newest and the best."""
    for found in list(_by_age(root))[KEEP:]:
        if best is None or found.path.name != best.name:
            remove(found.path)


def remove(directory: Path) -> None:
    """Remove the marker first and the files then, so that half of a checkpoint never counts."""
    (directory / MARKER).unlink(missing_ok=True)
    atomic_file.sync_directory(directory)
    shutil.rmtree(directory)


def _by_age(root: Path) -> list[Sealed]:
    """Every checkpoint directory, complete or not, the newest first."""
    found = []
    for path in root.glob(f"{PREFIX}*"):
        step = path.name.removeprefix(PREFIX)
        if step.isdecimal() and path.is_dir():
            found.append(Sealed(path, int(step)))
    return sorted(found, key=lambda one: -one.step)


def _files(directory: Path) -> list[Path]:
    marked = directory / MARKER
    return sorted(p for p in directory.rglob("*") if p.is_file() and p != marked)


def _synced_sha256(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return sha256_of(path)
