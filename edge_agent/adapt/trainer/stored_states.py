"""The hidden states that enter the lowest trained block: computed once, stored on the disk.

Why it exists: the blocks below the lowest trained one never change, so they give the same states in
every epoch; with stored states, an epoch computes only the trained blocks. Flows in: samples, a
decoder. Flows out: a file of states, and a file that says how many rows of it are on the disk and,
at the end, its SHA-256. A run that is killed here continues after the last synced row. Rows are
packed in the order of the data, so the states do not depend on interruptions. Not here: what else
the states depend on (`identity`, from training_run.py).

Each token's states are scaled by a power of two of their own and stored as float16, with a relative
error below 2^-11. Plain float16 ends at 65,504, and |h| = 103,772 was seen in Gemma 3 270M. The
file's space is reserved when it is created, so that a full disk is an error there and not a bus
error in the mapping. The file, little-endian:

    magic 8 bytes | n_tokens u64 | n_embd u64 | is_complete u64 | exponents i16[] | states f16[][]
"""

from __future__ import annotations

import mmap
import os
import struct
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapt.trainer.decoder.decoder import Decoder
from edge_agent.adapt.trainer.packed_samples import PackedSamples, bins
from edge_agent.adapt.trainer.run_directory import StateFiles, read_json, write_json
from edge_agent.adapt.trainer.training_loop import LoopTools
from edge_agent.atomic_file import sync_directory
from edge_agent.errors import TrainingFailed
from edge_agent.regular_file import sha256_of

F32 = NDArray[np.float32]
SYNC_S = 20.0
"""Seconds of computing between two syncs, which a kill may lose."""
MAGIC = b"EAPREF01"
_HEADER = struct.Struct("<8sQQQ")
_TOP_EXPONENT = 15
"""A token's largest value is scaled into [2^14, 2^15), because float16 ends at 2^16."""
_LOWEST_EXPONENT = -100
"""Exponents below this are raised to it: such states are near 0."""


class StateFiller:
    """Fills the store of one run or one trial. `identity` names everything that the states depend
    on besides the samples' order, the row length and the lowest trained block."""

    def __init__(
        self,
        files: StateFiles,
        packed: PackedSamples,
        batch_tokens: int,
        identity: dict[str, Any],
        tools: LoopTools,
    ) -> None:
        self._files, self._packed, self._tools = files, packed, tools
        self._identity = {**identity, "batch_tokens": batch_tokens}
        samples = packed.samples
        longest = max(batch_tokens, *map(len, samples))  # a rehearsal sample may be longer
        self._rows = bins(samples, longest, range(len(samples)))

    def fill(self, decoder: Decoder) -> float:
        """Store the states that are missing, and give the store to the PackedSamples (`prefix`).

        Returns the seconds that this took. Nothing is stored when block 0 is trained. Raises
        StopAsked when the front stops the run, and OSError.
        """
        if decoder.lowest == 0:
            return 0.0
        began_s = self._tools.monotonic()
        identity = {**self._identity, "lowest": decoder.lowest}
        done = self._stored(identity)
        if done == 0:
            store = self._tools.pauses.persist(lambda: self._create(decoder.shape.n_embd))
        else:
            store = StateStore.open(self._files.states)
        if done < len(self._rows):
            self._compute(decoder, store, done, identity)
        self._packed.prefix = store
        return self._tools.monotonic() - began_s

    def _create(self, n_embd: int) -> StateStore:
        self._files.remove()
        return StateStore.create(self._files.states, self._packed.n_tokens, n_embd)

    def _stored(self, identity: dict[str, Any]) -> int:
        """Number of rows that are stored already; 0 when the store belongs to other circumstances
        or is damaged."""
        found = read_json(self._files.progress)
        rows = found.get("rows")
        if found.get("identity") != identity or not isinstance(rows, int):
            return 0
        try:
            if rows < len(self._rows):
                return max(0, rows) if self._files.states.is_file() else 0
            is_whole = found.get("sha256") == sha256_of(self._files.states)
        except OSError:
            return 0
        return len(self._rows) if is_whole else 0

    def _compute(
        self, decoder: Decoder, store: StateStore, done: int, identity: dict[str, Any]
    ) -> None:
        tools, total = self._tools, len(self._rows)
        synced_s = tools.monotonic()
        for number in range(done, total):
            self._one_row(decoder, store, self._rows[number])
            tools.reporter.note(f"states below block {decoder.lowest}: {number + 1} of {total}")
            mark = partial(self._mark, store, number + 1, identity)
            if number + 1 == total or tools.monotonic() - synced_s >= SYNC_S:
                mark()
                synced_s = tools.monotonic()
            tools.pauses.rest(mark)

    def _one_row(self, decoder: Decoder, store: StateStore, row: list[int]) -> None:
        batch, _ = self._packed.batch(row)
        states, place = decoder.compute.to_host(decoder.states(batch, decoder.lowest)), 0
        for sample in row:
            n = len(self._packed.samples[sample])
            store.write(self._packed.first_token(sample), states[place : place + n])
            place += n

    def _mark(self, store: StateStore, rows: int, identity: dict[str, Any]) -> None:
        """Sync the states of the first `rows` rows, then write their number to the progress file.
        Waits for room on a full disk.

        The store is marked complete each time, so that it can be opened again; the progress file
        says how much of it is really there.
        """

        def write() -> None:
            store.finish()
            document = {"identity": identity, "rows": rows}
            if rows == len(self._rows):
                document["sha256"] = sha256_of(self._files.states)
            write_json(self._files.progress, document)

        self._tools.pauses.persist(write)


class StateStore:
    """The states (n_tokens, n_embd) of one model and one set of texts. A context manager.

    For example:

        with StateStore.create(path, n_tokens=10, n_embd=640) as store:
            store.write(0, states)
            store.finish()
    """

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
        """Bytes of a store's file."""
        return _HEADER.size + 2 * n_tokens + 2 * n_tokens * n_embd

    @classmethod
    def create(cls, path: Path, n_tokens: int, n_embd: int) -> StateStore:
        """A new store whose space is reserved; replaces a file at `path`.

        Raises OSError, for example when the disk is full.
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
    def open(cls, path: Path) -> StateStore:
        """Open a store that was finished. Raises TrainingFailed for another file, and OSError."""
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

        Raises TrainingFailed when a state is not finite, because nothing can be learned from it.
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
        """The states (n, n_embd) of `n` tokens from `first_token` on, as a new array."""
        rows = slice(first_token, first_token + n)
        states = self._states[rows].astype(np.float32)
        scale = np.ldexp(np.float32(1), self._exponents[rows].astype(np.int32) - _TOP_EXPONENT)
        states *= scale[:, None]
        return states

    def finish(self) -> None:
        """Sync the states, then mark the file complete in its header. Raises OSError."""
        self._map.flush()
        os.fsync(self._descriptor)
        os.pwrite(self._descriptor, _HEADER.pack(MAGIC, self.n_tokens, self.n_embd, 1), 0)
        os.fsync(self._descriptor)
        sync_directory(self.path.parent)

    def close(self) -> None:
        """Close the file. Safe to call twice. Arrays that `read` returned stay valid."""
        if self._descriptor >= 0:
            del self._exponents, self._states
            self._map.close()
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> StateStore:
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
