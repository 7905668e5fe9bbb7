"""Which checkpoints of the Trainer may be believed: those with our marker, written last.

Why it exists: the Trainer writes its files one after the other into the final directory, so a kill
leaves a directory that looks like a checkpoint and is none. `seal` hashes every file, syncs it, and
writes `complete.json` beside them as the last thing (temp, fsync, rename, fsync of the directory);
only a directory whose files are exactly those of its marker counts. Flows in: directories
`checkpoint-STEP`. Flows out: the newest complete one. Old ones go after a new one is sealed, never
before. Imports no torch. Not here: what the files mean.
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
"""Newest ones; the best is kept besides."""


@dataclass(frozen=True)
class Sealed:
    """A checkpoint whose every byte is as it was written."""

    path: Path
    step: int


def seal(directory: Path) -> None:
    """Make what was saved durable and say so. Raises OSError; it then does not count."""
    files = {}
    for path in _files(directory):
        files[str(path.relative_to(directory))] = _synced_sha256(path)
    for folder in {path.parent for path in _files(directory)} | {directory}:
        atomic_file.sync_directory(folder)
    document = json.dumps({"v": 1, "files": files}, indent=1).encode()
    atomic_file.write(directory / MARKER, document, 0o644)
    atomic_file.sync_directory(directory.parent)


def newest(root: Path) -> Sealed | None:
    """The newest complete one; None when there is none."""
    return next((found for found in _by_age(root) if is_complete(found.path)), None)


def is_complete(directory: Path) -> bool:
    """Whether the marker is there and names exactly the files that are, by content."""
    try:
        expected = json.loads((directory / MARKER).read_bytes())["files"]
        found = {str(path.relative_to(directory)): path for path in _files(directory)}
        return expected.keys() == found.keys() and all(
            sha256_of(path) == expected[name] for name, path in found.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def clear_incomplete(root: Path) -> list[str]:
    """Remove what a killed save or removal left; names of the directories removed."""
    broken = [found.path for found in _by_age(root) if not is_complete(found.path)]
    for path in broken:
        shutil.rmtree(path)
    return [path.name for path in broken]


def prune(root: Path, best: Path | None) -> None:
    """Remove all but the KEEP newest and the best."""
    for found in list(_by_age(root))[KEEP:]:
        if best is None or found.path.name != best.name:
            remove(found.path)


def remove(directory: Path) -> None:
    """The marker first, so that half of a checkpoint never counts."""
    (directory / MARKER).unlink(missing_ok=True)
    atomic_file.sync_directory(directory)
    shutil.rmtree(directory)


def _by_age(root: Path) -> list[Sealed]:
    """Every checkpoint directory, the newest first, complete or not."""
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
