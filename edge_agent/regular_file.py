"""Opens files that strangers may have put there, and hashes files.

Ground file: it imports only the errors. Why it exists: opening a named pipe waits for the pipe's
writer, and a device or a directory has no content to read. Flows in: paths, or open streams. Flows
out: a stream of a regular file, or a SHA-256 in hexadecimal digits. Not here: what a file contains,
and writing (atomic_file.py).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from edge_agent.errors import ModelCorrupt, ModelFormatError

BLOCK_BYTES = 1 << 20


def open_regular(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open `path` for reading, without waiting for a writer when it is a named pipe.

    Raises OSError when `path` is not a regular file, or, without `follow_links`, when it is a
    symbolic link; the error's `strerror` says what stands there instead.

        with open_regular(path) as stream: head = stream.read(4)
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP and not follow_links:
            why = "it is a symbolic link, and what that names can change"
            raise OSError(errno.ELOOP, why, str(path)) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    why = "it is a directory" if stat.S_ISDIR(mode) else "it is not a regular file"
    raise OSError(errno.EINVAL, why, str(path))


def sha256_of(
    *paths: Path,
    out: BinaryIO | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """SHA-256 of the content of `paths` joined in order, which is also copied into `out` if given.

    `progress` is told (bytes done, bytes in all) after each block. Raises OSError.

    >>> sha256_of(Path("/dev/null"))[:8]
    'e3b0c442'
    """
    total = sum(path.stat().st_size for path in paths)
    digest, done = hashlib.sha256(), 0
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                done += len(block)
                if out is not None:
                    out.write(block)
                if progress is not None:
                    progress(done, total)
    return digest.hexdigest()


def sha256_of_stream(stream: BinaryIO, out: BinaryIO | None = None) -> tuple[str, int]:
    """SHA-256 and size of the rest of a stream, which is also copied into `out` if given.

    Raises OSError.
    """
    digest, size = hashlib.sha256(), 0
    while block := stream.read(BLOCK_BYTES):
        digest.update(block)
        size += len(block)
        if out is not None:
            out.write(block)
    return digest.hexdigest(), size


def check_sha256(path: Path, expected: str) -> None:
    """Compare a registered model file with its hash.

    Raises ModelCorrupt when the hash differs, ModelFormatError when the file cannot be read.
    """
    try:
        found = sha256_of(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise ModelFormatError(f"{path} cannot be read", why, "pull the model again") from error
    if found != expected:
        raise ModelCorrupt(
            f"{path} is not the file that was registered",
            f"its SHA-256 is {found}, expected {expected}",
            "remove the model and pull it again; check the disk",
        )
