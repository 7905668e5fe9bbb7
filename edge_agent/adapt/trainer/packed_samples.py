"""The samples of a run as the decoder takes them: packed rows, with stored states where there are.

Flows in: encoded samples and, once it is stored, the frozen prefix. Flows out: a Batch and the
states that enter the lowest trained block. Samples are numbered: those to learn first, then those
to validate with. Not here: reading data (preparation.py), which samples share a row (packing.py),
storing states (stored_states.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapt.trainer.dataset import Sample
from edge_agent.adapt.trainer.decoder.decoder import Batch, pack


def supervised(sample: Sample) -> int:
    """Tokens that are predicted: the first has nothing before it."""
    return sum(sample.learned[1:])


class States(Protocol):
    """The part of PrefixStore that is read here."""

    def read(self, first_token: int, n: int) -> NDArray[Any]: ...


class Material:
    """All samples; `train` and `validation` are their numbers."""

    def __init__(self, train: Sequence[Sample], validation: Sequence[Sample]) -> None:
        self.samples = [*train, *validation]
        self.train = range(len(train))
        self.validation = range(len(train), len(self.samples))
        self._starts = np.cumsum([0, *map(len, self.samples)])
        self.prefix: States | None = None

    @property
    def n_tokens(self) -> int:
        return int(self._starts[-1])

    def first_token(self, sample: int) -> int:
        """Where the states of a sample begin in the prefix store."""
        return int(self._starts[sample])

    def batch(self, row: Sequence[int]) -> tuple[Batch, NDArray[Any] | None]:
        """A packed row and the states (T, n_embd) that enter the lowest trained block."""
        packed = pack([(self.samples[n].ids, self.samples[n].learned) for n in row])
        if self.prefix is None:
            return packed, None
        parts = [self.prefix.read(self.first_token(n), len(self.samples[n])) for n in row]
        return packed, np.concatenate(parts)

    def tokens(self, row: Sequence[int]) -> int:
        return sum(len(self.samples[n]) for n in row)

    def supervised(self, row: Sequence[int]) -> int:
        return sum(supervised(self.samples[n]) for n in row)

    def n_bytes(self, row: Sequence[int]) -> int:
        return sum(self.samples[n].n_bytes for n in row)

    def sha256(self) -> str:
        """Of every id, mask and count, in order, and of where validation begins."""
        digest = hashlib.sha256(f"{len(self.train)}/{len(self.samples)}".encode())
        for sample in self.samples:
            digest.update(f"\n{len(sample)} {sample.n_bytes}\n".encode())
            digest.update(np.asarray(sample.ids, "<i4").tobytes())
            digest.update(bytes(sample.learned))
        return digest.hexdigest()
