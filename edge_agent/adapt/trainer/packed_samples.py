"""The samples of a run as the decoder takes them: packed rows, with stored states where there are.

Why it exists: a row is one forward and backward pass, and padding is work for nothing; short
questions and answers fill less than half of a row. So several whole samples share a row, and
samples of one row never see each other (decoder/decoder.py). Flows in: encoded samples; the stored
states of the frozen blocks, once they exist (stored_states.py); a seed and the number of an epoch.
Flows out: rows of sample numbers, the same for the same seed and epoch; a PackedRow, and the states
that enter the lowest trained block. Samples are numbered: those to train on come first, then those
to validate with, then those to rehearse. Not here: reading data (preparation.py), storing states
(stored_states.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Sized
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapt.trainer.dataset import Sample
from edge_agent.adapt.trainer.decoder.decoder import PackedRow, pack
from edge_agent.adapt.trainer.decoder.head import SoftTargets


def supervised(sample: Sample) -> int:
    """Number of trained predictions of a sample. The first token is never predicted, because no
    token comes before it."""
    return sum(sample.learned[1:])


class HiddenStates(Protocol):
    """The method of StateStore (stored_states.py) that this module calls."""

    def read(self, first_token: int, n: int) -> NDArray[Any]: ...


class Distributions(Protocol):
    """The method of RehearsalTargets (rehearsal_targets.py) that this module calls."""

    def of(self, sample: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None: ...


class PackedSamples:
    """All samples of a run. `train`, `validation` and `rehearsal` are the ranges of their
    numbers. `targets`, once it exists, has the distributions of rehearsal samples."""

    def __init__(
        self,
        train: Sequence[Sample],
        validation: Sequence[Sample],
        rehearsal: Sequence[Sample] = (),
    ) -> None:
        self.samples = [*train, *validation, *rehearsal]
        self.train = range(len(train))
        self.validation = range(len(train), len(train) + len(validation))
        self.rehearsal = range(self.validation.stop, len(self.samples))
        self.targets: Distributions | None = None
        self._starts = np.cumsum([0, *map(len, self.samples)])
        self.prefix: HiddenStates | None = None

    @property
    def n_tokens(self) -> int:
        return int(self._starts[-1])

    def first_token(self, sample: int) -> int:
        """The number of a sample's first token in the file of stored states."""
        return int(self._starts[sample])

    def batch(
        self, row: Sequence[int], weights: Sequence[float] | None = None
    ) -> tuple[PackedRow, NDArray[Any] | None]:
        """The packed row of these samples, and the stored states (T, n_embd) that enter the lowest
        trained block; None when no states are stored. `weights`: those of the samples' losses."""
        packed = pack([(self.samples[n].ids, self.samples[n].learned) for n in row])
        packed = replace(packed, soft=self._soft(row))
        if weights is not None:
            counts = [supervised(self.samples[n]) for n in row]
            packed = replace(packed, weights=np.repeat(np.array(weights, np.float32), counts))
        if self.prefix is None:
            return packed, None
        parts = [self.prefix.read(self.first_token(n), len(self.samples[n])) for n in row]
        return packed, np.concatenate(parts)

    def _soft(self, row: Sequence[int]) -> SoftTargets | None:
        """The stored distributions of the row's samples; None when there are none."""
        places: list[NDArray[np.int64]] = []
        found: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        first = 0
        for n in row:
            count = supervised(self.samples[n])
            stored = None if self.targets is None else self.targets.of(n)
            if stored is not None:
                places.append(np.arange(first, first + count))
                found.append(stored)
            first += count
        if not found:
            return None
        ids, q = (np.concatenate(part) for part in zip(*found, strict=True))
        return SoftTargets(np.concatenate(places), ids, q)

    def tokens(self, row: Sequence[int]) -> int:
        """Tokens of these samples together."""
        return sum(len(self.samples[n]) for n in row)

    def supervised(self, row: Sequence[int]) -> int:
        return sum(supervised(self.samples[n]) for n in row)

    def n_bytes(self, row: Sequence[int]) -> int:
        """UTF-8 bytes of these samples' answers."""
        return sum(self.samples[n].n_bytes for n in row)

    def sha256(self) -> str:
        """SHA-256 of all ids, masks and counts, in order, and of the places where validation and
        rehearsal begin."""
        begins = f"{len(self.train)}/{self.rehearsal.start}/{len(self.samples)}"
        digest = hashlib.sha256(begins.encode())
        for sample in self.samples:
            digest.update(f"\n{len(sample)} {sample.n_bytes}\n".encode())
            digest.update(np.asarray(sample.ids, "<i4").tobytes())
            digest.update(bytes(sample.learned))
        return digest.hexdigest()


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The numbers 0 .. n - 1 in the order of an epoch. The order comes from SHA-256, so that no
    release of Python or NumPy changes a run."""

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{epoch}:{index}".encode()).digest()

    return sorted(range(n), key=rank)


def bins(samples: Sequence[Sized], batch_tokens: int, order: Sequence[int]) -> list[list[int]]:
    """Rows of indices into `samples`: each index once, at most `batch_tokens` tokens in a row.

    The method is first-fit decreasing, which needs at most 11/9 of the fewest rows possible, plus a
    constant (Johnson 1973). `order`, a permutation of the indices, decides between samples of equal
    length, and the order of the rows. Raises ValueError for a sample that is longer than a row.

    >>> bins(["aaa", "bb", "c", "dd"], 4, range(4))
    [[0, 2], [1, 3]]
    """
    lengths = [len(sample) for sample in samples]
    longest = max(lengths, default=0)
    if longest > batch_tokens:
        raise ValueError(f"a sample of {longest} tokens does not fit a row of {batch_tokens}")
    rank = {index: place for place, index in enumerate(order)}
    if len(rank) != len(samples):
        raise ValueError(f"an order of {len(rank)} for {len(samples)} samples")
    rows: list[list[int]] = []
    space = _Space(len(samples), batch_tokens)
    for index in sorted(rank, key=lambda index: (-lengths[index], rank[index])):
        row = space.take(lengths[index])
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
    return sorted(rows, key=lambda row: rank[row[0]])


def epoch_rows(
    samples: Sequence[Sized], batch_tokens: int, seed: int, epoch: int
) -> list[list[int]]:
    """The rows of an epoch: `bins` with the order of `epoch_order`."""
    return bins(samples, batch_tokens, epoch_order(len(samples), seed, epoch))


class _Space:
    """The free tokens of every row. A binary tree of maxima finds the first row with enough room in
    log n steps."""

    def __init__(self, n_rows: int, capacity: int) -> None:
        self._leaves = 1 << max(0, n_rows - 1).bit_length()
        self._most = [capacity] * (2 * self._leaves)

    def take(self, length: int) -> int:
        """Take `length` tokens from the first row that has so many free. Returns its number."""
        most, node = self._most, 1
        while node < self._leaves:
            node = 2 * node if most[2 * node] >= length else 2 * node + 1
        row = node - self._leaves
        most[node] -= length
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
        return row
