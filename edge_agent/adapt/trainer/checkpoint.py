"""Checkpoints of a run: complete or absent, checked before use; the newest two are kept.

Why it exists: a kill or a power cut at any moment, also during a save, must cost at most the steps
since the last save. Flows in: arrays by name and a small JSON object. Flows out: the same, bit for
bit. A file is written under a temporary name, synced and renamed, and its directory is synced, as
in edge_agent/atomic_file.py; here block by block, because a checkpoint can be as large as the free
memory. Nothing in a file is executed or unpickled. Not here: the meaning of the arrays
(training_loop.py).

    EDGECKP1 | u32 header bytes | header, JSON | arrays, little-endian | SHA-256 of all before
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.atomic_file import TEMP_SUFFIX, sync_directory

Array = NDArray[Any]

MAGIC = b"EDGECKP1"
SUFFIX = ".checkpoint"
KEEP = 2
"""Checkpoints that are kept: if the newest one is damaged, the one before it is used."""
DTYPES = ("<f4", "<f8")
MAX_HEADER_BYTES = 4 << 20
MAX_FILE_BYTES = 8 << 30
"""More than any adapter with its optimizer's state takes; a larger file is refused."""
_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 32
_BLOCK_BYTES = 1 << 20


class CheckpointDamaged(Exception):
    """A file is not a complete checkpoint; the text says why."""


@dataclass(frozen=True)
class TrainingCheckpoint:
    """`state` is a JSON object, whose floats are restored exactly; `arrays` are float32 or float64,
    of any shape."""

    step: int
    state: Mapping[str, Any]
    arrays: Mapping[str, Array]


@dataclass
class TrainingCheckpoints:
    """The checkpoints in one existing directory. Only one process may use it at a time.

    For example:

        checkpoints = TrainingCheckpoints(directory)
        checkpoints.save(TrainingCheckpoint(20, {"epoch": 1}, {"lora/a": a}))
        checkpoints.newest().arrays["lora/a"]
    """

    directory: Path
    damaged: list[str] = field(default_factory=list)
    """The files that `newest` removed, with the reasons."""

    def save(self, checkpoint: TrainingCheckpoint) -> None:
        """Write a checkpoint, durable when this returns, then remove all but the newest KEEP.

        Raises OSError, for example when the disk is full.
        """
        write(self._path(checkpoint.step), checkpoint)
        for path in self.paths()[KEEP:]:
            path.unlink(missing_ok=True)

    def newest(self) -> TrainingCheckpoint | None:
        """The newest complete checkpoint, None without one. Removes damaged files, and the
        temporary file of a save that was killed."""
        for leftover in self.directory.glob(f".*{TEMP_SUFFIX}"):
            leftover.unlink(missing_ok=True)
        for path in self.paths():
            try:
                return read(path)
            except CheckpointDamaged as error:
                self.damaged.append(f"{path.name}: {error}")
                path.unlink(missing_ok=True)
        return None

    def paths(self) -> list[Path]:
        """The paths of all checkpoints, the newest first."""
        return sorted(self.directory.glob(f"*{SUFFIX}"), reverse=True)

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}{SUFFIX}"


def write(path: Path, checkpoint: TrainingCheckpoint) -> None:
    """Write `checkpoint` to `path`. Raises OSError; an earlier file at `path` then remains."""
    temp = path.with_name(f".{path.name}{TEMP_SUFFIX}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temp, flags, 0o600), "wb", buffering=0) as file:
            digest = hashlib.sha256()
            for block in _blocks(checkpoint):
                digest.update(block)
                _write_all(file, block)
            _write_all(file, memoryview(digest.digest()))
            os.fsync(file.fileno())
        os.replace(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _blocks(checkpoint: TrainingCheckpoint) -> Iterator[memoryview]:
    entries, contents = [], []
    for name, array in checkpoint.arrays.items():
        stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        if stored.dtype.str not in DTYPES:
            raise ValueError(f"{name} is {array.dtype}, checkpoints hold float32 and float64")
        entries.append([name, stored.dtype.str, list(stored.shape)])
        contents.append(stored)
    header = {"step": checkpoint.step, "state": dict(checkpoint.state), "arrays": entries}
    encoded = json.dumps(header, allow_nan=True).encode()
    if len(encoded) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(encoded)} bytes, {MAX_HEADER_BYTES} are allowed")
    yield memoryview(MAGIC + _LENGTH.pack(len(encoded)) + encoded)
    for stored in contents:
        yield stored.reshape(-1).view(np.uint8).data


def _write_all(file: Any, block: memoryview) -> None:
    """Write all of `block`: one call of an unbuffered file's `write` may write only a part."""
    while block:
        block = block[file.write(block) :]


def read(path: Path) -> TrainingCheckpoint:
    """Read a checkpoint. Raises CheckpointDamaged for anything but a complete file of `write`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            _check_digest(file, size)
            file.seek(0)
            return _parsed(file, size - _DIGEST_BYTES)
    except OSError as error:
        raise CheckpointDamaged(error.strerror or str(error)) from error


def _check_digest(file: BufferedReader, size: int) -> None:
    shortest = len(MAGIC) + _LENGTH.size + _DIGEST_BYTES
    if not shortest <= size <= MAX_FILE_BYTES:
        raise CheckpointDamaged(f"it has {size} bytes")
    digest, left = hashlib.sha256(), size - _DIGEST_BYTES
    while left:
        block = file.read(min(left, _BLOCK_BYTES))
        if not block:
            raise CheckpointDamaged("it ends too early")
        digest.update(block)
        left -= len(block)
    if file.read(_DIGEST_BYTES) != digest.digest():
        raise CheckpointDamaged("its SHA-256 is wrong")


def _parsed(file: BufferedReader, end: int) -> TrainingCheckpoint:
    if file.read(len(MAGIC)) != MAGIC:
        raise CheckpointDamaged("it does not begin as a checkpoint")
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    if length > min(MAX_HEADER_BYTES, end - file.tell()):
        raise CheckpointDamaged(f"its header claims {length} bytes")
    try:
        header = json.loads(file.read(length))
        step, state = int(header["step"]), dict(header["state"])
        entries = [_entry(*entry) for entry in header["arrays"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointDamaged(f"its header is broken: {error}") from error
    if file.tell() + sum(n_bytes for *_, n_bytes in entries) != end:
        raise CheckpointDamaged("its arrays do not fill it")
    arrays = {}
    for name, dtype, shape, n_bytes in entries:
        array = np.empty(shape, dtype)
        if file.readinto(array.reshape(-1).view(np.uint8).data) != n_bytes:
            raise CheckpointDamaged("it ends too early")
        arrays[name] = array
    return TrainingCheckpoint(step, state, arrays)


def _entry(name: str, dtype: str, shape: list[int]) -> tuple[str, np.dtype[Any], list[int], int]:
    """(name, dtype, shape, bytes). Raises ValueError."""
    if dtype not in DTYPES or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"an array of type {dtype!r} and shape {shape!r}")
    kind, count = np.dtype(dtype), 1
    for n in shape:
        count *= n
    return str(name), kind, shape, count * kind.itemsize
