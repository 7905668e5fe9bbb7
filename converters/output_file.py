"""A file that is written in any order and appears complete or not at all.

Flows in: bytes and their offsets, from several threads. Flows out: the durable file under its final
name when the block ends without an error, otherwise nothing. It follows the recipe of
edge_agent/atomic_file.py, for files too large to be held in memory. Not here: the format.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from edge_agent.atomic_file import TEMP_SUFFIX, sync_directory
from edge_agent.errors import ConversionError


def check_output(path: Path, *sources: Path) -> None:
    """Raise ConversionError when no file can be put at `path`; for before the work.

    A device, pipe or socket would be replaced by a file, one of `sources` by what is made of it.
    """
    parent = path.parent
    why = ""
    if path.is_dir():
        why = "it is a directory"
    elif path.exists() and not path.is_file():
        why = "it is a device, a pipe or a socket"
    elif not parent.is_dir():
        why = f"there is no directory {parent}"
    elif not os.access(parent, os.W_OK | os.X_OK):
        why = f"{parent} may not be written to"
    elif path.exists() and any(s.exists() and path.samefile(s) for s in sources):
        why = "it is what the new file is made of"
    if why:
        raise ConversionError(f"cannot write {path}", why, "give another place with -o")


class OutputFile:
    """`with OutputFile(path) as output: output.write_at(0, data)`.

    Raises ConversionError when the file cannot be created or the disk is full; `path` then keeps
    its former content.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temp = path.with_name(f".{path.name}.{os.getpid()}{TEMP_SUFFIX}")
        self._descriptor = -1

    def __enter__(self) -> OutputFile:
        check_output(self.path)
        self._remove_leftovers()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self._temp, flags, 0o666)
        except OSError as error:
            raise self._failure(error) from None
        return self

    def reserve(self, n_bytes: int) -> None:
        """Reserve the space, so that a full disk is reported before the work and not after it."""
        try:
            os.posix_fallocate(self._descriptor, 0, n_bytes)
        except OSError as error:
            raise self._failure(error) from None

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`. Threads may write at once where nothing overlaps."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise self._failure(error) from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                os.fsync(self._descriptor)
        except OSError as problem:
            self._temp.unlink(missing_ok=True)
            raise self._failure(problem) from None
        finally:
            os.close(self._descriptor)
        if kind is not None:
            self._temp.unlink(missing_ok=True)
            return
        os.replace(self._temp, self.path)
        sync_directory(self.path.parent)

    def _remove_leftovers(self) -> None:
        """Remove temporary files that killed processes left for this name."""
        for part in self.path.parent.glob(f".{self.path.name}.*{TEMP_SUFFIX}"):
            pid = part.name.removesuffix(TEMP_SUFFIX).rpartition(".")[2]
            if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
                part.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> ConversionError:
        return ConversionError(
            f"cannot write {self.path}",
            error.strerror or str(error),
            "give another place with -o, or make room on that disk",
        )
