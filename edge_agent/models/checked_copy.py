"""Brings an adapter's file into the state directory: copied, checked, made durable, then named.

    source ~> .NAME.gguf.tmp ~> the caller's check of the copy ~> fsync, rename ~> NAME.gguf

Flows in: a path somebody gave, and the check. Flows out: the SHA-256 and size of the file that now
has its final name, read-only: one that changed in place would be a SIGBUS in whoever mapped it. A
kill leaves only the temporary file, which the next copy of that name replaces. Not here: what a
good adapter is (gguf/adapter_file.py).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edge_agent.atomic_file import TEMP_SUFFIX, sync_directory
from edge_agent.errors import AdapterRefused, StoreError
from edge_agent.gguf.adapter_file import MAX_FILE_BYTES
from edge_agent.regular_file import open_regular, sha256_of_stream

RESERVE_BYTES = 64 << 20
"""Left free on the disk, so that the database can still be written."""


def checked_copy(source: Path, final: Path, check: Callable[[Path, str], None]) -> tuple[str, int]:
    """SHA-256 and bytes of `final`, a copy of `source` that `check` let pass.

    `check` is given the copy's path (a temporary name) and SHA-256. Raises AdapterRefused when
    `source` cannot be read, StoreError, and what `check` raises; then nothing has the final name
    that had not before.
    """
    temp = final.with_name(f".{final.name}{TEMP_SUFFIX}")
    with _readable(source) as stream:
        try:
            size = _checked_size(stream, source)
            with _storage_errors(final.parent):
                _make_directory(final.parent)
                _check_space(final.parent, size)
                sha256, size = _write(stream, temp)
            check(temp, sha256)
            with _storage_errors(final.parent):
                os.replace(temp, final)
                sync_directory(final.parent)
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
    return sha256, size


def sha256_if_readable(path: Path) -> str | None:
    """None when it cannot be read."""
    try:
        with open_regular(path) as stream:
            return sha256_of_stream(stream)[0]
    except OSError:
        return None


def unlink(path: Path) -> None:
    """Remove the file if it is there. Raises StoreError."""
    with _storage_errors(path.parent):
        path.unlink(missing_ok=True)


@contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    try:
        stream = open_regular(path)
    except OSError as error:
        raise AdapterRefused(
            f"the adapter {path} cannot be read",
            error.strerror or str(error),
            "give the path of a GGUF adapter that this user, or the daemon's, may read",
        ) from error
    with stream:
        yield stream


def _checked_size(stream: BinaryIO, path: Path) -> int:
    """Before a byte is copied. Raises AdapterRefused."""
    size = os.fstat(stream.fileno()).st_size
    if size > MAX_FILE_BYTES:
        why = f"it has {size} bytes, at most {MAX_FILE_BYTES} are accepted"
        raise AdapterRefused(f"the adapter {path} cannot be used", why, "is it a whole model?")
    return size


def _write(stream: BinaryIO, path: Path) -> tuple[str, int]:
    """Durable and read-only; SHA-256 and bytes."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        sha256, size = sha256_of_stream(stream, out)
        out.flush()
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
    return sha256, size


def _make_directory(path: Path) -> None:
    """STATE/adapters/MODEL, its names durable."""
    for directory in (path.parent, path):
        if not directory.exists():
            directory.mkdir(mode=0o700)
            sync_directory(directory.parent)


def _check_space(directory: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed_bytes + RESERVE_BYTES > free:
        raise StoreError(
            f"not enough space in {directory}",
            f"{needed_bytes >> 20} MiB and a reserve of {RESERVE_BYTES >> 20} MiB are needed,"
            f" {free >> 20} MiB are free",
            "remove an adapter or a model, or use a --state-dir on another disk",
        )


@contextmanager
def _storage_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"could not write to {directory}",
            error.strerror or str(error),
            "free some space or correct the permissions",
        ) from error
