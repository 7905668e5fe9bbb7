"""Which samples share a row of tokens: full rows, whole samples, the same for a seed and an epoch.

Why it exists: a row is one forward and backward pass, and padding in it is work for nothing; short
questions and answers fill less than half of a row each. Samples of one row never see each other
(adapt/trainer/decoder/decoder.py). Flows in: lengths in tokens, a seed, the number of the epoch.
Flows out: rows of indices. First-fit decreasing (Johnson 1973: at most 11/9 of the fewest rows
possible). Imports nothing of ours. Not here: tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence, Sized


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """0 ... n-1 shuffled. By SHA-256, so that no release of Python or NumPy changes a run."""

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{epoch}:{index}".encode()).digest()

    return sorted(range(n), key=rank)


def bins(samples: Sequence[Sized], batch_tokens: int, order: Sequence[int]) -> list[list[int]]:
    """Rows of indices into `samples`, each at most `batch_tokens` long and each index once.

    `order` (a permutation) decides between samples of equal length and puts the rows in order.
    Raises ValueError for a sample that is longer than a row.
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
    """`bins` in the order of this epoch."""
    return bins(samples, batch_tokens, epoch_order(len(samples), seed, epoch))


def n_tokens(samples: Iterable[Sized]) -> int:
    """Real tokens: there is no padding to count."""
    return sum(len(sample) for sample in samples)


class _Space:
    """Free tokens of every row; a tree of maxima finds the first row with room in log n steps."""

    def __init__(self, n_rows: int, capacity: int) -> None:
        self._leaves = 1 << max(0, n_rows - 1).bit_length()
        self._most = [capacity] * (2 * self._leaves)

    def take(self, length: int) -> int:
        """Number of the first row with so much room, which it has less from now on."""
        most, node = self._most, 1
        while node < self._leaves:
            node = 2 * node if most[2 * node] >= length else 2 * node + 1
        row = node - self._leaves
        most[node] -= length
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
        return row
