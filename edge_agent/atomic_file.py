"""Writes a file so that a reader, or the next boot, sees the old content or the new, never a part.

Flows in: a path and bytes. Flows out: the file, durable when `write` returns. The recipe is: write
a temporary file, fsync it, rename it over the old file, fsync the directory. Without the first
fsync a power cut leaves a file of 0 bytes; without the second the rename itself can be lost (both
measured: dev/log). Not here: locking. When two writers replace one path, each leaves a whole file
and the last rename wins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

TEMP_SUFFIX = ".tmp"


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the file at `path` with `data` and give it the permissions `mode`.

    Raises OSError; the old file then remains.

        atomic_file.write(state.path / "token", token.encode())
    """
    write_parts(path, [data], mode)


def write_parts(path: Path, parts: Iterable[bytes], mode: int = 0o600) -> None:
    """As `write`, for content that is too large to be held in memory at once.

    An exception that iterating over `parts` raises leaves the old file in place and is passed on.
    """
    temp = path.with_name(f".{path.name}.{os.getpid()}{TEMP_SUFFIX}")
    try:
        _write_durably(temp, parts, mode)
        os.replace(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the creation, renaming and removal of names in a directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_durably(path: Path, parts: Iterable[bytes], mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:
        # The mode given to open() is narrowed by the umask and ignored for a leftover temp file.
        os.fchmod(file.fileno(), mode)
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
