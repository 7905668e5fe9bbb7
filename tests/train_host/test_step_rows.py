"""The rows of each step: any number of processes takes the same ones, with little padding."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")

from accelerate.data_loader import BatchSamplerShard  # noqa: E402
from torch.utils.data import BatchSampler  # noqa: E402

from train_host.step_rows import Epoch, StepRows  # noqa: E402

LENGTHS = [random.Random(1).randint(2, 99) for _ in range(100)]


def steps_of(
    n_rows: int, n_processes: int, steps_made: int = 0, sorts: bool = True
) -> list[list[int]]:
    """The rows of each optimizer step, of all processes, as accelerate deals them out."""
    together = 2 * n_processes if n_processes > 1 else 1
    epoch = Epoch(LENGTHS[:n_rows], 8, together, seed=3, sorts=sorts)
    rows = StepRows(epoch, lambda: steps_made)
    micro = BatchSampler(rows, 2, drop_last=False)
    shards = [list(micro)]
    if n_processes > 1:
        shards = [list(BatchSamplerShard(micro, n_processes, rank)) for rank in range(n_processes)]
    assert len({len(shard) for shard in shards}) == 1, "a process would wait for ever"
    rounds = list(zip(*shards, strict=True))
    per_step = 4 // n_processes
    return [
        [row for dealt in rounds[first : first + per_step] for batch in dealt for row in batch]
        for first in range(0, len(rounds), per_step)
    ]


@pytest.mark.parametrize("n_rows", [1, 7, 8, 32, 33, 34, 39, 100])
@pytest.mark.parametrize("n_processes", [1, 2, 4])
def test_processes_share_the_steps_of_one(n_rows: int, n_processes: int) -> None:
    alone, shared = steps_of(n_rows, 1), steps_of(n_rows, n_processes)
    real = [[row for row in step if row != n_rows] for step in shared]
    assert real == alone
    assert sorted(row for step in real for row in step) == list(range(n_rows))
    assert len(alone) == -(-n_rows // 8)


def test_each_epoch_has_its_own_order_and_the_same_again() -> None:
    assert steps_of(34, 1, steps_made=4) == steps_of(34, 1, steps_made=0)
    assert steps_of(34, 1, steps_made=4) != steps_of(34, 1, steps_made=5)
    assert steps_of(34, 1, steps_made=5) == steps_of(34, 1, steps_made=9)


def test_a_step_is_sorted_and_keeps_the_rows_of_the_shuffle() -> None:
    """The rows that accelerate's own sampler would take: seed and epoch make them."""
    shuffled = torch.randperm(34, generator=torch.Generator().manual_seed(3 + 1)).tolist()
    for place, step in enumerate(steps_of(34, 1, steps_made=5)):
        assert sorted(step) == sorted(shuffled[8 * place : 8 * place + 8])
        lengths = [LENGTHS[row] for row in step]
        assert lengths == sorted(lengths, reverse=True)


def test_packed_rows_stay_as_they_were_shuffled() -> None:
    shuffled = torch.randperm(34, generator=torch.Generator().manual_seed(3)).tolist()
    assert [row for step in steps_of(34, 1, sorts=False) for row in step] == shuffled
