"""Hidden states that never change, on the disk: what enters the lowest trained block.

Why it exists: with adapters on the top k blocks only, the blocks below give the same states in
every epoch; stored once, an epoch pays for k blocks. Flows in: float32 states of tokens numbered
from 0. Flows out: the same, with a relative error below 2^-11: float16 after each token was scaled
by its own power of two (plain float16 ends at 65,504, and |h| = 103,772 was seen in Gemma 270M).
The file's space is reserved at once, so that a full disk is an error here and not a bus error in
the mapping. Not here: whose states they are (the run's manifest knows).

    magic 8 bytes | n_tokens u64 | n_embd u64 | is_complete u64 | exponents i16[] | states f16[][]
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edge_agent.atomic_file import sync_directory
from edge_agent.errors import TrainingFailed

F32 = NDArray[np.float32]

MAGIC = b"EAPREF01"
_HEADER = struct.Struct("<8sQQQ")
_TOP_EXPONENT = 15
"""The largest of a token's values is scaled into [2^14, 2^15): float16 ends at 2^16."""
_LOWEST_EXPONENT = -100
"""Of a token's largest value: beyond it the states are as good as zero."""


class PrefixStore:
    """States (n_tokens, n_embd) of one model and one set of texts. A context manager."""

    def __init__(self, path: Path, descriptor: int, n_tokens: int, n_embd: int) -> None:
        """Use `create` or `open`."""
        self.path, self.n_tokens, self.n_embd = path, n_tokens, n_embd
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, self.file_bytes(n_tokens, n_embd))
        self._exponents = np.frombuffer(self._map, "<i2", n_tokens, _HEADER.size)
        start = _HEADER.size + 2 * n_tokens
        flat = np.frombuffer(self._map, "<f2", n_tokens * n_embd, start)
        self._states = flat.reshape(n_tokens, n_embd)

    @staticmethod
    def file_bytes(n_tokens: int, n_embd: int) -> int:
        """What a store takes on the disk."""
        return _HEADER.size + 2 * n_tokens + 2 * n_tokens * n_embd

    @classmethod
    def create(cls, path: Path, n_tokens: int, n_embd: int) -> PrefixStore:
        """An empty store with its space reserved; replaces what was there.

        Raises OSError when the disk is full.
        """
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, cls.file_bytes(n_tokens, n_embd))
            os.pwrite(descriptor, _HEADER.pack(MAGIC, n_tokens, n_embd, 0), 0)
            return cls(path, descriptor, n_tokens, n_embd)
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise

    @classmethod
    def open(cls, path: Path) -> PrefixStore:
        """A store that was finished. Raises TrainingFailed when it is none, OSError."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            header = os.pread(descriptor, _HEADER.size, 0)
            if len(header) < _HEADER.size or not header.startswith(MAGIC):
                raise _useless(path, "it is no file of hidden states")
            _, n_tokens, n_embd, is_complete = _HEADER.unpack(header)
            if os.fstat(descriptor).st_size != cls.file_bytes(n_tokens, n_embd):
                raise _useless(path, "its size is not what its header says")
            if not is_complete:
                raise _useless(path, "it was not written to its end")
            return cls(path, descriptor, n_tokens, n_embd)
        except BaseException:
            os.close(descriptor)
            raise

    def write(self, first_token: int, states: F32) -> None:
        """Store the states (n, n_embd) of the tokens from `first_token` on.

        Raises TrainingFailed when one is not finite: nothing could be learned from it.
        """
        rows = slice(first_token, first_token + len(states))
        largest = np.abs(states).max(axis=1)
        if not np.isfinite(largest).all():
            raise TrainingFailed(
                "cannot store the states of the frozen blocks",
                f"those of token {first_token + int(np.isfinite(largest).argmin())} are not finite",
                "pull or convert the model again",
            )
        _, exponents = np.frexp(largest)
        np.maximum(exponents, _LOWEST_EXPONENT, out=exponents)
        exponents[largest == 0] = 0
        self._exponents[rows] = exponents
        self._states[rows] = np.ldexp(states, (_TOP_EXPONENT - exponents)[:, None])

    def read(self, first_token: int, n: int) -> F32:
        """States (n, n_embd) of `n` tokens, a new array."""
        rows = slice(first_token, first_token + n)
        states = self._states[rows].astype(np.float32)
        scale = np.ldexp(np.float32(1), self._exponents[rows].astype(np.int32) - _TOP_EXPONENT)
        states *= scale[:, None]
        return states

    def finish(self) -> None:
        """All is written: make it durable, then say so in the header. Raises OSError."""
        self._map.flush()
        os.fsync(self._descriptor)
        os.pwrite(self._descriptor, _HEADER.pack(MAGIC, self.n_tokens, self.n_embd, 1), 0)
        os.fsync(self._descriptor)
        sync_directory(self.path.parent)

    def close(self) -> None:
        """Safe to call twice. Arrays that `read` returned stay valid."""
        if self._descriptor >= 0:
            del self._exponents, self._states
            self._map.close()
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> PrefixStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


def _useless(path: Path, why: str) -> TrainingFailed:
    return TrainingFailed(
        f"cannot use the stored states in {path}", why, "remove the file: it will be made anew"
    )
