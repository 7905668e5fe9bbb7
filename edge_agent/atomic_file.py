"""Writes a file so that a reader, or the next boot, sees the old content or the new, never a part.

Flows in: a path and bytes. Flows out: the file, durable when `write` returns. The recipe is temp
file, fsync, rename, fsync of the directory: without the first fsync a power cut leaves a file of 0
bytes, without the second the rename itself can be lost (both measured: dev/log). Not here:
locking; two writers of one path each leave a whole file, and the last rename wins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

TEMP_SUFFIX = ".tmp"


def write(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` with `data`, permissions `mode`. Raises OSError; the old file then remains."""
    write_parts(path, [data], mode)


def write_parts(path: Path, parts: Iterable[bytes], mode: int = 0o600) -> None:
    """`write`, for what is too large to be held at once. Errors of `parts` leave the old file."""
    temp = path.with_name(f".{path.name}.{os.getpid()}{TEMP_SUFFIX}")
    try:
        _write_durably(temp, parts, mode)
        os.replace(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
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
