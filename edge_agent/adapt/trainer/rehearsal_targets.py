"""The distributions that a lesson must keep: the model's own, before the lesson, stored once.

Why it exists: an instruct model rehearses by staying near to itself. Its distribution over the
whole vocabulary would take 1 MiB a token (Gemma 3), so the K likeliest tokens are stored, and the
rest counts as one outcome. Flows in: a decoder whose adapters are still zero, samples with stored
states. Flows out: a file, the same bits for the same identity; token ids and probabilities for each
sample. Not here: the loss (decoder/head.py), which samples are rehearsed (rehearsal.py).

A complete file is also copied to a cache, for the next run with the same model, blocks and texts;
not when users' own questions are among the texts. The file, little-endian:

    magic 8 bytes | SHA-256 of the identity | n u64 | k u64 | ids i32[n][k] | q f32[n][k] | SHA-256
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent import atomic_file
from edge_agent.adapt.trainer.decoder.decoder import Decoder
from edge_agent.adapt.trainer.packed_samples import PackedSamples, bins, supervised
from edge_agent.adapt.trainer.training_loop import LoopTools

K = 32
"""Stored tokens of a position. With SmolLM2 they hold 90 to 100 % of the probability."""
MAGIC = b"EAREHE01"
_HEADER = struct.Struct("<8s32sQQ")
MOST_KEPT = 8
"""Files in the cache; the oldest ones give way."""


class RehearsalTargets:
    """The stored tokens `ids` (n, k) and probabilities `q` (n, k) of the samples `numbers`, sample
    after sample, position after position."""

    def __init__(
        self,
        packed: PackedSamples,
        numbers: Sequence[int],
        ids: NDArray[np.int64],
        q: NDArray[np.float32],
    ) -> None:
        counts = [supervised(packed.samples[n]) for n in numbers]
        ends = np.cumsum(counts)
        self._ids, self._q = ids, q
        self._rows = {
            n: slice(int(end) - count, int(end))
            for n, end, count in zip(numbers, ends, counts, strict=True)
        }

    def of(self, sample: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """(ids, q) of one sample, a row for each supervised position; None for other samples."""
        rows = self._rows.get(sample)
        return None if rows is None else (self._ids[rows], self._q[rows])


class TargetFiller:
    """Computes the targets of the samples `numbers`, or reads them. `identity` names everything
    that they depend on besides the samples; `cache` is None where nothing may be kept."""

    def __init__(
        self,
        path: Path,
        cache: Path | None,
        packed: PackedSamples,
        numbers: Sequence[int],
        identity: dict[str, Any],
        tools: LoopTools,
    ) -> None:
        self._path, self._packed, self._numbers, self._tools = path, packed, numbers, tools
        samples = PackedSamples([], [], [packed.samples[n] for n in numbers])
        whole = {**identity, "samples": samples.sha256(), "k": K}
        self._key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).digest()
        self._kept = None if cache is None else cache / f"{self._key.hex()[:32]}.targets"

    def fill(self, decoder: Decoder, row_tokens: int) -> float:
        """Give the targets to the PackedSamples (`targets`). Returns the seconds that this took.

        Raises StopAsked when the front stops the run, and OSError.
        """
        began_s = self._tools.monotonic()
        found = self._read(self._path) or (self._read(self._kept) if self._kept else None)
        if found is None:
            found = self._computed(decoder, row_tokens)
            self._tools.pauses.persist(lambda: self._write(self._path, found))
            if self._kept is not None:
                _keep(self._kept, self._path.read_bytes())
        self._packed.targets = RehearsalTargets(self._packed, self._numbers, *found)
        return self._tools.monotonic() - began_s

    def _computed(
        self, decoder: Decoder, row_tokens: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        packed, tools = self._packed, self._tools
        samples = [packed.samples[n] for n in self._numbers]
        longest = max(row_tokens, *map(len, samples))
        rows = bins(samples, longest, range(len(samples)))
        found: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
        for count, row in enumerate(rows, 1):
            batch, start = packed.batch([self._numbers[n] for n in row])
            ids, q = decoder.likeliest(batch, min(K, decoder.head.n_out), start)
            ends = np.cumsum([supervised(samples[n]) for n in row])[:-1]
            parts = zip(row, np.split(ids, ends), np.split(q, ends), strict=True)
            found |= {n: (part_ids, part_q) for n, part_ids, part_q in parts}
            tools.reporter.note(f"what the model answers today: {count} of {len(rows)}")
            tools.pauses.rest()
        every = [found[n] for n in range(len(samples))]
        return np.concatenate([ids for ids, _ in every]), np.concatenate([q for _, q in every])

    def _write(self, path: Path, found: tuple[NDArray[np.int64], NDArray[np.float32]]) -> None:
        ids, q = found
        body = _HEADER.pack(MAGIC, self._key, *ids.shape) + ids.astype("<i4").tobytes()
        body += q.astype("<f4").tobytes()
        atomic_file.write(path, body + hashlib.sha256(body).digest())

    def _read(self, path: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """The targets in a file; None when it is missing, damaged or of another identity."""
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        body, digest = raw[:-32], raw[-32:]
        if len(body) < _HEADER.size or hashlib.sha256(body).digest() != digest:
            return None
        magic, key, n, k = _HEADER.unpack_from(body)
        wanted = sum(supervised(self._packed.samples[number]) for number in self._numbers)
        size = _HEADER.size + 8 * n * k
        if (magic, key, n, len(body)) != (MAGIC, self._key, wanted, size):
            return None
        ids = np.frombuffer(body, "<i4", n * k, _HEADER.size).reshape(n, k)
        q = np.frombuffer(body, "<f4", n * k, _HEADER.size + 4 * n * k).reshape(n, k)
        return ids.astype(np.int64), q.astype(np.float32)


def file_bytes(n: int) -> int:
    """Bytes of the file with the targets of `n` positions."""
    return _HEADER.size + 8 * n * K + 32


def _keep(path: Path, raw: bytes) -> None:
    """Copy a file to the cache, which is a convenience: a full disk is no error here."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_file.write(path, raw)
        kept = sorted(path.parent.glob("*.targets"), key=lambda one: one.stat().st_mtime)
        for old in kept[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
    except OSError:
        return
